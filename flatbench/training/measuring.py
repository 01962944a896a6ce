"""The sharpness measures of a case: which, on which examples, with which settings.

`flatbench.sharpness` defines the measures; here they meet a protocol's ``[sharpness]`` table.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatbench.components import in_one_line
from flatbench.data import DataSet
from flatbench.protocols.protocol import Sharpness
from flatbench.records.quantities import CLEAN, NORMALISED, STANDARD_ERROR
from flatbench.sharpness import (
    Curvature,
    LossSurface,
    Measure,
    ascent_sharpness,
    average_sharpness,
    hessian_curvature,
    loss_surface,
    on_normalised_logits,
)
from flatbench.training.task import Function

ASCENT_STEPS = 10  # of the "_10_steps" measures
NOISE_PAIRS = 10  # of average_sharpness
# Loose, because a ranking needs two digits and each product costs two gradients.
EIGENVALUE_TOLERANCE = 1e-2
TRACE_PROBES = 5

MEASURES: Mapping[str, Callable[[LossSurface, Sharpness], Measure]] = {
    "ascent_sharpness": lambda surface, rule: ascent_sharpness(surface, rho=rule.rho),
    f"ascent_sharpness_{ASCENT_STEPS}_steps": lambda surface, rule: ascent_sharpness(
        surface, rho=rule.rho, steps=ASCENT_STEPS
    ),
    "m_sharpness": lambda surface, rule: ascent_sharpness(surface, rho=rule.rho, m=rule.m),
    "adaptive_ascent_sharpness": lambda surface, rule: ascent_sharpness(
        surface, rho=rule.adaptive_rho, adaptive=True
    ),
    "average_sharpness": lambda surface, rule: average_sharpness(
        surface, sigma=rule.sigma, samples=NOISE_PAIRS
    ),
    "adaptive_average_sharpness": lambda surface, rule: average_sharpness(
        surface, sigma=rule.adaptive_sigma, samples=NOISE_PAIRS, adaptive=True
    ),
    "hessian_max_eigenvalue": lambda surface, rule: _curvature(surface).max_eigenvalue,
    "hessian_trace": lambda surface, rule: _curvature(surface).trace,
}

# What a surface's Krylov space gave, as long as the surface lives: two measures ask for it.
_CURVATURES: weakref.WeakKeyDictionary[LossSurface, Curvature] = weakref.WeakKeyDictionary()


def _curvature(surface: LossSurface) -> Curvature:
    if surface not in _CURVATURES:
        _CURVATURES[surface] = hessian_curvature(
            surface, tolerance=EIGENVALUE_TOLERANCE, probes=TRACE_PROBES
        )
    return _CURVATURES[surface]


@dataclass(frozen=True)
class Measured:
    """What `measure` found.

    Attributes:
        values: each measure by its name; None where it is not finite or could not be taken.
        failures: why a measure could not be taken, in one line, by its name.
        taken: what each measure gave, its cost and its error included, by its name.
    """

    values: dict[str, float | None]
    failures: dict[str, str]
    taken: dict[str, Measure]


def at_end(rule: Sharpness) -> tuple[str, ...]:
    """Return the names of a protocol's measures of the final weights."""
    return (*rule.at_end, *(f"{name}{NORMALISED}" for name in rule.normalised))


def examples(dataset: DataSet, rule: Sharpness) -> Tensor:
    """Return the indices of the fixed training examples that are measured on: the same for all."""
    order = np.random.default_rng(rule.examples_seed).permutation(len(dataset.train))
    order = order[: rule.examples]
    return torch.from_numpy(np.sort(order)).to(dataset.train.labels.device)


def measure(
    names: Iterable[str],
    model: nn.Module,
    dataset: DataSet,
    labels: Tensor,
    rule: Sharpness,
    *,
    loss: Function = F.cross_entropy,
    standard_errors: bool = False,
) -> Measured:
    """Return each measure on the protocol's fixed part of the training images, unaugmented.

    The loss is the plain one, without label smoothing, whatever a row trains with. ``labels`` [N]
    are the labels that the run trains on. Where they differ from the true ones, and the protocol
    does not say otherwise, each measure is taken with the true ones too, under its name and
    `CLEAN`. A name that ends in `NORMALISED` is that of a measure with normalised logits. With
    ``standard_errors``, a measure that has one gives it under its name and `STANDARD_ERROR`. A
    value that is not finite becomes None.

    A measure that raises an error loses neither the others nor the run: the second derivative of a
    user's network may not exist, or not fit into the memory.
    """
    picked = examples(dataset, rule)
    images = dataset.normalise(dataset.train.images[picked])
    sides = {"": labels[picked]}
    if rule.true_labels and not torch.equal(labels, dataset.train.labels):
        sides[CLEAN] = dataset.train.labels[picked]

    @functools.cache
    def surface(side: str, normalised: bool) -> LossSurface:
        height = on_normalised_logits(loss) if normalised else loss
        return loss_surface(model, height, images, sides[side], batchnorm=rule.batchnorm)

    values: dict[str, float | None] = {}
    failures: dict[str, str] = {}
    taken: dict[str, Measure] = {}
    for name in names:
        plain = name.removesuffix(NORMALISED)
        for side in sides:
            try:
                found = MEASURES[plain](surface(side, name != plain), rule)
            except Exception as error:  # noqa: BLE001 - a user's backward may raise anything
                values[f"{name}{side}"] = None
                failures[f"{name}{side}"] = in_one_line(error)
                continue
            taken[f"{name}{side}"] = found
            values[f"{name}{side}"] = finite(found.value)
            if standard_errors and found.standard_error is not None:
                values[f"{name}{side}{STANDARD_ERROR}"] = finite(found.standard_error)
    return Measured(values, failures, taken)


def finite(value: float) -> float | None:
    """Return a number if it is one, for JSON has neither NaN nor infinity."""
    return value if math.isfinite(value) else None

"""The sharpness measures of a case: which, on which examples, with which settings.

`flatbench.sharpness` defines the measures; here they meet a protocol's ``[sharpness]`` table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatbench.data import DataSet
from flatbench.protocols.protocol import Sharpness
from flatbench.records.quantities import CLEAN, STANDARD_ERROR
from flatbench.sharpness import (
    LossSurface,
    Measure,
    ascent_sharpness,
    average_sharpness,
    hessian_max_eigenvalue,
    hessian_trace,
    loss_surface,
)

ASCENT_STEPS = 10  # of the "_10_steps" measures
NOISE_PAIRS = 5  # of average_sharpness
# Loose, because a ranking needs two digits and each Lanczos step costs three gradients.
EIGENVALUE_TOLERANCE = 1e-2
TRACE_PRODUCTS = 15

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
    "hessian_max_eigenvalue": lambda surface, rule: hessian_max_eigenvalue(
        surface, tolerance=EIGENVALUE_TOLERANCE
    ),
    "hessian_trace": lambda surface, rule: hessian_trace(surface, products=TRACE_PRODUCTS),
}


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
    standard_errors: bool = False,
) -> dict[str, float | None]:
    """Return each measure on the protocol's fixed part of the training images, unaugmented.

    The loss is the plain cross-entropy, whatever a row trains with. ``labels`` [N] are the labels
    that the run trains on. Where they differ from the true ones, each measure is taken with the
    true ones too, under its name and `CLEAN`. With ``standard_errors``, a measure that has one
    gives it under its name and `STANDARD_ERROR`. A value that is not finite becomes None.
    """
    picked = examples(dataset, rule)
    images = dataset.normalise(dataset.train.images[picked])
    sides = {"": labels[picked]}
    if not torch.equal(labels, dataset.train.labels):
        sides[CLEAN] = dataset.train.labels[picked]
    surfaces = {
        side: loss_surface(model, F.cross_entropy, images, targets, batchnorm=rule.batchnorm)
        for side, targets in sides.items()
    }
    values: dict[str, float | None] = {}
    for name in names:
        for side, surface in surfaces.items():
            found = MEASURES[name](surface, rule)
            values[f"{name}{side}"] = found.value
            if standard_errors and found.standard_error is not None:
                values[f"{name}{side}{STANDARD_ERROR}"] = found.standard_error
    return {name: v if v is not None and math.isfinite(v) else None for name, v in values.items()}

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

from flatbench import sharpness
from flatbench.data import DataSet
from flatbench.protocols.protocol import Sharpness

Measured = Callable[[nn.Module, Tensor, Tensor, Sharpness], sharpness.Measure]

ASCENT_STEPS = 10  # of the "_10_steps" measures
NOISE_PAIRS = 5  # of average_sharpness
# Loose, because a ranking needs two digits and each Lanczos step costs three gradients.
EIGENVALUE_TOLERANCE = 1e-2
TRACE_PRODUCTS = 15


def _ascent(steps: int, adaptive: bool) -> Measured:
    def measure(model: nn.Module, x: Tensor, y: Tensor, rule: Sharpness) -> sharpness.Measure:
        return sharpness.ascent_sharpness(
            model,
            F.cross_entropy,
            x,
            y,
            rho=rule.adaptive_rho if adaptive else rule.rho,
            steps=steps,
            adaptive=adaptive,
            batchnorm=rule.batchnorm,
        )

    return measure


def _m_sharpness(model: nn.Module, x: Tensor, y: Tensor, rule: Sharpness) -> sharpness.Measure:
    return sharpness.ascent_sharpness(
        model, F.cross_entropy, x, y, rho=rule.rho, m=rule.m, batchnorm=rule.batchnorm
    )


def _average(adaptive: bool) -> Measured:
    def measure(model: nn.Module, x: Tensor, y: Tensor, rule: Sharpness) -> sharpness.Measure:
        return sharpness.average_sharpness(
            model,
            F.cross_entropy,
            x,
            y,
            sigma=rule.adaptive_sigma if adaptive else rule.sigma,
            samples=NOISE_PAIRS,
            adaptive=adaptive,
            batchnorm=rule.batchnorm,
        )

    return measure


def _max_eigenvalue(model: nn.Module, x: Tensor, y: Tensor, rule: Sharpness) -> sharpness.Measure:
    return sharpness.hessian_max_eigenvalue(
        model,
        F.cross_entropy,
        x,
        y,
        tolerance=EIGENVALUE_TOLERANCE,
        batchnorm=rule.batchnorm,
    )


def _trace(model: nn.Module, x: Tensor, y: Tensor, rule: Sharpness) -> sharpness.Measure:
    return sharpness.hessian_trace(
        model, F.cross_entropy, x, y, products=TRACE_PRODUCTS, batchnorm=rule.batchnorm
    )


MEASURES: Mapping[str, Measured] = {
    "ascent_sharpness": _ascent(steps=1, adaptive=False),
    f"ascent_sharpness_{ASCENT_STEPS}_steps": _ascent(steps=ASCENT_STEPS, adaptive=False),
    "m_sharpness": _m_sharpness,
    "adaptive_ascent_sharpness": _ascent(steps=1, adaptive=True),
    "average_sharpness": _average(adaptive=False),
    "adaptive_average_sharpness": _average(adaptive=True),
    "hessian_max_eigenvalue": _max_eigenvalue,
    "hessian_trace": _trace,
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

    The loss is the plain cross-entropy, whatever a row trains with. ``labels`` [N] are those
    trained on; where they differ from the true ones, each measure is also taken with those, under
    its name and "_clean"; with ``standard_errors`` also those measures' that have one, under the
    measure's name and "_standard_error". A value that is not finite is None.
    """
    picked = examples(dataset, rule)
    images = dataset.normalise(dataset.train.images[picked])
    sides = {"": labels[picked]}
    if not torch.equal(labels, dataset.train.labels):
        sides["_clean"] = dataset.train.labels[picked]
    values: dict[str, float | None] = {}
    for name in names:
        for side, targets in sides.items():
            found = MEASURES[name](model, images, targets, rule)
            values[f"{name}{side}"] = found.value
            if standard_errors and found.standard_error is not None:
                values[f"{name}{side}_standard_error"] = found.standard_error
    return {name: v if v is not None and math.isfinite(v) else None for name, v in values.items()}

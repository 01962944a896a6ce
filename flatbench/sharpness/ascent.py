"""Worst case: how much the loss rises inside a ball around w."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .surface import (
    LossSurface,
    Measure,
    at_least,
    element_scale,
    non_negative,
    standard_error,
)


def ascent_sharpness(
    surface: LossSurface,
    *,
    rho: float,
    steps: int = 1,
    step_size: float | None = None,
    m: int | None = None,
    adaptive: bool = False,
    eta: float = 0.0,
) -> Measure:
    """Return max L(w + ε) − L(w) over ‖ε‖ ≤ ρ as found by gradient ascent, in units of the loss.

    The maximum is Keskar et al. 2017's sharpness (there over a box). One step goes to
    ε = ρ T² g / ‖T g‖, SAM's own point (Foret et al. 2021, eq. 2; Kwon et al. 2021 for T). More
    steps are projected gradient ascent from there, in the coordinates δ = T⁻¹ε where the set is
    the ball ‖δ‖ ≤ ρ: each moves ``step_size`` along the unit gradient and projects. A step that
    does not raise the loss is taken back and the step size halved, much as in the Auto-PGD of
    Andriushchenko et al. 2023; so the value never falls with ``steps``, and is at least that of
    one step.

    The value is a lower bound of the maximum. It is taken over the points visited, ε = 0 not
    included, so it may be negative where the radius overshoots a peak. Where the gradient is zero
    there is no direction to climb and the value is 0, at a saddle too. ε runs over all parameters
    that require a gradient, as one vector. With adaptive and eta = 0 the measure does not change
    under the rescalings that leave a ReLU network's function alone; the plain one does.

    Cost: ``steps`` + 1/3 gradient evaluations, for any ``m``.

    Args:
        surface: the loss, at whose ``center`` w it is measured.
        rho: the radius.
        steps: ascent steps, at least 1.
        step_size: length of each step after the first, in the units of ``rho``; None means
            ``rho``.
        m: m-sharpness (Foret et al. 2021, section 4.1; Andriushchenko & Flammarion 2022): the
            maximum is found for each group of m consecutive examples, and the value is the mean
            over the groups; a last, smaller group weighs less. None means one group of all
            examples. Each group is evaluated in batches of the surface's ``batch_size``.
        adaptive: the set is ‖T⁻¹ε‖ ≤ ρ with T = |w| + eta.
        eta: added to |w| when adaptive.

    Returns:
        The measure; its standard error is over the groups of m, and None for a single group.

    Raises:
        ValueError: an argument is out of range.
    """
    non_negative("rho", rho)
    at_least("steps", steps, 1)
    move = rho if step_size is None else non_negative("step_size", step_size)
    size = None if m is None else at_least("m", m, 1)
    scale = element_scale(surface.center, adaptive, eta)
    rises, shares, cost = [], [], 0.0
    for group in surface.groups(size):
        share = group.examples / surface.examples
        rises.append(_ascend(group, rho, steps, move, scale))
        shares.append(share)
        cost += share * group.gradient_evaluations
    values = torch.tensor(rises, dtype=torch.float64)
    mean = values @ torch.tensor(shares, dtype=torch.float64)
    return Measure(float(mean), standard_error(values), cost, samples=len(values))


def _ascend(surface: LossSurface, rho: float, steps: int, move: float, scale: Tensor) -> float:
    """Return the highest rise of the loss over the points that the ascent visits."""

    def evaluate(delta: Tensor, last: bool) -> tuple[float, Tensor]:
        w = surface.center + scale * delta
        if last:  # nothing follows: its gradient is not needed
            return surface.value(w), delta
        height, gradient = surface.gradient(w)
        return height, _unit(scale * gradient)

    start, gradient = surface.gradient(surface.center)
    delta = rho * _unit(scale * gradient)
    height, uphill = evaluate(delta, last=steps == 1)
    for step in range(2, steps + 1):
        if not math.isfinite(height):
            break
        trial = _project(delta + move * uphill, rho)
        trial_height, trial_uphill = evaluate(trial, last=step == steps)
        if trial_height > height:
            delta, height, uphill = trial, trial_height, trial_uphill
        else:
            move /= 2
    return height - start


def _unit(vector: Tensor) -> Tensor:
    norm = vector.norm()
    return vector / norm if norm != 0 else vector


def _project(vector: Tensor, radius: float) -> Tensor:
    norm = vector.norm()
    return vector * (radius / norm) if norm > radius else vector

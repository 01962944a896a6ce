"""Average case: how much the loss rises under Gaussian noise in the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from flatbench.sharpness.surface import (
    BatchNormMode,
    Loss,
    Measure,
    at_least,
    element_scale,
    loss_surface,
    non_negative,
    standard_error,
)


def average_sharpness(
    model: nn.Module,
    loss: Loss,
    inputs: Tensor,
    targets: Tensor,
    *,
    sigma: float,
    samples: int = 20,
    adaptive: bool = False,
    eta: float = 0.0,
    seed: int = 0,
    batch_size: int | None = None,
    batchnorm: BatchNormMode = "eval",
) -> Measure:
    """Return E[L(w + ε)] − L(w), ε ~ N(0, σ²T²), in units of the loss; T = 1, or |w| + eta.

    The plain noise is that of the PAC-Bayes sharpness of Jiang et al. 2020, the adaptive one that
    of its magnitude-aware form; as a difference of losses they are the average-case sharpness of
    Andriushchenko et al. 2023. To second order it is σ²/2 · trace(T H T).

    σ and ρ: ‖T⁻¹ε‖² has mean σ²d, and concentrates there, so σ = ρ/√d puts the noise on the
    sphere that `ascent_sharpness` searches at radius ρ; `gaussian_sigma` computes it.

    ε is drawn in pairs ±ε, whose first-order terms cancel; the mean stays unbiased and the
    standard error comes from the pairs. The noise is drawn on the CPU in float64, so a seed means
    the same perturbations on every device.

    The value is a difference of losses: below about 1e-6 of the loss, a float32 model's rounding is
    all that is left of it.

    Cost: (1 + 2·samples)/3 gradient evaluations, all of them forward passes.

    Args:
        model: see `flatbench.sharpness.loss_surface`.
        loss: maps (outputs, targets) to the mean loss.
        inputs: (n, ...).
        targets: (n, ...).
        sigma: standard deviation of the noise (times T when adaptive).
        samples: pairs ±ε, at least 1; the standard error needs 2.
        adaptive: scale the noise of each parameter by T.
        eta: added to |w| when adaptive.
        seed: of the noise.
        batch_size: examples at a time.
        batchnorm: "eval", or "train" for each batch's own statistics.

    Raises:
        ValueError: an argument is out of range.
    """
    non_negative("sigma", sigma)
    at_least("samples", samples, 1)
    generator = torch.Generator().manual_seed(seed)
    arguments = (model, loss, inputs, targets)
    with loss_surface(*arguments, batch_size=batch_size, batchnorm=batchnorm) as surface:
        center = surface.center
        spread = sigma * element_scale(center, adaptive, eta)
        start = surface.value(center)
        rises = []
        for _ in range(samples):
            noise = torch.randn(surface.dimension, generator=generator, dtype=torch.float64)
            step = spread * noise.to(center.device)
            rises.append((surface.value(center + step) + surface.value(center - step)) / 2 - start)
        cost = surface.gradient_evaluations
    values = torch.tensor(rises, dtype=torch.float64)
    return Measure(float(values.mean()), standard_error(values), cost)


def gaussian_sigma(model: nn.Module, rho: float) -> float:
    """Return σ = ρ/√d, with which Gaussian noise has root mean square length ρ.

    d is the number of parameters that require a gradient.

    Raises:
        ValueError: rho is negative or not finite, or no parameter requires a gradient.
    """
    dimension = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if dimension == 0:
        raise ValueError("model: no parameter requires a gradient; allowed: at least one")
    return non_negative("rho", rho) / math.sqrt(dimension)

"""First order: the length of the gradient, which is what SAM's own step would climb."""

from __future__ import annotations

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


def sam_sharpness(
    model: nn.Module,
    loss: Loss,
    inputs: Tensor,
    targets: Tensor,
    *,
    rho: float,
    m: int | None = None,
    adaptive: bool = False,
    eta: float = 0.0,
    batch_size: int | None = None,
    batchnorm: BatchNormMode = "eval",
) -> Measure:
    """Return the mean over groups B of ρ‖∇L_B(w)‖, or of ρ‖T∇L_B(w)‖ when adaptive.

    With m the size of the training batches it is the mean over an epoch's batches. Each term is
    the first-order estimate of max L_B(w + ε) − L_B(w) over ‖ε‖ ≤ ρ (‖T⁻¹ε‖ ≤ ρ, T = |w| + eta,
    when adaptive), in units of the loss: Foret et al. 2021, eq. 2; Kwon et al. 2021. It goes to
    zero with the gradient, however curved the loss is.

    Cost: 1 gradient evaluation.

    Args:
        model: see `flatbench.sharpness.loss_surface`.
        loss: maps (outputs, targets) to the mean loss.
        inputs: (n, ...).
        targets: (n, ...).
        rho: the radius.
        m: the size of B, consecutive examples; None: all of them. Smaller groups have longer
            gradients. A last, smaller group counts as one.
        adaptive: scale each parameter by T.
        eta: added to |w| when adaptive.
        batch_size: examples at a time within a group.
        batchnorm: "eval", or "train" for each batch's own statistics.

    Returns:
        The measure; its standard error is over the groups.

    Raises:
        ValueError: an argument is out of range.
    """
    non_negative("rho", rho)
    size = None if m is None else at_least("m", m, 1)
    arguments = (model, loss, inputs, targets)
    with loss_surface(*arguments, batch_size=batch_size, batchnorm=batchnorm) as surface:
        scale = element_scale(surface.center, adaptive, eta)
        lengths = [
            (scale * group.gradient(surface.center)[1]).norm() for group in surface.groups(size)
        ]
    values = rho * torch.stack(lengths)
    return Measure(float(values.mean()), standard_error(values), 1.0)

"""F-SAM: the perturbation climbs along what is new in a batch's gradient."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from ..choice import Implementation
from ..eager import Segment
from ..groups import Group
from ..half_steps import Adaptive, HalfSteps
from ..rule import Rule


class FriendlySAM(HalfSteps):
    r"""Friendly SAM: e(w) along the gradient less a moving average of the gradients before.

    ::

        d_t = g_t - sigma m_{t-1};   m_t = lmbda m_{t-1} + (1 - lmbda) g_t;   m_1 = d_1 = g_1
        e(w) = rho T^2 d / ||T d||;  the base steps at w with the gradient taken at w + e(w)

    Li et al., CVPR 2024 (arXiv:2403.12350), after the authors' code (nblt/F-SAM, ``FriendlySAM``),
    which takes the average before this step. With sigma = 1 the one after it gives the same
    direction. pytorch_optimizer 4.1's class of this name averages d in place of g, another rule.

    A parameter's average begins at its first gradient. If that very step is skipped, it begins
    at 0. A skipped step moves no average.

    Args:
        params: see `SAM`, for all that is not named here.
        base_optimizer: see `SAM`.
        rho: radius.
        sigma: how much of the average is taken away, at least 0. With 0 it is SAM.
        lmbda: what the average keeps of itself, from 0 to 1. The authors' class has 0.9, their
            command for ResNet-18 and CIFAR-100 0.6.
        adaptive: see `SAM`.
        eta: see `SAM`.
        implementation: see `SAM`.
        **base_kwargs: handed to the base.
    """

    rule = Rule(friendly=True, own="average", numbers=("sigma", "lmbda"))

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        rho: float = 0.05,
        sigma: float = 1.0,
        lmbda: float = 0.9,
        adaptive: Adaptive = False,
        eta: float = 0.0,
        implementation: Implementation = "auto",
        **base_kwargs: Any,
    ) -> None:
        options = {"rho": rho, "adaptive": adaptive, "eta": eta, "sigma": sigma, "lmbda": lmbda}
        super().__init__(params, base_optimizer, options, implementation, base_kwargs)

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        if not group["sigma"] >= 0:
            raise ValueError(f"sigma must be at least 0, got {group['sigma']!r}")
        if not 0 <= group["lmbda"] <= 1:
            raise ValueError(f"lmbda must lie between 0 and 1, got {group['lmbda']!r}")

    def _directions(self, segment: Segment) -> list[Tensor]:
        sigma = segment.group["sigma"]
        if sigma == 0:
            return segment.grads
        directions = []
        for p, g in zip(segment.weights, segment.grads, strict=True):
            own = self.own_state.get(p)
            directions.append(g if own is None else g.sub(own["average"], alpha=sigma))
        return directions

    def _ascended(self, segments: Sequence[Segment]) -> None:
        bad = self.found_inf != 0
        for segment in segments:
            lmbda = segment.group["lmbda"]
            for p, g in zip(segment.weights, segment.grads, strict=True):
                own = self.own_state.get(p)
                if own is None:
                    first = torch.where(bad, torch.zeros_like(p), g.to(p.dtype))
                    self.own_state[p] = {"average": first}
                else:
                    m = own["average"]
                    m.copy_(torch.where(bad, m, lmbda * m + (1 - lmbda) * g))

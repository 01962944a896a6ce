"""GSAM: SAM, and a step down the gap between the two losses."""

from typing import Any

import torch
from torch.optim.optimizer import Optimizer, ParamsT

from ..choice import Implementation
from ..eager import inner
from ..groups import Group, parameters
from ..half_steps import Adaptive, HalfSteps
from ..rule import GSAM as MIX_GSAM
from ..rule import Rule


class GSAM(HalfSteps):
    r"""Surrogate-gap guided SAM: the base also climbs, across SAM's gradient, the loss at w.

    ::

        g = dL/dw at w,  g_s = dL/dw at w + e(w)
        g_perp = g - (<g, g_s> / ||g_s||^2) g_s;   the base steps at w with g_s - alpha g_perp
        rho_t = rho_min + (rho - rho_min) (lr_t - lr_min) / (lr_max - lr_min)

    Zhuang et al., ICLR 2022 (arXiv:2203.08065), after the authors' PyTorch code
    (juntang-zhuang/GSAM). Both products run over all parameters as one vector. Where the learning
    rate leaves [lr_min, lr_max], in a warm-up for instance, rho_t stays at the nearer end, which in
    their code becomes negative.

    The gradients of the first pass are taken out of ``p.grad``, as if ``zero_grad`` were given.
    Where a parameter has a gradient in one pass only, the other one counts as 0; without a second
    one it is put back and not stepped.

    Args:
        params: see `SAM`, for all that is not named here.
        base_optimizer: see `SAM`.
        rho: radius at ``lr_max``.
        alpha: share of g_perp, at least 0. With 0, and no ``rho_min``, it is SAM.
        rho_min: radius at ``lr_min``; None leaves rho as it is.
        lr_max: learning rate at which the radius is ``rho``; None is that of the group when it is
            added.
        lr_min: learning rate at which the radius is ``rho_min``.
        adaptive: see `SAM`.
        eta: see `SAM`.
        implementation: see `SAM`.
        **base_kwargs: handed to the base.
    """

    keeps_first = True
    rule = Rule(mix=MIX_GSAM, numbers=("alpha",))

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        rho: float = 0.05,
        alpha: float = 0.4,
        rho_min: float | None = None,
        lr_max: float | None = None,
        lr_min: float = 0.0,
        adaptive: Adaptive = False,
        eta: float = 0.0,
        implementation: Implementation = "auto",
        **base_kwargs: Any,
    ) -> None:
        options: dict[str, Any] = {"rho": rho, "adaptive": adaptive, "eta": eta, "alpha": alpha}
        options |= {"rho_min": rho_min, "lr_max": lr_max, "lr_min": lr_min}
        super().__init__(params, base_optimizer, options, implementation, base_kwargs)

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        if group["lr_max"] is None and "lr" in group:
            group["lr_max"] = float(group["lr"])
        if not group["alpha"] >= 0:
            raise ValueError(f"alpha must be at least 0, got {group['alpha']!r}")
        if group["rho_min"] is None:
            return
        if not 0 <= group["rho_min"] <= group["rho"]:
            raise ValueError(f"rho_min must lie between 0 and rho, got {group['rho_min']!r}")
        if "lr" in group and not group["lr_min"] < group["lr_max"]:
            raise ValueError(f"lr_min must be below lr_max, got {group['lr_min']!r}")

    @staticmethod
    def _radius(group: Group) -> float:
        if group["rho_min"] is None:
            return float(group["rho"])
        height = (float(group["lr"]) - group["lr_min"]) / (group["lr_max"] - group["lr_min"])
        return float(
            group["rho_min"] + (group["rho"] - group["rho_min"]) * min(max(height, 0.0), 1.0)
        )

    def _mix(self) -> None:
        first, dtype = self._first, self.gradient_norm.dtype
        stepped = [(p, p.grad) for p in parameters(self.param_groups) if p.grad is not None]
        both = [(first[p], second) for p, second in stepped if p in first]
        seconds = [second for _, second in stepped]
        dot = inner([g for g, _ in both], [second for _, second in both], dtype)
        square = inner(seconds, seconds, dtype)
        share = torch.where(square > 0, dot / square, torch.zeros_like(square))
        for group in self.param_groups:
            alpha = group["alpha"]
            for p in group["params"]:
                if p.grad is None or alpha == 0:
                    continue
                # g_s - alpha (g - share g_s)
                p.grad.mul_((1 + alpha * share).to(p.grad.dtype))
                if p in first:
                    p.grad.sub_(first[p], alpha=alpha)

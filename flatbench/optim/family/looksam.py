"""LookSAM: what SAM adds to the gradient, kept for some steps."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from ..choice import Implementation
from ..eager import inner
from ..groups import Group, check_natural, parameters
from ..half_steps import Adaptive
from ..rule import ADD, KEEP, Rule
from .counting import Counting


class LookSAM(Counting):
    r"""LookSAM: a SAM step every k-th time, from the first one on; between, steps of one gradient.

    ::

        every k-th step:  the base steps with g_s;   g_v = g_s - (<g, g_s> / ||g||^2) g is kept
        between:          the base steps with g + alpha (||g|| / ||g_v||) g_v

    Liu et al., CVPR 2022 (arXiv:2203.02714). Norms and products run over all parameters as one
    vector, as the paper's formula reads and in Leminhbinh0209/LookSAM and MarlonBecker/MSAM;
    rollovd/LookSAM and pytorch_optimizer take them of each tensor by itself, another rule. There
    is no code of the authors'.

    A SAM step that is skipped keeps the g_v of before. Between, a g_v of zero adds nothing.

    Args:
        params: see `SAM`, for all that is not named here.
        base_optimizer: see `SAM`.
        rho: radius at the SAM steps.
        interval: k, at least 1. With 1 it is SAM.
        alpha: length of what is added between, in lengths of g, at least 0.
        adaptive: see `SAM`.
        eta: see `SAM`.
        implementation: see `SAM`.
        **base_kwargs: handed to the base.
    """

    keeps_first = True
    rule = Rule(mix=KEEP, single_mix=ADD, own="across", numbers=("alpha",))

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        rho: float = 0.1,
        interval: int = 5,
        alpha: float = 0.7,
        adaptive: Adaptive = False,
        eta: float = 0.0,
        implementation: Implementation = "auto",
        **base_kwargs: Any,
    ) -> None:
        options = {"rho": rho, "adaptive": adaptive, "eta": eta}
        options |= {"interval": interval, "alpha": alpha, "steps_begun": 0}
        super().__init__(params, base_optimizer, options, implementation, base_kwargs)

    @property
    def passes(self) -> int:
        """2 at the steps 0, k, 2 k, ..., 1 at the others."""
        return 2 if self.steps_begun % self.param_groups[0]["interval"] == 0 else 1

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        check_natural(group, "interval", 1)
        if not group["alpha"] >= 0:
            raise ValueError(f"alpha must be at least 0, got {group['alpha']!r}")

    def _mix(self) -> None:
        stepped = [p for p in parameters(self.param_groups) if p.grad is not None]
        if self.passes == 2:
            self._keep(stepped)
        else:
            self._add_kept(stepped)

    def _keep(self, stepped: list[Tensor]) -> None:
        first, dtype = self._first, self.gradient_norm.dtype
        gradients = list(first.values())
        both = [(first[p], p.grad) for p in stepped if p in first and p.grad is not None]
        square = inner(gradients, gradients, dtype)
        share = inner([g for g, _ in both], [s for _, s in both], dtype) / square
        share = torch.where(square > 0, share, torch.zeros_like(share))
        bad = self.found_inf != 0
        for p in dict.fromkeys([*first, *stepped]):
            kept = torch.zeros_like(p) if p.grad is None else p.grad.to(p.dtype, copy=True)
            if p in first:
                kept.sub_(share.to(p.dtype) * first[p])
            own = self.own_state.setdefault(p, {"across": torch.zeros_like(p)})
            own["across"].copy_(torch.where(bad, own["across"], kept))

    def _add_kept(self, stepped: list[Tensor]) -> None:
        dtype = self.gradient_norm.dtype
        gradients = [p.grad for p in stepped if p.grad is not None]
        across = [own["across"] for own in self.own_state.values()]
        length = inner(gradients, gradients, dtype).sqrt()
        kept = inner(across, across, dtype).sqrt()
        ratio = torch.where(kept > 0, length / kept, torch.zeros_like(kept))
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p in self.own_state:
                    scale = (group["alpha"] * ratio).to(p.grad.dtype)
                    p.grad.add_(scale * self.own_state[p]["across"])

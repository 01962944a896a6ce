"""Momentum-SAM: the perturbation goes along the base's momentum, which costs no gradient."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from .. import eager
from ..choice import Implementation
from ..groups import Group
from ..half_steps import HalfSteps
from ..layout import saved_copy
from ..rule import Rule

BUFFERS = ("momentum_buffer", "exp_avg")


class MomentumSAM(HalfSteps):
    r"""MSAM: gradients are taken at w - rho v / ||v||, with v the base's momentum: one a step.

    ::

        g_t = dL/dw at w_t - rho v_{t-1} / ||v_{t-1}||
        the base steps at w_t with g_t, which gives w_{t+1} and v_t

    Becker et al. 2024 (arXiv:2401.12033), after the authors' code (MarlonBecker/MSAM). The sign is
    minus: it looks ahead along the coming step. v is SGD's buffer or Adam's first moment, after
    the step; one norm runs over all. Other than in their code, weight decay is that of w_t and not
    of the perturbed weights, and w is put back from a copy, bit for bit, whatever rho has become.

    Between steps the weights are perturbed. ``eval()`` puts w back, for evaluation and before
    ``state_dict``; ``train()`` goes on. After ``load_state_dict`` call ``train()``.

    Args:
        params: see `SAM`, for all that is not named here.
        base_optimizer: a class whose state has a "momentum_buffer" or an "exp_avg".
        rho: radius, about ten times as large as SAM's; the authors' default.
        implementation: see `SAM`.
        **base_kwargs: handed to the base.

    Raises:
        ValueError: the base's momentum is 0.
        RuntimeError: a step after ``eval()`` without ``train()``, or a base that has stepped and
            keeps no momentum.
    """

    way_back = "call eval() first"
    rule = Rule(looks_ahead=True)

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        rho: float = 0.3,
        implementation: Implementation = "auto",
        **base_kwargs: Any,
    ) -> None:
        self._is_training = True
        options = {"rho": rho, "adaptive": False, "eta": 0.0}
        super().__init__(params, base_optimizer, options, implementation, base_kwargs)

    @property
    def passes(self) -> int:
        """1: the gradient at the weights as they are, which are perturbed."""
        return 1

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        if group.get("momentum", 1.0) == 0:
            raise ValueError(f"momentum must be above 0, got {group['momentum']!r}")

    def train(self) -> None:
        """Go to where the next gradient is to be taken."""
        if not self._is_training:
            self._is_training = True
            super().train()
            self._look_ahead()

    def eval(self) -> None:
        """Put w back."""
        self.restore()
        self._is_training = False
        super().eval()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; then call ``train()``."""
        super().load_state_dict(state_dict)
        self._is_training = False

    def _single_step(self) -> None:
        if not self._is_training:
            raise RuntimeError("MomentumSAM: a step in eval mode: call train() first")
        fused = self._fused_step()
        if fused is None:
            self.restore()
            super()._single_step()
            self._look_ahead()
            return
        from ..fused import Refused

        with self._on_device():
            try:
                fused.single(self._perturbed or ())
            except Refused:
                self._forget_fused_step()
                self._single_step()
            else:
                self._perturbed = fused.look_ahead()

    @torch.no_grad()
    def _look_ahead(self) -> None:
        self._follow_device()
        segments = []
        for group in self.param_groups:
            moved = [p for p in group["params"] if self._momentum(p) is not None]
            momenta = [m for p in moved if (m := self._momentum(p)) is not None]
            saved = [saved_copy(self._saved, p) for p in moved]
            if moved:
                segments.append(
                    eager.Segment(moved, momenta, saved, -group["rho"], False, 0.0, group)
                )
        with self._on_device():
            norm = torch.zeros_like(self.gradient_norm)
            eager.gradient_norm(segments, out=norm)
            eager.perturb(segments, norm)
        self._perturbed = [p for segment in segments for p in segment.weights]

    def _momentum(self, p: Tensor) -> Tensor | None:
        state = self.state.get(p)
        if not state:
            return None
        for name in BUFFERS:
            momentum = state.get(name)
            if isinstance(momentum, Tensor):
                return momentum
        base = type(self.base_optimizer).__name__
        raise RuntimeError(f"MomentumSAM needs a base that keeps its momentum, got {base}")

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_is_training": False}

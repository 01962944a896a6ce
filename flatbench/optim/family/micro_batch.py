"""m-SAM: a perturbation for each m examples of a batch."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from ..choice import Implementation
from ..groups import parameters
from ..half_steps import Adaptive, HalfSteps
from ..own_state import OwnState
from ..rule import Rule

if TYPE_CHECKING:
    from ..fused import FusedStep


class MicroBatchSAM(HalfSteps):
    r"""m-SAM: each part of a batch climbs by its own gradient; the base steps with the average.

    ::

        e_j = rho T^2 g_j / ||T g_j||,  g_j the gradient of part j at w
        the base steps at w with the mean over j of the gradients of part j at w + e_j

    Foret et al. 2021 (arXiv:2010.01412), section 4.1; Andriushchenko & Flammarion 2022
    (arXiv:2206.06232). With one part it is SAM; with a part a worker it is what data-parallel
    training does where the first gradients are not averaged.

    ::

        for x, y in parts:
            loss(model(x), y).backward()
            optimizer.first_step(zero_grad=True)
            loss(model(x), y).backward()
            optimizer.end_part(len(x))
        optimizer.second_step(zero_grad=True)

    ``gradient_norm`` is the last part's. If the gradients of one part are not finite, the whole
    step is skipped.

    Args:
        params: see `SAM`, for all that is not named here.
        base_optimizer: see `SAM`.
        rho: radius.
        adaptive: see `SAM`.
        eta: see `SAM`.
        implementation: see `SAM`.
        **base_kwargs: handed to the base.
    """

    rule = Rule(own="mean")

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        rho: float = 0.05,
        adaptive: Adaptive = False,
        eta: float = 0.0,
        implementation: Implementation = "auto",
        **base_kwargs: Any,
    ) -> None:
        self._means: dict[Tensor, Tensor] = {}
        self._weight = 0.0  # of the parts that have ended
        self._spoilt: Tensor | None = None  # found_inf of them
        self._steps_from_parts = False
        self._kept_by_fused: OwnState = {}
        options = {"rho": rho, "adaptive": adaptive, "eta": eta}
        super().__init__(params, base_optimizer, options, implementation, base_kwargs)

    def end_part(self, weight: float = 1.0) -> None:
        """Put w back, and take the gradients in ``p.grad`` into the average and out of ``p.grad``.

        Args:
            weight: what the part counts in the average, such as its number of examples.

        Raises:
            RuntimeError: no first_step came before.
            ValueError: the weight is not above 0.
        """
        if self._perturbed is None:
            raise RuntimeError("end_part without first_step: nothing is perturbed")
        if not weight > 0:
            raise ValueError(f"weight must be above 0, got {weight!r}")
        self._weight += weight
        share = weight / self._weight  # 1 for the first part, which stays as it is
        fused = self._fused_step()
        if fused is not None:
            self._end_part_at_once(fused, share)
            return
        self._return()
        for p in parameters(self.param_groups):
            if p.grad is not None:
                if p in self._means:
                    self._means[p].lerp_(p.grad, share)
                elif share == 1:
                    self._means[p] = p.grad
                else:
                    self._means[p] = share * p.grad
                p.grad = None
            elif p in self._means:
                self._means[p].mul_(1 - share)
        bad = self.found_inf.clone()
        self._spoilt = bad if self._spoilt is None else torch.maximum(self._spoilt, bad)

    def _end_part_at_once(self, fused: "FusedStep", share: float) -> None:
        if self._spoilt is None:
            self._spoilt = torch.zeros_like(self.found_inf)
            self._kept_by_fused.clear()
        with self._on_device():
            fused.end_part(share, self._spoilt)
        self._perturbed = None
        for p in parameters(self.param_groups):
            p.grad = None
        self._means = {p: own["mean"] for p, own in self._kept_by_fused.items()}

    def second_step(self, zero_grad: bool = False) -> None:
        """Let the base step with the average of the parts; without any it is SAM's second_step.

        Raises:
            RuntimeError: no first_step came before, or ``end_part`` did not come after the last.
        """
        if self._weight and self._perturbed is not None:
            raise RuntimeError("second_step before the last part's end_part")
        if self._weight:
            assert self._spoilt is not None
            self.found_inf.copy_(self._spoilt)
            for p in parameters(self.param_groups):
                p.grad = self._means.get(p)
            self._perturbed = []
            self._steps_from_parts = True
            self._forget_parts()
        super().second_step(zero_grad)

    def _descend(self) -> None:
        fused = self._fused_step()
        if fused is None or not self._steps_from_parts:
            super()._descend()
        else:
            with self._on_device():
                fused.step_from_parts()
            self._perturbed = None
        self._steps_from_parts = False

    def _kept(self) -> OwnState:
        return self._kept_by_fused  # it is no state between steps

    def step_parts(
        self, closures: Sequence[Callable[[], Any]], weights: Sequence[float] | None = None
    ) -> list[Any]:
        """Take a whole step over a batch's parts.

        Args:
            closures: one a part; it does a forward and backward pass over it and returns the
                loss. Each is called twice, at w and at w + e, with gradients enabled and cleared.
                If one raises, w is restored and the step abandoned.
            weights: what each part counts, such as its number of examples; default: all the same.

        Returns:
            What each closure returned at w.
        """
        losses = []
        with ExitStack() as on_failure:
            on_failure.callback(self.restore)
            for closure, weight in zip(closures, weights or [1.0] * len(closures), strict=True):
                self.zero_grad()
                with torch.enable_grad():
                    losses.append(closure())
                self.first_step(zero_grad=True)
                with torch.enable_grad():
                    closure()
                self.end_part(weight)
            on_failure.pop_all()
        self.second_step()
        return losses

    def restore(self) -> None:
        """Put w back without a step, and forget the parts that have ended."""
        self._return()
        self._forget_parts()

    def _return(self) -> None:
        super().restore()

    def _forget_parts(self) -> None:
        self._means, self._weight, self._spoilt = {}, 0.0, None

    def _refuse_while_perturbed(self, what: str) -> None:
        super()._refuse_while_perturbed(what)
        if self._weight:
            raise RuntimeError(f"{what} between a batch's parts: call second_step or restore first")

    def __getstate__(self) -> dict[str, Any]:
        own = {"_means": {}, "_weight": 0.0, "_spoilt": None}
        own |= {"_steps_from_parts": False, "_kept_by_fused": {}}
        return {**super().__getstate__(), **own}

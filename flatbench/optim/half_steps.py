"""The half-step machine of the SAM family: what its methods share, and where they differ."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from . import choice, eager, hooks, ranks
from .around import AroundBase
from .base import step_unless_bad
from .capture import refuse_capture
from .choice import Implementation, check_implementation
from .eager import Segment
from .groups import Group, check_options, check_parameters, parameters
from .own_state import OwnState
from .rule import Rule

if TYPE_CHECKING:
    from .fused import FusedStep

Adaptive = bool | Literal["weights"]


class HalfSteps(AroundBase):
    """Two half-steps around a base optimizer: away from w, then from w by the gradient taken there.

    `SAM` says what the arguments and attributes are, for the whole family. A method of the family
    is a subclass that supplies what differs:

    - `passes`: how many gradients the coming step takes;
    - `_only`: the parameters that are perturbed, and count in the norm;
    - `_radius`: rho of a step;
    - `_directions`: what is climbed along instead of the gradient;
    - `_ascended`: what is learnt from the first gradients;
    - `_mix`: what the base steps with instead of the last gradients.

    """

    gradient_norm: Tensor
    found_inf: Tensor
    skipped_steps: Tensor
    process_group: "torch.distributed.ProcessGroup | None" = None
    _fused: "FusedStep | None"
    _is_chosen: bool

    # What the fused step must know of the method.
    rule: ClassVar[Rule] = Rule()
    # Whether `_mix` needs the first gradients: then first_step takes them out of ``p.grad``.
    keeps_first: ClassVar[bool] = False
    # Whether a CUDA graph may hold a step.
    can_be_captured: ClassVar[bool] = False
    # What brings w back, in the words of an error.
    way_back: ClassVar[str] = "call second_step (or restore) first"

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: type[Optimizer],
        options: dict[str, Any],
        implementation: Implementation,
        base_kwargs: dict[str, Any],
    ) -> None:
        """Make the base on the same groups; they have the method's ``options``, rho among them."""
        check_implementation(implementation)
        super().__init__(params, base_optimizer, options, base_kwargs)
        self._implementation = implementation
        self._only: set[Tensor] | None = getattr(self, "_only", None)
        self._saved: dict[Tensor, Tensor] = {}
        self._first: dict[Tensor, Tensor] = {}
        self._perturbed: list[Tensor] | None = None
        self._allocate_outcome()
        self._attach()
        if implementation == "fused":
            self._fused_step()

    # --- what a method supplies

    @property
    def passes(self) -> int:
        """How many gradients the coming step takes, 1 (at the weights as they are) or 2."""
        return 2

    def _check_group(self, group: Group) -> None:
        """Raise ValueError for an invalid option."""
        check_options(group)

    @staticmethod
    def _radius(group: Group) -> float:
        """Return rho of the coming step."""
        return float(group["rho"])

    def _directions(self, segment: Segment) -> list[Tensor]:
        """Return what is climbed along: one tensor for each gradient of a segment."""
        return segment.grads

    def _ascended(self, segments: Sequence[Segment]) -> None:
        """Learn from the first gradients, when w is perturbed and ``found_inf`` is there."""

    def _mix(self) -> None:
        """Change ``p.grad`` into what the base is to step with, at w.

        ``found_inf`` says already whether the step is going to be skipped.
        """

    # --- the two half-steps

    @property
    def implementation(self) -> str:
        """The implementation in use, "eager" or "fused"."""
        return "eager" if self._fused_step() is None else "fused"

    def first_step(self, zero_grad: bool = False) -> None:
        """Perturb w to w + e(w) with the gradients in ``p.grad``.

        Parameters without a gradient stay where they are and do not count in the norm. With a
        norm of zero nothing is perturbed; with one that is not finite the whole step is skipped.
        Its squares are of float32 at least, and not scaled: a float32 gradient with no element
        above 1e-23 has norm 0, and one with an element above 2e19 an infinite one.

        Raises:
            RuntimeError: called twice without a second_step between, a sparse gradient, or the
                coming step takes one gradient, or a method other than SAM in the capture of a
                CUDA graph.
        """
        if self._perturbed is not None:
            raise RuntimeError("first_step called twice: call second_step (or restore) before it")
        if self.passes == 1:
            raise RuntimeError("this step takes one gradient (see passes): call step() instead")
        self._follow_device()
        self._check_capture()
        with self._on_device(), torch.no_grad():
            self._perturbed = self._ascend()
        if zero_grad:
            self.zero_grad()

    def second_step(self, zero_grad: bool = False) -> None:
        """Put w back and let the base optimizer step with the gradients now in ``p.grad``.

        Raises:
            RuntimeError: no first_step came before.
        """
        if self._perturbed is None:
            raise RuntimeError("second_step without first_step: nothing is perturbed")
        with hooks.around_step(self, of_all=self._fused_step() is not None):
            self._descend()
        if zero_grad:
            self.zero_grad()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a whole step; the gradients of the first pass must be in ``p.grad``.

        Args:
            closure: does the second forward and backward pass, returns the loss; it is called
                once, at w + e(w), with gradients enabled and zeroed. If it raises, w is restored.
                A step of one pass does without, and does not call it.

        Returns:
            What the closure returned, None if it was not called.
        """
        if self.passes == 1:
            self._follow_device()
            self._check_capture()
            with hooks.around_step(self, of_all=self._fused_step() is not None):
                self._single_step()
            return None
        if closure is None:
            raise TypeError(
                f"{type(self).__name__}.step needs a closure for the second forward-backward pass"
            )
        self.first_step(zero_grad=True)
        with ExitStack() as on_failure:
            on_failure.callback(self.restore)
            with torch.enable_grad():
                loss = closure()
            on_failure.pop_all()
        self.second_step()
        return loss

    step.hooked = True  # type: ignore[attr-defined]  # tells torch that the hooks are called here

    def train(self) -> None:
        """Pass it on to a base that has it, as Schedule-Free's: call it before training steps."""
        self._refuse_while_perturbed("train")
        if hasattr(self.base_optimizer, "train"):
            self.base_optimizer.train()

    def eval(self) -> None:
        """Pass it on to a base that has it: call it before evaluating, and before checkpoints."""
        self._refuse_while_perturbed("eval")
        if hasattr(self.base_optimizer, "eval"):
            self.base_optimizer.eval()

    def restore(self) -> None:
        """Put w back without a step. Between the half-steps this abandons the step."""
        if self._perturbed:
            with self._on_device(), torch.no_grad():
                eager.restore(self._perturbed, [self._saved[p] for p in self._perturbed])
        self._perturbed = None

    def sync_hyperparameters(self) -> None:
        """Write what a replayed graph reads on the device: lr, rho, ... and gradient addresses.

        Call it once after the capture of a CUDA graph (replays before that skip their steps, and
        ``skipped_steps`` counts them), and whenever a number in ``param_groups`` has changed.
        Steps outside a graph write all this themselves.
        """
        fused = self._fused_step()
        if fused is not None:
            with self._on_device():
                fused.sync()

    def _ascend(self) -> list[Tensor]:
        """Perturb, and return the perturbed parameters."""
        fused = self._fused_step()
        if fused is None:
            perturbed = self._ascend_eagerly()
        else:
            from .fused import Refused

            try:
                perturbed = fused.ascend()
            except Refused:  # parameters were cast, or have another layout: choose anew
                self._forget_fused_step()
                return self._ascend()
            self._agree()
        if self.keeps_first:
            self._first = {p: p.grad for p in perturbed if p.grad is not None}
            for p in perturbed:
                p.grad = None
        return perturbed

    def _ascend_eagerly(self) -> list[Tensor]:
        segments = eager.segments(self.param_groups, self._saved, self._only)
        climbed = [
            s._replace(grads=self._directions(s), rho=self._radius(s.group)) for s in segments
        ]
        eager.gradient_norm(climbed, out=self.gradient_norm)
        self.found_inf.copy_(~self.gradient_norm.isfinite())
        self._agree()
        eager.perturb(climbed, self.gradient_norm)
        self._ascended(segments)
        return [p for segment in segments for p in segment.weights]

    def _agree(self) -> None:
        """Let all ranks skip the step if one of them must."""
        if self.process_group is not None:
            ranks.agree(self.found_inf, self.process_group, self.keeps_first)

    def _descend(self) -> None:
        """Put w back, and step."""
        fused = self._fused_step()
        with self._on_device():
            if fused is not None:
                fused.descend()
                self._perturbed, self._first = None, {}
            else:
                self.restore()
                self._base_step()

    def _single_step(self) -> None:
        """Step with the gradients that are there."""
        fused = self._fused_step()
        with self._on_device():
            if fused is None:
                self.found_inf.zero_()
                self._base_step()
                return
            from .fused import Refused

            try:
                fused.single()
            except Refused:
                self._forget_fused_step()
                self._single_step()

    def _base_step(self) -> None:
        grads = [p.grad for p in parameters(self.param_groups) if p.grad is not None]
        if any(g.is_sparse for g in grads):
            raise RuntimeError("SAM does not take sparse gradients")
        if grads:
            finite = eager.are_finite(grads, self.gradient_norm.dtype)
            torch.maximum(self.found_inf, ~finite, out=self.found_inf)
        with torch.no_grad():
            self._mix()
        self._first = {}
        step_unless_bad(self.base_optimizer, self.found_inf)
        with torch.no_grad():
            self.skipped_steps.add_(self.found_inf.to(torch.int64))

    # --- between the half-steps, and between processes

    def __getstate__(self) -> dict[str, Any]:
        self._refuse_while_perturbed("pickling")
        return {
            **super().__getstate__(),
            "skipped_steps": self.skipped_steps,
            "_only": self._only,
            "_implementation": self._implementation,
            "_perturbed": None,
            "_saved": {},
            "_first": {},
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "gradient_norm" not in self.__dict__:  # a copy, and not a load
            self._allocate_outcome()

    def _refuse_while_perturbed(self, what: str) -> None:
        if self._perturbed is not None:
            raise RuntimeError(
                f"{what} between first_step and second_step: the weights are perturbed now; "
                f"{self.way_back}"
            )

    # --- which implementation, on which device

    def _on_device(self) -> AbstractContextManager[Any]:
        """Make the parameters' device the current one: streams and launches go by that."""
        device = self.gradient_norm.device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def _fused_step(self) -> "FusedStep | None":
        """Return the fused step if it is wanted and possible, else None: the step is eager."""
        if not self._is_chosen:
            self._fused = choice.fused_step(
                self._implementation,
                self.base_optimizer,
                (self.gradient_norm, self.found_inf, self.skipped_steps),
                self._saved,
                (self.rule, self._kept(), self._only, self._radius),
            )
            self._is_chosen = True
        return self._fused

    def _kept(self) -> OwnState:
        """Return where the fused step keeps what is the method's own."""
        return self.own_state

    def _forget_fused_step(self) -> None:
        self._fused = None
        self._is_chosen = False

    def _check_capture(self) -> None:
        if not self.can_be_captured:
            refuse_capture(type(self).__name__, self.gradient_norm)

    def _follow_device(self) -> None:
        """Follow a model that was moved or cast, which torch's optimizers allow too."""
        first, norm = self.param_groups[0]["params"][0], self.gradient_norm
        if (first.device, eager.norm_dtype(first)) != (norm.device, norm.dtype):
            check_parameters(self.param_groups)
            self._allocate_outcome()
            self._forget_fused_step()

    def _allocate_outcome(self) -> None:
        first = self.param_groups[0]["params"][0]
        self.gradient_norm = torch.zeros((), dtype=eager.norm_dtype(first), device=first.device)
        self.found_inf = torch.zeros((), dtype=torch.float32, device=first.device)
        skipped = getattr(self, "skipped_steps", torch.zeros((), dtype=torch.int64))
        self.skipped_steps = skipped.to(first.device)

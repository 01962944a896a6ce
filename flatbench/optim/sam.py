"""Sharpness-aware minimization (SAM) and its adaptive form (ASAM) around a torch optimizer."""

import functools
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT, StateDict

from . import eager
from .availability import warn_of_eager, why_not_fused
from .base import check_base, copied_in_vain, prefer_fused, prepare_fused_base
from .groups import check_base_options, check_options, check_parameters, parameters
from .layout import flattened, saved_copy, strided_like

if TYPE_CHECKING:
    from .fused import FusedStep

Adaptive = bool | Literal["weights"]
Implementation = Literal["auto", "eager", "fused"]


class SAM(Optimizer):
    r"""Two half-steps around a base optimizer: climb to w + e(w), then step from w.

    ::

        first_step   e(w) = rho T^2 g / ||T g||,  g = dL/dw at w;   w -> w + e(w)
        second_step  w + e(w) -> w, bit for bit;  the base optimizer steps at w with the
                     gradient taken at w + e(w)

    The norm runs over all parameters of all groups as one vector; each group scales it by its own
    rho. The diagonal T says whose SAM it is:

    ======================  ==========================================================
    ``adaptive=False``      T = 1: SAM, Foret et al. 2021 (arXiv:2010.01412), eq. 2
    ``adaptive=True``       T = abs(w) + eta on every parameter: ASAM as Kwon et al. 2021
                            (arXiv:2102.11600), algorithm 1, write it; with eta = 0 it is
                            what most PyTorch code runs
    ``adaptive="weights"``  T = abs(w) + eta on parameters whose name contains "weight" and
                            T = 1 on the others: ASAM as its authors' published code runs
                            it. Needs names: pass ``model.named_parameters()``
    ======================  ==========================================================

    Args:
        params: tensors, (name, tensor) pairs or dicts of groups, as for any torch optimizer. A
            group may have its own ``rho``, ``adaptive``, ``eta``, and options of the base.
        base_optimizer: an optimizer class, such as ``torch.optim.SGD``, whose step needs no
            closure and which has no option called rho, adaptive, eta or implementation.
        rho: radius of the neighbourhood, at least 0. With 0 it is the base optimizer.
        adaptive: which T, see above.
        eta: added to abs(w) in an adaptive T, at least 0; without effect elsewhere.
        implementation: "eager" is ``torch._foreach_*`` around the base's own step, on any device.
            "fused" is three Triton launches a step, on CUDA, for float32 parameters with SGD,
            Adam (not amsgrad) and AdamW. "auto" is fused where that is possible, else eager; if a
            CUDA device can't launch Triton kernels, one warning says why.
        **base_kwargs: handed to the base (``lr``, ``momentum``, ...). Unless they hold ``fused``
            or ``foreach``, torch's own fused step is taken where the base, a class of torch's,
            has one.

    Neither path waits for the device, except eager on a GPU around a base without torch's fused
    step, which reads ``found_inf`` once a step. A fused step can be captured in a CUDA graph after
    one step outside it, if ``sync_hyperparameters`` is called once after the capture, before the
    first replay; a replay sees what that call brought to the device, and a float32 tensor lr on the
    device as it is. The fused step bypasses ``base_optimizer.step`` and so its hooks.

    Attributes:
        base_optimizer: the base; shares ``param_groups`` and ``state`` with this optimizer, so lr
            schedulers and ``state_dict`` see one set of both.
        gradient_norm: 0-d tensor on the device, ||T g|| of the last first_step. The same tensor
            at every step: accumulate it, don't keep it.
        found_inf: 0-d float tensor, 1 if that norm, or an element of the gradients in second_step,
            was not finite. In the first case first_step perturbs nothing; in both second_step
            leaves weights and state as they were before the step. To skip a step whose second
            gradient you know to be bad, fill it with 1 before second_step.
        skipped_steps: 0-d int64 tensor, how many steps were skipped for that.

    Example::

        optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9)
        loss(model(x), y).backward()
        optimizer.first_step(zero_grad=True)
        with frozen_batchnorm(model):
            loss(model(x), y).backward()
        optimizer.second_step(zero_grad=True)

    Raises:
        TypeError, ValueError: an invalid argument, or parameters that cannot be perturbed
            together (several devices, complex, the same tensor twice).
        RuntimeError: half-steps out of order, a sparse gradient, or ``state_dict``,
            ``load_state_dict``, ``add_param_group``, ``train``, ``eval`` or pickling between the
            half-steps, when the weights are not w.
    """

    base_optimizer: Optimizer
    gradient_norm: Tensor
    found_inf: Tensor
    skipped_steps: Tensor
    _fused: "FusedStep | None"
    _is_chosen: bool

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
        check_base(base_optimizer)
        if implementation not in ("auto", "eager", "fused"):
            raise ValueError(
                f"implementation must be 'auto', 'eager' or 'fused', got {implementation!r}"
            )
        super().__init__(params, {"rho": rho, "adaptive": adaptive, "eta": eta})
        base_kwargs = prefer_fused(base_optimizer, self.param_groups, base_kwargs)
        self.base_optimizer = base_optimizer(self.param_groups, **base_kwargs)
        self.defaults.update(self.base_optimizer.defaults)

        self._implementation = implementation
        self._saved: dict[Tensor, Tensor] = {}
        self._perturbed: list[Tensor] | None = None
        self._allocate_outcome()
        self._attach()
        if implementation == "fused":
            self._fused_step()

    @property
    def implementation(self) -> str:
        """The implementation in use: "eager" or "fused"."""
        return "eager" if self._fused_step() is None else "fused"

    def first_step(self, zero_grad: bool = False) -> None:
        """Perturb w to w + e(w) with the gradients in ``p.grad``.

        Parameters without a gradient stay where they are and do not count in the norm. With a
        norm of zero nothing is perturbed; with one that is not finite the whole step is skipped.
        Its squares are of float32 at least, and not scaled: a float32 gradient with no element
        above 1e-23 has norm 0, and one with an element above 2e19 an infinite one.

        Raises:
            RuntimeError: called twice without a second_step between, or a sparse gradient.
        """
        if self._perturbed is not None:
            raise RuntimeError("first_step called twice: call second_step (or restore) before it")
        self._follow_device()
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
        fused = self._fused_step()
        with self._on_device():
            if fused is not None:
                fused.descend()
                self._perturbed = None
            else:
                self.restore()
                self._base_step()
        self._opt_called = True  # schedulers ask whether a step came before theirs
        if zero_grad:
            self.zero_grad()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take both half-steps; the gradients of the first pass must be in ``p.grad``.

        Args:
            closure: does the second forward and backward pass, returns the loss; it is called
                once, at w + e(w), with gradients enabled and zeroed. If it raises, w is restored.

        Returns:
            What the closure returned.
        """
        if closure is None:
            raise TypeError("SAM.step needs a closure which does the second forward-backward pass")
        self.first_step(zero_grad=True)
        with ExitStack() as on_failure:
            on_failure.callback(self.restore)
            with torch.enable_grad():
                loss = closure()
            on_failure.pop_all()
        self.second_step()
        return loss

    def train(self) -> None:
        """Pass it on to a base that has it, as Schedule-Free's: call it before training steps."""
        self._refuse_between_half_steps("train")
        if hasattr(self.base_optimizer, "train"):
            self.base_optimizer.train()

    def eval(self) -> None:
        """Pass it on to a base that has it: call it before evaluating, and before checkpoints."""
        self._refuse_between_half_steps("eval")
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

        ``first_step`` writes lr, rho, ... itself. With a CUDA graph of fused steps, call this once
        after the capture, which tells the graph where its gradients lie (replays before that skip
        their steps, and ``skipped_steps`` counts them), and whenever a scheduler or a script has
        changed a number in ``param_groups``.
        """
        fused = self._fused_step()
        if fused is not None:
            with self._on_device():
                fused.sync()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in torch.optim.Optimizer; it may set rho, adaptive and eta."""
        if "_perturbed" in self.__dict__:
            self._refuse_between_half_steps("add_param_group")
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_options(group)
            check_parameters(self.param_groups)
        except ValueError:
            self.param_groups.pop()
            raise
        self._forget_fused_step()

    def state_dict(self) -> StateDict:
        """Return the base optimizer's state and all groups' options, in torch's own format."""
        self._refuse_between_half_steps("state_dict")
        return super().state_dict()

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load a ``state_dict`` of SAM or of a plain base optimizer."""
        self._refuse_between_half_steps("load_state_dict")
        super().load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        self._refuse_between_half_steps("pickling")
        return {
            **super().__getstate__(),
            "base_optimizer": self.base_optimizer,
            "skipped_steps": self.skipped_steps,
            "_implementation": self._implementation,
            "_perturbed": None,
            "_saved": {},
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Called by load_state_dict with new groups and state, and by pickle with everything.
        super().__setstate__(state)
        self.base_optimizer.__setstate__({"state": self.state, "param_groups": self.param_groups})
        if "gradient_norm" in self.__dict__:
            self._follow_base()
        else:
            self._allocate_outcome()
            self._attach()

    def _attach(self) -> None:
        # The hook holds self weakly: a cycle would keep the state until garbage collection.
        follow = weakref.WeakMethod(self._follow_base)

        def tell(_: Optimizer) -> None:
            method = follow()
            if method is not None:
                method()

        self.base_optimizer.register_load_state_dict_post_hook(tell)
        self._follow_base()

    def _follow_base(self) -> None:
        """Share the base's groups and state, which a load replaces."""
        self.param_groups = self.base_optimizer.param_groups
        self.state = self.base_optimizer.state
        for group in self.param_groups:
            for option in ("rho", "adaptive", "eta"):
                group.setdefault(option, self.defaults[option])
            check_options(group)
            check_base_options(group)
            for p in group["params"]:
                # State may come from a model in another memory format.
                for name, t in self.state.get(p, {}).items():
                    if isinstance(t, Tensor) and t.shape == p.shape:
                        self.state[p][name] = strided_like(p, t, t.dtype)
        self._forget_fused_step()

    def _ascend(self) -> list[Tensor]:
        """Perturb, and return the perturbed parameters."""
        fused = self._fused_step()
        if fused is not None:
            from .fused import Refused

            try:
                return fused.ascend()
            except Refused:  # parameters were cast, or have another layout: choose anew
                self._forget_fused_step()
                return self._ascend()
        segments = eager.segments(self.param_groups, self._saved)
        eager.gradient_norm(segments, out=self.gradient_norm)
        self.found_inf.copy_(~self.gradient_norm.isfinite())
        eager.perturb(segments, self.gradient_norm)
        return [p for segment in segments for p in segment.weights]

    def _base_step(self) -> None:
        base = self.base_optimizer
        grads = [p.grad for p in parameters(self.param_groups) if p.grad is not None]
        if any(g.is_sparse for g in grads):
            raise RuntimeError("SAM does not take sparse gradients")
        if grads:
            finite = eager.are_finite(grads, self.gradient_norm.dtype)
            torch.maximum(self.found_inf, ~finite, out=self.found_inf)
        prepare_fused_base(base)
        if self.found_inf.is_cuda and getattr(base, "_step_supports_amp_scaling", False):
            # torch's fused steps read this on the device. Without them the host must read it.
            base.found_inf = self.found_inf  # type: ignore[attr-defined]
            base.step()
            del base.found_inf  # type: ignore[attr-defined]
        elif not self.found_inf:
            with torch.no_grad(), flattened(copied_in_vain(base)):
                base.step()
        with torch.no_grad():
            self.skipped_steps.add_(self.found_inf.to(torch.int64))

    def _on_device(self) -> AbstractContextManager[Any]:
        """Make the parameters' device the current one: streams and launches go by that."""
        device = self.gradient_norm.device
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def _fused_step(self) -> "FusedStep | None":
        """Return the fused step if it is wanted and possible, else None: the step is eager."""
        if not self._is_chosen:
            self._fused = self._make_fused_step()
            self._is_chosen = True
        return self._fused

    def _make_fused_step(self) -> "FusedStep | None":
        wanted = self._implementation == "fused"
        device = self.gradient_norm.device
        if not wanted and (self._implementation == "eager" or device.type != "cuda"):
            return None
        reason = why_not_fused(device)
        if reason is None:
            from . import fused

            reason = fused.refusal(type(self.base_optimizer), self.param_groups)
            if reason is None:
                outcome = fused.Outcome(self.gradient_norm, self.found_inf, self.skipped_steps)
                keep = functools.partial(saved_copy, self._saved)
                return fused.FusedStep(self.base_optimizer, keep, outcome)
        elif not wanted:
            warn_of_eager(str(device), reason)
        if wanted:
            raise ValueError(f"implementation='fused' is not possible: {reason}")
        return None

    def _forget_fused_step(self) -> None:
        self._fused = None
        self._is_chosen = False

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

    def _refuse_between_half_steps(self, what: str) -> None:
        if self._perturbed is not None:
            raise RuntimeError(
                f"{what} between first_step and second_step: the weights are perturbed now; "
                "call second_step (or restore) first"
            )

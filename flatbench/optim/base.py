"""What SAM asks of a base optimizer; torch's own fused steps, and what they need."""

import inspect
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from .groups import Group, parameters
from .layout import flattened, is_dense, strided_like

SAMS_OWN = ("rho", "adaptive", "eta", "implementation")


def check_base(base: Any) -> None:
    """Raise for what cannot be a base of SAM.

    Raises:
        TypeError: it is no class of optimizers.
        ValueError: its step needs a closure, or an option of it has a name that is SAM's.
    """
    if not (isinstance(base, type) and issubclass(base, Optimizer)):
        raise TypeError(f"base_optimizer must be a class such as torch.optim.SGD, got {base!r}")
    if needs_closure(base):
        raise ValueError(
            f"{base.__name__} cannot be the base of SAM: its step needs a closure, and evaluates "
            "the loss itself"
        )
    # The base shares SAM's groups, and would take SAM's rho in them for its own.
    for name in SAMS_OWN:
        if name in inspect.signature(base).parameters:
            raise ValueError(
                f"{base.__name__} cannot be the base of SAM: it has an option {name!r} of its own"
            )


def needs_closure(optimizer: type[Optimizer]) -> bool:
    """Return whether an optimizer's signature says that a step is impossible without a closure."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is closure.empty


def prepare_fused_base(base: Optimizer) -> None:
    """Bring gradients and momentum into the form without which torch's fused steps go wrong."""
    for group in base.param_groups:
        if not group.get("fused"):
            continue
        for p in group["params"]:
            if p.grad is None:
                continue
            # A fused step walks a gradient as if it were laid out as its parameter is.
            if p.grad.stride() != p.stride():
                p.grad = strided_like(p, p.grad, p.grad.dtype)
            # Fused SGD cannot mix parameters with and without a momentum buffer, leaves new
            # buffers uninitialised when found_inf is set, and bakes "this is the first step" into
            # a CUDA graph. From a buffer of zeros its first step needs no special case.
            if group.get("momentum") and base.state[p].get("momentum_buffer") is None:
                base.state[p]["momentum_buffer"] = torch.zeros_like(p, requires_grad=False)


def after_loading(base: Optimizer, follow: Callable[[], None]) -> None:
    """Have a method called whenever a base has loaded a state.

    The base holds the method's object weakly: a cycle would keep the state until garbage
    collection.
    """
    weak = weakref.WeakMethod(follow)

    def tell(_: Optimizer) -> None:
        method = weak()
        if method is not None:
            method()

    base.register_load_state_dict_post_hook(tell)


def step_unless_bad(base: Optimizer, found_inf: Tensor) -> None:
    """Let a base step with the gradients in ``p.grad``, unless ``found_inf`` is 1.

    torch's fused steps read that on the device. Without them the host must.
    """
    prepare_fused_base(base)
    if found_inf.is_cuda and getattr(base, "_step_supports_amp_scaling", False):
        base.found_inf = found_inf  # type: ignore[attr-defined]
        base.step()
        del base.found_inf  # type: ignore[attr-defined]
    elif not found_inf:
        with torch.no_grad(), flattened(copied_in_vain(base)):
            base.step()


def copied_in_vain(base: Optimizer) -> list[Tensor]:
    """Return the tensors that torch's fused step on a CPU walks faster as flat memory.

    It copies each gradient that is not contiguous, such as a channels_last one, and drops the copy.
    """
    found: list[Tensor] = []
    for group in base.param_groups:
        if not group.get("fused"):
            continue
        for p in group["params"]:
            if p.grad is None or p.is_cuda or p.is_contiguous() or not is_dense(p):
                continue
            state = [t for t in base.state[p].values() if isinstance(t, Tensor)]
            # Other bases make their state in the first step, in p's shape: it must not be flat.
            if state or isinstance(base, torch.optim.SGD):
                found += [p, p.grad, *(t for t in state if t.shape == p.shape)]
    return found


def is_torchs(base: Any) -> bool:
    """Return whether a class is one of torch.optim's own, and not one derived from it."""
    return isinstance(base, type) and getattr(torch.optim, base.__name__, None) is base


def prefer_fused(
    base: type[Optimizer], groups: list[Group], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Return the options, with fused=True added where base, device and options allow it.

    A class that is not torch's own means by ``fused`` what it likes, and is not given it. Options
    that hold ``fused``, ``foreach`` or ``differentiable`` come back as they are.
    """
    options = {"fused", "foreach", "differentiable"}
    if not is_torchs(base) or "fused" not in inspect.signature(base).parameters:
        return kwargs
    if options & kwargs.keys():
        return kwargs
    # On a CPU, fused SGD forgets to write back half-precision parameters (torch issue 191763).
    whole = (torch.float32, torch.float64)
    if not all(
        p.is_cuda or (p.device.type == "cpu" and p.dtype in whole) for p in parameters(groups)
    ):
        return kwargs
    # torch leaves dampening out of the first step, which a buffer of zeros cannot imitate.
    if kwargs.get("dampening") or any(group.get("dampening") for group in groups):
        return kwargs
    return {**kwargs, "fused": True}

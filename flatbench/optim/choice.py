"""Eager or fused: which implementation of a step is wanted, and which is possible."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from torch import Tensor
from torch.optim.optimizer import Optimizer

from .availability import refusal, warn_of_eager, why_not_fused
from .groups import Group
from .layout import saved_copy
from .own_state import OwnState
from .rule import Rule

if TYPE_CHECKING:
    from .fused import FusedStep

Implementation = Literal["auto", "eager", "fused"]


def check_implementation(implementation: str) -> None:
    """Raise ValueError for one that there is not."""
    if implementation not in ("auto", "eager", "fused"):
        raise ValueError(
            f"implementation must be 'auto', 'eager' or 'fused', got {implementation!r}"
        )


def fused_step(
    implementation: Implementation,
    base: Optimizer,
    outcome: tuple[Tensor, Tensor, Tensor],
    saved: dict[Tensor, Tensor],
    method: tuple[Rule, OwnState, set[Tensor] | None, Callable[[Group], float]],
) -> "FusedStep | None":
    """Return the fused step if it is wanted and possible, else None: the step is eager.

    Args:
        implementation: what is wanted.
        base: the base optimizer, whose groups and state the step uses.
        outcome: ``gradient_norm``, ``found_inf`` and ``skipped_steps``.
        saved: parameter -> the tensor that its w is saved in.
        method: the fields of `fused.Method`.

    Raises:
        ValueError: the fused step was asked for by name, and is not possible.
    """
    wanted, device = implementation == "fused", outcome[0].device
    if not wanted and (implementation == "eager" or device.type != "cuda"):
        return None
    reason = why_not_fused(device)
    if reason is None:
        from . import fused

        reason = refusal(type(base), base.param_groups)
        if reason is None:
            keep = functools.partial(saved_copy, saved)
            made = fused.Method(*method)
            return fused.FusedStep(base, keep, fused.Outcome(*outcome), made)
    elif not wanted:
        warn_of_eager(str(device), reason)
    if wanted:
        raise ValueError(f"implementation='fused' is not possible: {reason}")
    return None

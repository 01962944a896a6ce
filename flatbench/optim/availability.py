"""Whether a fused step is possible: on a device, found out once a process, and of groups."""

import functools
import importlib.util
import os
import shutil
import subprocess
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch.optim import SGD, Adam, AdamW
from torch.optim.optimizer import Optimizer

from .groups import Group, parameters
from .layout import is_dense

COMPILERS = ("gcc", "clang")  # in Triton's own order; the variable CC comes before both


def c_compiler() -> str | None:
    """Return the C compiler that Triton would build its launcher with, or None."""
    named = os.environ.get("CC")
    if named is not None:
        return shutil.which(named)
    return next(filter(None, map(shutil.which, COMPILERS)), None)


def why_not_fused(device: torch.device) -> str | None:
    """Return in one line why the fused step can't run on a device, or None if it can.

    On a CUDA device a small kernel is compiled and launched, since that alone shows whether a
    compiler, a driver library and a code generator for this card are there. The answer is kept.
    Under ``TRITON_INTERPRET=1`` the kernels run on the CPU, without compiler or driver.
    """
    if importlib.util.find_spec("triton") is None:
        return "it needs the package triton"
    return _why_no_launch(device)


@functools.cache
def _why_no_launch(device: torch.device) -> str | None:
    from triton.errors import TritonError
    from triton.runtime import JITFunction

    from . import kernels

    compiled = isinstance(kernels.trial, JITFunction)
    if compiled and device.type != "cuda":
        return f"parameters must be on a CUDA device, got {device} (or set TRITON_INTERPRET=1)"
    if not compiled:
        on_cpu = device.type == "cpu"
        return (
            None
            if on_cpu
            else f"under TRITON_INTERPRET=1 parameters must be on the CPU, got {device}"
        )
    if c_compiler() is None:
        return f"no C compiler is found ({', '.join(COMPILERS)}, or set CC)"
    # What the attempt raises is Triton's choice: an assertion without libcuda, the compiler's
    # exit status, an ImportError of the launcher it built, a driver's refusal.
    failures = (AssertionError, ImportError, OSError, RuntimeError, TritonError)
    try:
        with torch.cuda.device(device):
            kernels.trial[(1,)](torch.zeros(1, device=device), **kernels.LAUNCH)
    except (*failures, subprocess.SubprocessError) as error:
        reason = " ".join(str(error).split()) or "no message"
        return f"a trial kernel does not launch: {type(error).__name__}: {reason}"
    return None


@functools.cache  # once a process and reason
def warn_of_eager(device: str, reason: str) -> None:
    """Warn that SAM takes its eager step on a device, and say why."""
    warnings.warn(f"SAM takes its eager step on {device}: {reason}", RuntimeWarning, stacklevel=2)


def refusal(base: type[Optimizer], groups: Sequence[Group]) -> str | None:
    """Return why these groups cannot take the fused step, or None if they can.

    `why_not_fused` tells whether their device can launch it.
    """
    return next(_objections(base, groups), None)


def _objections(base: type[Optimizer], groups: Sequence[Group]) -> Iterator[str]:
    if base not in (SGD, Adam, AdamW):
        yield f"the base optimizer must be SGD, Adam or AdamW, got {base.__name__}"
    if any(group.get("amsgrad") for group in groups):
        yield "amsgrad=True is not supported"
    params = parameters(groups)
    for p in params:
        if p.dtype != torch.float32:
            yield f"parameters must be float32, got {p.dtype}"
        if not is_dense(p):
            yield f"a parameter of shape {tuple(p.shape)} and strides {p.stride()} has gaps"
    if not any(p.numel() for p in params):
        yield "the parameters are empty"

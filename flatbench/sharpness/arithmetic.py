"""How the arithmetic of an evaluation is set, and put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def ieee_arithmetic() -> Iterator[None]:
    """Compute float32 as IEEE says, and by cuDNN's deterministic algorithms."""
    backends: Any = torch.backends
    wanted: list[tuple[Any, str, Any]] = [
        (backends.cudnn, "deterministic", True),
        (backends.cudnn, "benchmark", False),
        (backends.cudnn.conv, "fp32_precision", "ieee"),
        (backends.cudnn.rnn, "fp32_precision", "ieee"),
        (backends.cuda.matmul, "fp32_precision", "ieee"),
        (backends.mkldnn.conv, "fp32_precision", "ieee"),
        (backends.mkldnn.matmul, "fp32_precision", "ieee"),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in wanted]
    try:
        for owner, name, value in wanted:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Compute attention by kernels that can be differentiated twice, with a gradient or without.

    The fast path of `nn.MultiheadAttention` is taken without a gradient alone; L(w) would then
    differ, in its last digits, from the L(w) that a gradient is of.
    """
    mha = torch.backends.mha
    before = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        mha.set_fastpath_enabled(before)

"""Memory layouts: fused steps, torch's and ours, walk tensors as flat memory, element by element.

So a gradient, a copy or a state must lie in memory as its parameter does.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def in_layout_of(p: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:
    """Return t if it has this dtype and its elements lie as p's do, else a copy that does."""
    if t.dtype == dtype and (t.stride() == p.stride() or _extent(t) == _extent(p)):
        return t
    return torch.empty_like(p, dtype=dtype, requires_grad=False).copy_(t)


def strided_like(p: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the same as `in_layout_of`, but with exactly p's strides.

    Otherwise the strides of dimensions of size 1, which mean nothing, may differ from p's. torch's
    fused steps on CUDA compare all strides, and take a slow path or fail where they differ (torch
    issue 106951).
    """
    laid_out = in_layout_of(p, t, dtype)
    if laid_out.stride() == p.stride():
        return laid_out
    return laid_out.as_strided(p.shape, p.stride(), laid_out.storage_offset())


def lay_out_state(p: Tensor, state: dict[str, Any]) -> None:
    """Lay the tensors of a parameter's state out as the parameter is.

    A state that was loaded may come from a model in another memory format.
    """
    for name, t in state.items():
        if isinstance(t, Tensor) and t.shape == p.shape:
            state[name] = strided_like(p, t, t.dtype)


def is_dense(t: Tensor) -> bool:
    """Return whether t fills its memory without gaps or overlaps, in any order of dimensions."""
    expected = 1
    for stride, size in sorted(_extent(t)):
        if stride != expected:
            return False
        expected *= size
    return True


@contextmanager
def flattened(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Give dense tensors the shape (elements,), in their own storage, while the block runs."""
    shapes = [(t, t.shape, t.stride(), t.storage_offset()) for t in tensors]
    for t, shape, _, offset in shapes:
        t.data = t.as_strided((shape.numel(),), (1,), offset)
    try:
        yield
    finally:
        for t, shape, strides, offset in shapes:
            t.data = t.as_strided(shape, strides, offset)


def _extent(t: Tensor) -> list[tuple[int, int]]:
    """Return (stride, size) of each dimension that has more than one element."""
    return [(stride, size) for stride, size in zip(t.stride(), t.shape, strict=True) if size > 1]


def saved_copy(copies: dict[Tensor, Tensor], p: Tensor) -> Tensor:
    """Return the tensor that p is saved in; it is made if there is none of p's form."""
    copy = copies.get(p)
    if copy is None or _form(copy) != _form(p):
        copy = copies[p] = torch.empty_like(p, requires_grad=False)
    return copy


def _form(t: Tensor) -> tuple[object, ...]:
    return t.device, t.dtype, t.shape, t.stride()

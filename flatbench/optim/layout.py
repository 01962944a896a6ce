"""Memory layouts: fused steps, torch's and ours, walk tensors as flat memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def in_layout_of(p: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:
    """t itself if it has this dtype and its elements lie as p's do; else such a copy of it."""
    if t.dtype == dtype and (t.stride() == p.stride() or _extent(t) == _extent(p)):
        return t
    return torch.empty_like(p, dtype=dtype, requires_grad=False).copy_(t)


def strided_like(p: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:
    """`in_layout_of`, with p's very strides: in dimensions of size 1, too, where they mean nothing.

    torch's fused steps on CUDA compare strides, and take a slow path or fail where they differ
    (torch issue 106951).
    """
    laid_out = in_layout_of(p, t, dtype)
    if laid_out.stride() == p.stride():
        return laid_out
    return laid_out.as_strided(p.shape, p.stride(), laid_out.storage_offset())


def is_dense(t: Tensor) -> bool:
    """Whether t fills its memory without gaps or overlaps, in whatever order of dimensions."""
    expected = 1
    for stride, size in sorted(_extent(t)):
        if stride != expected:
            return False
        expected *= size
    return True


@contextmanager
def flattened(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Give dense tensors the shape (elements,), in place and in their storage, for a while."""
    shapes = [(t, t.shape, t.stride(), t.storage_offset()) for t in tensors]
    for t, shape, _, offset in shapes:
        t.data = t.as_strided((shape.numel(),), (1,), offset)
    try:
        yield
    finally:
        for t, shape, strides, offset in shapes:
            t.data = t.as_strided(shape, strides, offset)


def _extent(t: Tensor) -> list[tuple[int, int]]:
    """(stride, size) of each dimension that has more than one element."""
    return [(stride, size) for stride, size in zip(t.stride(), t.shape, strict=True) if size > 1]


def saved_copy(copies: dict[Tensor, Tensor], p: Tensor) -> Tensor:
    """Return the memory in which p is saved, made if there is none of p's form."""
    copy = copies.get(p)
    if copy is None or _form(copy) != _form(p):
        copy = copies[p] = torch.empty_like(p, requires_grad=False)
    return copy


def _form(t: Tensor) -> tuple[object, ...]:
    return t.device, t.dtype, t.shape, t.stride()

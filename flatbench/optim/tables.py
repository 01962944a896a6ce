"""The tables in device memory that the kernels walk, and how they are written.

`kernels` says what their columns hold.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from . import kernels
from .capture import capturing
from .groups import Group
from .layout import in_layout_of

gradient_of = attrgetter("grad")
Fact = tuple[torch.dtype, tuple[int, ...]]  # a gradient's dtype and strides


def upload(values: Sequence[Any], out: Tensor) -> None:
    """Write numbers to the device without waiting for it."""
    # `host` may go out of scope at once: the caching allocator does not hand pinned memory out
    # again before the copy has run.
    host = torch.tensor(values, dtype=out.dtype, pin_memory=out.is_cuda)
    out.copy_(host, non_blocking=True)


@dataclass
class Tables:
    """The kernels' tables for one set of parameters at one set of addresses."""

    params: list[Tensor]
    adaptive: list[bool]  # of each parameter
    moments: int  # buffers of the base that each parameter has, 0 to 2
    addressed: list[Tensor]  # what `tensors` points at beside the parameters, kept alive here
    chunks: Tensor  # int32 (chunks, 2)
    tensors: Tensor  # int64 (tensors, TENSOR_COLUMNS)
    settings: Tensor  # float64 (groups, SETTING_COLUMNS)
    rates: Tensor  # float32 (groups,), learning rates that the kernels cannot read in place
    schedule: Tensor  # float32 (tensors, SCHEDULE_COLUMNS)
    partials: Tensor  # float32 (PARTIALS,)
    products: Tensor  # float32 (2, PARTIALS)
    squares: Tensor  # float32 (chunks,), of the base's momentum
    momentum_norm: Tensor  # float32 (), of it all
    counters: Tensor  # int32 (3,)
    ascent: "GradientTable"
    descent: "GradientTable"
    none: Tensor  # int64 (tensors,), a table of gradients for "nothing is perturbed"
    all: Tensor  # int64 (tensors,), the same for "everything is"
    fingerprint: object = None  # what they were written from; see `FusedStep`

    def __post_init__(self) -> None:
        # Taken once, since every step asks for them.
        self.n_chunks = len(self.chunks)
        self.any_adaptive = any(self.adaptive)


def chunks_of(params: Sequence[Tensor], block: int) -> Tensor:
    """Return int32 (chunks, 2) on the CPU: each chunk's tensor, and its number within it."""
    blocks = torch.tensor([-(-p.numel() // block) for p in params])  # chunks of each, rounded up
    tensor = torch.repeat_interleave(blocks)
    # a chunk's number among all chunks, less that of its tensor's first one
    place = torch.arange(len(tensor)) - (blocks.cumsum(0) - blocks)[tensor]
    return torch.stack([tensor, place], dim=1).to(torch.int32)


def settings_row(group: Group, adam: bool) -> list[float]:
    """Return a group's row of the table ``settings``; SGD and Adam share its last columns."""
    decay = float(group["weight_decay"])
    if adam:
        own = (*group["betas"], group["eps"])
    elif group["momentum"]:
        own = (group["momentum"], group["dampening"], group["nesterov"])
    else:
        own = (0.0, 0.0, 0.0)  # without momentum torch ignores dampening
    is_decoupled = adam and bool(group.get("decoupled_weight_decay"))
    decays = (0.0, decay) if is_decoupled else (decay, 0.0)
    return [float(x) for x in (group["rho"], group["eta"], *decays, *own)]


class GradientTable:
    """The addresses of one pass's gradients, in a table on the device.

    The table is rewritten when an address changes. Outside a graph autograd allocates new gradients
    at each step, so that most steps rewrite it: a copy of 8 bytes a tensor from pinned memory, for
    which the host does not wait. A captured graph has a table of its own, which `write_captured`
    writes once.

    Attributes:
        kind: Triton's type of the gradients last read, float32 or bfloat16.
        bytes: bytes of one element of each gradient, 0 where there is no gradient.
    """

    def __init__(self, params: list[Tensor], device: torch.device, uploads: Counter[str]) -> None:
        self.kind = tl.float32
        self.bytes: list[int] = []
        self._params = params
        self._table = torch.zeros(len(params), dtype=torch.int64, device=device)
        self._uploads = uploads
        self._facts: list[Fact | None] = []  # of the last gradients, if none needed a copy
        self._addresses: list[int] = []  # what the host last wrote to the table
        self._spare: Tensor | None = None  # the table of the next graph
        self._captured: list[tuple[Tensor, list[int]]] = []  # each graph's table and addresses
        self._written = 0  # how many of these are written

    def point_at(
        self, gradients: Sequence[Tensor | None]
    ) -> tuple[Tensor, Sequence[Tensor | None]]:
        """Return the table, int64 (tensors,), and the gradients that it points at.

        These are the gradients given, in the order of the parameters, or copies that the kernels
        can walk. Keep them until the launch that reads them.

        Raises:
            RuntimeError: a gradient is sparse, or two captures come without a step between them.
        """
        facts = [None if g is None else (g.dtype, g.stride()) for g in gradients]
        if facts != self._facts:
            gradients = self._readable(gradients, facts)
        addresses = [0 if g is None else g.data_ptr() for g in gradients]
        if capturing(self._table):
            return self._own_table(addresses), gradients
        if self._spare is None:
            self._spare = torch.full_like(self._table, kernels.UNWRITTEN.value)
        if addresses != self._addresses:
            upload(addresses, self._table)
            self._addresses = addresses
            self._uploads["gradients"] += 1
        return self._table, gradients

    def write_captured(self) -> None:
        """Write the tables of the graphs captured since the last call."""
        for table, addresses in self._captured[self._written :]:
            upload(addresses, table)
            self._uploads["gradients"] += 1
        self._written = len(self._captured)

    def _readable(
        self, given: Sequence[Tensor | None], facts: list[Fact | None]
    ) -> Sequence[Tensor | None]:
        """Return the gradients as the kernels can walk them: in p's layout, all of one dtype."""
        # A kernel is compiled for one dtype: bfloat16 if that is what all have, else float32.
        kinds = {g.dtype for g in given if g is not None}
        wanted = torch.bfloat16 if kinds == {torch.bfloat16} else torch.float32
        readable: list[Tensor | None] = []
        for p, g in zip(self._params, given, strict=True):
            if g is not None and g.is_sparse:
                raise RuntimeError("SAM does not take sparse gradients")
            readable.append(None if g is None else in_layout_of(p, g, wanted))
        self.kind = tl.bfloat16 if wanted == torch.bfloat16 else tl.float32
        self.bytes = [0 if g is None else g.element_size() for g in readable]
        as_given = all(r is g for r, g in zip(readable, given, strict=True))
        self._facts = facts if as_given else []
        return readable

    def _own_table(self, addresses: list[int]) -> Tensor:
        # The spare was made before the capture, so that it lies outside of the graph's own memory.
        # It is full of UNWRITTEN: a graph replayed before `write_captured` skips its steps, and
        # counts them.
        if self._spare is None:
            raise RuntimeError("take a SAM step between two captures")
        table, self._spare = self._spare, None
        self._captured.append((table, addresses))
        return table

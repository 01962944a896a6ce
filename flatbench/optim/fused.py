"""The tables and the three launches of a fused SAM step; the kernels are in `kernels.py`.

Proven without a GPU: the kernels' numbers (in Triton's interpreter) and their registers, spills
and load width (compiled for sm_80 and sm_90). The tests marked ``gpu`` are for the rest: streams,
graphs, synchronisation, speed.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor
from torch.optim import SGD, Adam, AdamW
from torch.optim.optimizer import Optimizer
from triton.runtime import JITFunction

from . import kernels
from .groups import Group, is_adaptive, parameters
from .layout import in_layout_of, is_dense

BLOCK = 2048  # elements of a chunk
PARTIALS = 1024  # programs of the norm at most; every later program folds their sums
# Contraction off: see `kernels`. Sizes fixed: autotuning would run in-place kernels many times.
LAUNCH: dict[str, Any] = {"num_warps": 8, "enable_fp_fusion": False}


class Outcome(NamedTuple):
    """What a step says about itself, in 0-d tensors on the device; see `SAM`'s attributes."""

    gradient_norm: Tensor
    found_inf: Tensor
    skipped_steps: Tensor


def refusal(base: type[Optimizer], groups: Sequence[Group]) -> str | None:
    """Why these groups cannot take the fused step, or None if they can."""
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
    compiled, device = isinstance(kernels.perturb, JITFunction), params[0].device
    if compiled and device.type != "cuda":
        yield f"parameters must be on a CUDA device, got {device} (or set TRITON_INTERPRET=1)"
    if not compiled and device.type != "cpu":
        yield f"under TRITON_INTERPRET=1 parameters must be on the CPU, got {device}"


class FusedStep:
    """Three launches a step, over tables that are written when something in them changes.

    Args:
        base: the base optimizer; its groups and its state are used, in torch's own format.
        saved_copy: gives the memory in which a parameter's w is saved.
        outcome: tensors to write the outcome into.

    Attributes:
        launches: how often each kernel was launched.
        uploads: how often each table was written from the host.
    """

    def __init__(
        self, base: Optimizer, saved_copy: Callable[[Tensor], Tensor], outcome: Outcome
    ) -> None:
        self.launches: Counter[str] = Counter()
        self.uploads: Counter[str] = Counter()
        self._base = base
        self._saved_copy = saved_copy
        self._outcome = outcome
        self._adam = not isinstance(base, SGD)
        self._counts: dict[Tensor, Tensor] = {}
        self._tables: _Tables | None = None
        self._synced: dict[str, list[Any]] = {}

    def ascend(self) -> list[Tensor]:
        """Launches 1 and 2: the norm, then w saved and perturbed.

        Returns:
            The parameters that are perturbed now.
        """
        tables = self._current_tables()
        self.sync_options()
        grads = _readable_gradients(tables.params)
        pointers = tables.ascent.point_at(grads)
        walk = (tables.chunks, tables.tensors, pointers, tables.options)
        norm, found_inf, _ = self._outcome
        n_chunks = len(tables.chunks)
        kind = _kind(grads)
        with _on_device_of(tables.tensors):
            kernels.norm_partials[(min(n_chunks, PARTIALS),)](
                *walk, tables.partials, n_chunks,
                GRAD=kind, ANY_ADAPTIVE=any(tables.adaptive), BLOCK=BLOCK, **LAUNCH,
            )  # fmt: skip
            kernels.perturb[(n_chunks,)](
                *walk, tables.schedule, tables.partials, norm, found_inf,
                GRAD=kind, ADAM=self._adam, PARTIALS=PARTIALS, BLOCK=BLOCK, **LAUNCH,
            )  # fmt: skip
        self.launches.update(("norm_partials", "perturb"))
        self._first_pointers, self._first_bytes = pointers, _element_bytes(grads)
        return [p for p, g in zip(tables.params, grads, strict=True) if g is not None]

    def descend(self) -> None:
        """Launch 3: w restored, and the base optimizer's step from it.

        Raises:
            RuntimeError: a parameter that required no gradient in ``ascend`` has one now.
        """
        tables = self._tables
        assert tables is not None, "ascend comes first"
        known = set(tables.params)
        if any(p.grad is not None and p not in known for p in parameters(self._base.param_groups)):
            raise RuntimeError("a parameter that was frozen in first_step has a gradient now")
        grads = _readable_gradients(tables.params)
        pointers = tables.descent.point_at(grads)
        _, found_inf, skipped_steps = self._outcome
        with _on_device_of(tables.tensors):
            kernels.restore_and_step[(len(tables.chunks),)](
                tables.chunks, tables.tensors, self._first_pointers, pointers, tables.options,
                tables.schedule, found_inf, skipped_steps,
                GRAD=_kind(grads), ADAM=self._adam, MOMENTS=tables.moments, BLOCK=BLOCK, **LAUNCH,
            )  # fmt: skip
        self.launches.update(("restore_and_step",))
        self._second_bytes = _element_bytes(grads)

    def sync_options(self) -> None:
        """Bring the groups' rho, lr, ... to the device where they differ from what is there.

        Raises:
            RuntimeError: they differ, and a graph is being captured, which would freeze them.
        """
        tables = self._tables
        if tables is None:
            return  # the first step will write everything
        groups = self._base.param_groups
        self._sync("options", tables.options, [_option_row(group, self._adam) for group in groups])
        lrs = [group["lr"] for group in groups]
        numbers = [0.0 if isinstance(lr, Tensor) else float(lr) for lr in lrs]
        self._sync("rates", tables.rates, numbers)
        for i, lr in enumerate(lrs):
            if isinstance(lr, Tensor) and not _is_readable_rate(lr, tables.rates):
                tables.rates[i].copy_(lr.detach().squeeze())

    def _sync(self, name: str, table: Tensor, values: list[Any]) -> None:
        if values == self._synced.get(name):
            return
        if _capturing(table):
            raise RuntimeError(
                f"the groups' {name} changed since the last step: call sync_hyperparameters() "
                "before the capture"
            )
        _upload(values, table)
        self._synced[name] = values
        self.uploads[name] += 1

    def traffic(self) -> dict[str, int]:
        """Bytes that each launch of the last step read and wrote, the tables left out."""
        tables = self._tables
        assert tables is not None, "a step comes first"
        moved = Counter[str]()
        for p, adaptive, first, second in zip(
            tables.params, tables.adaptive, self._first_bytes, self._second_bytes, strict=True
        ):
            n, word = p.numel(), p.element_size()
            if first:
                moved["norm_partials"] += n * (first + word * adaptive)
                moved["perturb"] += n * (first + 3 * word)
            if second:
                moved["restore_and_step"] += n * (second + (2 + 2 * tables.moments) * word)
            elif first:
                moved["restore_and_step"] += n * 2 * word
        return dict(moved)

    def _current_tables(self) -> "_Tables":
        groups = self._base.param_groups
        params = [p for p in parameters(groups) if p.requires_grad or p.grad is not None]
        fingerprint = (
            [(id(p), p.data_ptr()) for p in params],
            [(group["adaptive"], bool(group.get("momentum"))) for group in groups],
            [group["lr"].data_ptr() for group in groups if isinstance(group["lr"], Tensor)],
        )
        if self._tables is None or fingerprint != self._tables.fingerprint:
            if _capturing(params[0]):
                raise RuntimeError("take a SAM step before capturing one: its tables must exist")
            self._tables = self._write_tables(params, fingerprint)
            self._synced = {}
            self.uploads["tensors"] += 1
        return self._tables

    def _write_tables(self, params: list[Tensor], fingerprint: object) -> "_Tables":
        groups, device = self._base.param_groups, params[0].device
        place = {
            p: (i, is_adaptive(group, k))
            for i, group in enumerate(groups)
            for k, p in enumerate(group["params"])
        }
        moments = 2 if self._adam else int(any(group["momentum"] for group in groups))
        rates = torch.zeros(len(groups), device=device)
        rate_of = [
            lr if isinstance(lr := group["lr"], Tensor) and _is_readable_rate(lr, rates) else rate
            for group, rate in zip(groups, rates, strict=True)
        ]
        unnamed: list[Tensor] = []  # addressed by the table, and by nothing else
        rows = []
        for p in params:
            i, adaptive = place[p]
            count = self._step_count(p)  # looks for the momentum buffer before it is made
            state = self._moment_tensors(p, groups[i])
            if len(state) < moments:
                # The kernel wants a buffer for every tensor if it wants one for any; torch's
                # state has none for a group without momentum.
                state = [torch.zeros_like(p, requires_grad=False)]
                unnamed += state
            addresses = [t.data_ptr() for t in (p, self._saved_copy(p), *state)]
            addresses += [0] * (4 - len(addresses))
            addresses += [count.data_ptr(), rate_of[i].data_ptr()]
            rows.append([*addresses, p.numel(), i, int(adaptive)])

        blocks = torch.tensor([-(-p.numel() // BLOCK) for p in params])
        tensor = torch.repeat_interleave(blocks)
        block = torch.arange(len(tensor)) - (blocks.cumsum(0) - blocks)[tensor]
        return _Tables(
            fingerprint=fingerprint,
            params=params,
            adaptive=[place[p][1] for p in params],
            moments=moments,
            unnamed=unnamed,
            chunks=torch.stack([tensor, block], dim=1).to(device, torch.int32),
            tensors=torch.tensor(rows, dtype=torch.int64, device=device),
            options=torch.zeros(
                len(groups), kernels.OPTION_COLUMNS.value, dtype=torch.float64, device=device
            ),
            rates=rates,
            schedule=torch.zeros(len(params), kernels.SCHEDULE_COLUMNS.value, device=device),
            partials=torch.zeros(PARTIALS, device=device),
            ascent=_GradientTable(len(params), device, self.uploads),
            descent=_GradientTable(len(params), device, self.uploads),
        )

    def _moment_tensors(self, p: Tensor, group: Group) -> list[Tensor]:
        """The base's state of p, made if missing, in p's layout."""
        names: tuple[str, ...] = ("exp_avg", "exp_avg_sq")
        if not self._adam:
            names = ("momentum_buffer",) if group["momentum"] else ()
        state = self._base.state[p]
        for name in names:
            if state.get(name) is None:
                state[name] = torch.zeros_like(p, requires_grad=False)
            state[name] = in_layout_of(p, state[name], torch.float32)
        return [state[name] for name in names]

    def _step_count(self, p: Tensor) -> Tensor:
        """How many steps p has had: Adam's own count; for SGD, whether it was any."""
        state = self._base.state[p]
        if self._adam:
            count = torch.as_tensor(state.get("step", 0.0), dtype=torch.float32, device=p.device)
            state["step"] = count
            return count
        if p not in self._counts:
            started = float(state.get("momentum_buffer") is not None)
            self._counts[p] = torch.tensor(started, device=p.device)
        return self._counts[p]


@dataclass
class _Tables:
    """What the kernels walk, for one set of parameters at one set of addresses."""

    fingerprint: object
    params: list[Tensor]
    adaptive: list[bool]
    moments: int
    unnamed: list[Tensor]
    chunks: Tensor
    tensors: Tensor
    options: Tensor
    rates: Tensor
    schedule: Tensor
    partials: Tensor
    ascent: "_GradientTable"
    descent: "_GradientTable"


class _GradientTable:
    """Addresses of one pass's gradients on the device, written anew when one of them changes.

    Outside a graph autograd allocates gradients anew each step, so most steps write it: a copy
    of 8 bytes a tensor from pinned memory, for which the host does not wait.
    """

    def __init__(self, tensors: int, device: torch.device, uploads: Counter[str]) -> None:
        self._table = torch.zeros(tensors, dtype=torch.int64, device=device)
        self._addresses: list[int] = []
        self._uploads = uploads
        self._spare: Tensor | None = None
        self._captured: list[tuple[Tensor, Tensor]] = []

    def point_at(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """The table, int64 (tensors,), with 0 for a gradient that is None."""
        addresses = [0 if g is None else g.data_ptr() for g in gradients]
        if _capturing(self._table):
            return self._own_table(addresses)
        if self._spare is None:
            self._spare = _pinned(len(addresses))
        if addresses != self._addresses:
            _upload(addresses, self._table)
            self._addresses = addresses
            self._uploads["gradients"] += 1
        return self._table

    def _own_table(self, addresses: list[int]) -> Tensor:
        # A graph keeps a table of its own, which steps outside it do not overwrite. Its replay
        # copies from pinned memory again, so that memory lives on, and is made before the
        # capture, in which memory cannot be pinned.
        if self._spare is None:
            raise RuntimeError("take a SAM step between two captures")
        host, self._spare = self._spare, None
        host.copy_(torch.tensor(addresses, dtype=torch.int64))
        table = torch.empty_like(self._table)
        table.copy_(host, non_blocking=True)
        self._captured.append((table, host))
        return table


def _option_row(group: Group, adam: bool) -> list[float]:
    decoupled = adam and bool(group.get("decoupled_weight_decay"))
    decay = float(group["weight_decay"])
    if adam:
        own = (*group["betas"], group["eps"])
    elif group["momentum"]:
        own = (group["momentum"], group["dampening"], group["nesterov"])
    else:
        own = (0.0, 0.0, 0.0)  # without momentum torch ignores dampening
    decays = (0.0, decay) if decoupled else (decay, 0.0)
    return [float(x) for x in (group["rho"], group["eta"], *decays, *own)]


def _is_readable_rate(lr: Tensor, table: Tensor) -> bool:
    """Whether the kernels can read this learning rate where it is, so that it may just change."""
    return lr.dtype == table.dtype and lr.device == table.device and lr.numel() == 1


def _readable_gradients(params: Sequence[Tensor]) -> list[Tensor | None]:
    """Each gradient as the kernels can walk it: in its parameter's layout, all of one type."""
    given = [p.grad for p in params]
    kinds = {g.dtype for g in given if g is not None}
    wanted = torch.bfloat16 if kinds == {torch.bfloat16} else torch.float32
    gradients: list[Tensor | None] = []
    for p, g in zip(params, given, strict=True):
        if g is not None and g.is_sparse:
            raise RuntimeError("SAM does not take sparse gradients")
        gradients.append(None if g is None else in_layout_of(p, g, wanted))
    return gradients


def _element_bytes(gradients: Sequence[Tensor | None]) -> list[int]:
    """Bytes of an element of each gradient, 0 for None; the gradients are not kept alive."""
    return [0 if g is None else g.element_size() for g in gradients]


def _kind(gradients: Sequence[Tensor | None]) -> Any:
    half = any(g is not None and g.dtype == torch.bfloat16 for g in gradients)
    return tl.bfloat16 if half else tl.float32


def _pinned(n: int) -> Tensor:
    return torch.empty(n, dtype=torch.int64, pin_memory=torch.cuda.is_available())


def _upload(values: Sequence[Any], out: Tensor) -> None:
    # The caching allocator does not hand pinned memory out again before the copy has run.
    host = torch.tensor(values, dtype=out.dtype, pin_memory=out.is_cuda)
    out.copy_(host, non_blocking=True)


def _capturing(t: Tensor) -> bool:
    return t.is_cuda and torch.cuda.is_current_stream_capturing()


def _on_device_of(t: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device(t.device) if t.is_cuda else nullcontext()

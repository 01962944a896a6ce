"""Writing the tables of `walk.py` for one set of parameters."""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD
from torch.optim.optimizer import Optimizer

from . import kernels
from .groups import Group, is_adaptive
from .layout import in_layout_of
from .own_state import OwnState
from .rule import Rule
from .tables import GradientTable, Tables, chunks_of


class Memory(NamedTuple):
    """What a step keeps from table to table.

    Attributes:
        saved_copy: returns the tensor that a parameter's w is saved in.
        own_state: what the method keeps of a parameter; see `own_state.py`.
        own: buffers for it, made before there is anything to keep.
        counts: step counts, for SGD, which keeps none itself.
    """

    saved_copy: Callable[[Tensor], Tensor]
    own_state: OwnState
    own: dict[Tensor, Tensor]
    counts: dict[Tensor, Tensor]


def write_tables(
    base: Optimizer,
    rule: Rule,
    params: list[Tensor],
    memory: Memory,
    sizes: tuple[int, int],
    uploads: Counter[str],
) -> Tables:
    """Return the tables of parameters, and make the base's state where it is missing.

    Args:
        base: the base optimizer.
        rule: the method.
        params: those that have a place in the tables.
        memory: what is kept from table to table.
        sizes: elements of a chunk, and programs at most that sum or check.
        uploads: counts what is written.
    """
    groups, device, adam = base.param_groups, params[0].device, not isinstance(base, SGD)
    block, partials = sizes
    # parameter -> the number of its group, whether T = |w| + eta
    place = {
        p: (i, is_adaptive(group, k))
        for i, group in enumerate(groups)
        for k, p in enumerate(group["params"])
    }
    moments = 2 if adam else int(any(group["momentum"] for group in groups))
    rates = torch.zeros(len(groups), device=device)
    # A tensor lr is read where it is if the kernels can: a graph then sees it change.
    rate_of = [
        lr if isinstance(lr := group["lr"], Tensor) and is_readable_rate(lr, rates) else rate
        for group, rate in zip(groups, rates, strict=True)
    ]
    schedule = torch.zeros(len(params), kernels.SCHEDULE_COLUMNS.value, device=device)
    addressed: list[Tensor] = []
    rows = []
    for number, p in enumerate(params):
        i, adaptive = place[p]
        # the count first: it looks for the momentum buffer, which is made next
        count = _step_count(base, p, memory.counts)
        state = _moment_tensors(base, p, groups[i], adam)
        if len(state) < moments:
            # The kernel wants a buffer for every tensor if it wants one for any; torch's
            # state has none for a group without momentum.
            state = [torch.zeros_like(p, requires_grad=False)]
        saved = memory.saved_copy(p)
        addressed += [saved, count, *state]
        addresses = [t.data_ptr() for t in (p, saved, *state)]
        addresses += [0] * (4 - len(addresses))
        addresses += [count.data_ptr(), rate_of[i].data_ptr()]
        own = 0
        if rule.own is not None:
            buffer, is_kept = _own_buffer(p, rule.own, memory)
            addressed.append(buffer)
            own = buffer.data_ptr()
            schedule[number, kernels.STARTED.value] = float(is_kept)
        rows.append([*addresses, p.numel(), i, int(adaptive), own])
    chunks = chunks_of(params, block)
    return Tables(
        params=params,
        adaptive=[place[p][1] for p in params],
        moments=moments,
        addressed=addressed,
        chunks=chunks.to(device),
        tensors=torch.tensor(rows, dtype=torch.int64, device=device),
        settings=torch.zeros(
            len(groups), kernels.SETTING_COLUMNS.value, dtype=torch.float64, device=device
        ),
        rates=rates,
        schedule=schedule,
        partials=torch.zeros(partials, device=device),
        products=torch.zeros(2, partials, device=device),
        squares=torch.zeros(len(chunks) if rule.looks_ahead else 1, device=device),
        momentum_norm=torch.zeros((), device=device),
        counters=torch.zeros(3, dtype=torch.int32, device=device),
        ascent=GradientTable(params, device, uploads),
        descent=GradientTable(params, device, uploads),
        none=torch.zeros(len(params), dtype=torch.int64, device=device),
        all=torch.ones(len(params), dtype=torch.int64, device=device),
    )


def _own_buffer(p: Tensor, name: str, memory: Memory) -> tuple[Tensor, bool]:
    """Return the method's buffer for p in p's layout, zeros if it is new, and whether it is not."""
    kept = memory.own_state.get(p)
    if kept is not None:
        kept[name] = memory.own[p] = in_layout_of(p, kept[name], torch.float32)
    elif p not in memory.own:
        memory.own[p] = torch.zeros_like(p, requires_grad=False)
    return memory.own[p], kept is not None


def _moment_tensors(base: Optimizer, p: Tensor, group: Group, adam: bool) -> list[Tensor]:
    """Return the moment buffers that the base keeps for p, made if missing, in p's layout."""
    names: tuple[str, ...] = ("exp_avg", "exp_avg_sq")
    if not adam:
        names = ("momentum_buffer",) if group["momentum"] else ()
    state = base.state[p]
    for name in names:
        if state.get(name) is None:
            state[name] = torch.zeros_like(p, requires_grad=False)
        state[name] = in_layout_of(p, state[name], torch.float32)
    return [state[name] for name in names]


def _step_count(base: Optimizer, p: Tensor, counts: dict[Tensor, Tensor]) -> Tensor:
    """Return p's step count, 0-d float32 on p's device.

    Adam keeps one. SGD does not: its count starts at 1 where p has a momentum buffer and at 0
    elsewhere, since the kernel asks only whether the step is the first.
    """
    state = base.state[p]
    if not isinstance(base, SGD):
        count = torch.as_tensor(state.get("step", 0.0), dtype=torch.float32, device=p.device)
        state["step"] = count
        return count
    has_buffer = state.get("momentum_buffer") is not None
    if p not in counts or not has_buffer:
        counts[p] = torch.tensor(float(has_buffer), device=p.device)
    return counts[p]


def is_readable_rate(lr: Tensor, table: Tensor) -> bool:
    """Return whether the kernels can read this learning rate where it is, without a copy."""
    return lr.dtype == table.dtype and lr.device == table.device and lr.numel() == 1

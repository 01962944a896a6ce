"""What an optimizer costs beside another one, measured here: time, memory and gradients a step."""

from __future__ import annotations

import statistics
import time
import types
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flatbench import data
from flatbench.execution import Machine
from flatbench.protocols.cases import Case
from flatbench.training import devices
from flatbench.training.run import Run, close
from flatbench.training.setup import prepare
from flatbench.training.stepping import enter_training

ROUNDS, STEPS = 15, 4  # of each optimizer in turn: 60 steps each
EVALUATIONS = 3  # the place of the count among what `take_step` returns


@dataclass(frozen=True)
class Cost:
    """A step of an optimizer beside one of another.

    Attributes:
        name: the optimizer's row.
        other: the other one's.
        ratio: the median, over rounds of both in turn, of its time over the other's.
        low: the first quartile of that.
        high: the third.
        state: bytes of the optimizer's state a parameter.
        other_state: the other one's.
        gradients: gradient evaluations a step, as flatbench counts them.
        other_gradients: the other one's.
    """

    name: str
    other: str
    ratio: float
    low: float
    high: float
    state: float
    other_state: float
    gradients: float
    other_gradients: float

    def sentence(self) -> str:
        """Return the cost in one line."""
        return (
            f"a step of {self.name} takes {self.ratio:.2f} × {self.other}'s time "
            f"(quartiles {self.low:.2f} to {self.high:.2f}, measured here in turns); its state has "
            f"{self.state:.1f} bytes a parameter, {self.other}'s {self.other_state:.1f}; "
            f"gradients a step: {self.gradients:.3g}, {self.other}'s {self.other_gradients:.3g}"
        )


def beside(mine: Case, other: Case, machine: Machine) -> Cost:
    """Return what steps of two rows cost on the same network and batches.

    Both train from the same weights; a few steps of each come in turn, so that a machine that slows
    down does so for both. On the CPU a step has one thread, as in a worker.

    Raises:
        UsageError: as `flatbench.training.trainer.train`.
    """
    where = devices.bind(devices.find(machine.device))
    devices.use_ieee_fp32(where)
    dataset = data.load_for(mine.protocol, where, machine.data_dir)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    runs: list[Run] = []
    try:
        for case in (mine, other):
            runs.append(prepare(case, dataset))
            runs[-1].model.train()
            enter_training(runs[-1].optimizer)
        for run in runs:
            _steps(run)  # warm
        ratios, counts = [], []
        for number in range(ROUNDS):
            turns = {i: _steps(runs[i]) for i in ((0, 1) if number % 2 else (1, 0))}
            ratios.append(turns[0][0] / turns[1][0])
            counts.append([turns[i][1] for i in (0, 1)])
        low, middle, high = statistics.quantiles(ratios, n=4)
        states = [state_bytes(run.optimizer, run.model) / _parameters(run) for run in runs]
    finally:
        for run in runs:
            close(run)
        torch.set_num_threads(threads)
    gradients = [statistics.mean(column) for column in zip(*counts, strict=True)]
    return Cost(mine.optimizer, other.optimizer, middle, low, high, *states, *gradients)


def _steps(run: Run) -> tuple[float, float]:
    """Take steps with whole batches; return their seconds and a step's gradient evaluations."""
    size = run.case.protocol.training.batch_size
    order = torch.randperm(len(run.labels), generator=run.shuffle).to(run.where)
    batches = [order[i * size % max(len(order) - size, 1) :][:size] for i in range(STEPS)]
    devices.synchronise(run.where)
    start = time.perf_counter()
    sums = sum(run.step(batch) for batch in batches)
    devices.synchronise(run.where)
    seconds = time.perf_counter() - start
    assert isinstance(sums, Tensor)
    return seconds, float(sums[EVALUATIONS]) / STEPS


def _parameters(run: Run) -> int:
    return sum(p.numel() for p in run.model.parameters() if p.requires_grad)


def state_bytes(optimizer: torch.optim.Optimizer, model: nn.Module | None = None) -> int:
    """Return the bytes of all tensors that an optimizer holds beside parameters and gradients.

    They are those within its attributes: in other optimizers, lists, tables and whatever objects
    its code keeps them in. What shares a storage counts once.

    Args:
        optimizer: any, after a step, for many make their state in the first one.
        model: what it trains. Its tensors are the network's, even if the optimizer holds it.
    """
    own = [p for group in optimizer.param_groups for p in group["params"]]
    if model is not None:
        own += [*model.parameters(), *model.buffers()]
    own += [p.grad for p in own if p.grad is not None]
    known = {_place(t) for t in own}
    found = {_place(t): t.untyped_storage().nbytes() for t in _tensors(optimizer, {})}
    return sum(size for place, size in found.items() if place not in known)


def _place(t: Tensor) -> tuple[torch.device, int]:
    return t.device, t.untyped_storage().data_ptr()


# What has attributes that are everybody's.
_SHARED = (type, types.ModuleType)


def _tensors(value: Any, seen: dict[int, Any]) -> Iterator[Tensor]:
    """Yield the tensors within a value; ``seen`` keeps what was visited, so that no id recurs."""
    if id(value) in seen:
        return
    seen[id(value)] = value
    if isinstance(value, Tensor):
        yield value
        return
    if isinstance(value, _SHARED):
        return
    inner: list[Any] = []
    if isinstance(value, Mapping):
        inner += value.values()
    elif isinstance(value, list | tuple | set | frozenset | deque):
        inner += value
    for other in (*inner, *_attributes(value)):
        yield from _tensors(other, seen)


def _attributes(value: Any) -> list[Any]:
    slots = [
        name
        for cls in type(value).__mro__
        for names in [cls.__dict__.get("__slots__", ())]
        for name in ([names] if isinstance(names, str) else names)
    ]
    own = getattr(value, "__dict__", {})
    return [*own.values(), *(getattr(value, name, None) for name in slots)]

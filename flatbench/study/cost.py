"""What an optimizer costs beside another one, measured here: time, memory and gradients a step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flatbench import data
from flatbench.protocols.cases import Case
from flatbench.study.runs import Machine
from flatbench.training import devices
from flatbench.training.run import Run, close
from flatbench.training.setup import prepare
from flatbench.training.stepping import enter_training

ROUNDS, STEPS = 15, 4  # of each optimizer in turn: 60 steps each


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
    """

    name: str
    other: str
    ratio: float
    low: float
    high: float
    state: float
    other_state: float

    def sentence(self) -> str:
        """Return the cost in one line."""
        return (
            f"a step of {self.name} takes {self.ratio:.2f} × {self.other}'s time "
            f"(quartiles {self.low:.2f} to {self.high:.2f}, measured here in turns); its state has "
            f"{self.state:.1f} bytes a parameter, {self.other}'s {self.other_state:.1f}"
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
    runs = [prepare(case, dataset) for case in (mine, other)]
    try:
        for run in runs:
            run.model.train()
            enter_training(run.optimizer)
        _steps(runs[0]), _steps(runs[1])  # warm
        ratios = []
        for number in range(ROUNDS):
            order = runs if number % 2 else runs[::-1]
            seconds = {id(run): _steps(run) for run in order}
            ratios.append(seconds[id(runs[0])] / seconds[id(runs[1])])
        low, middle, high = statistics.quantiles(ratios, n=4)
        states = [state_bytes(run.optimizer) / _parameters(run) for run in runs]
    finally:
        for run in runs:
            close(run)
        torch.set_num_threads(threads)
    return Cost(mine.optimizer, other.optimizer, middle, low, high, *states)


def _steps(run: Run) -> float:
    """Take steps with whole batches and return their seconds."""
    size = run.case.protocol.training.batch_size
    order = torch.randperm(len(run.labels), generator=run.shuffle).to(run.where)
    batches = [order[i * size % max(len(order) - size, 1) :][:size] for i in range(STEPS)]
    devices.synchronise(run.where)
    start = time.perf_counter()
    for batch in batches:
        run.step(batch)
    devices.synchronise(run.where)
    return time.perf_counter() - start


def _parameters(run: Run) -> int:
    return sum(p.numel() for p in run.model.parameters() if p.requires_grad)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of all tensors that an optimizer holds beside parameters and gradients.

    They are those within its attributes, in other optimizers, lists and tables too; what shares a
    storage counts once.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    known = {t.untyped_storage().data_ptr() for p in params for t in (p, p.grad) if t is not None}
    found = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in _tensors(optimizer, set())
    }
    return sum(size for place, size in found.items() if place not in known)


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner, seen)
    elif isinstance(value, list | tuple | set):
        for inner in value:
            yield from _tensors(inner, seen)
    elif isinstance(value, torch.optim.Optimizer) or type(value).__module__.startswith("flatbench"):
        yield from _tensors(_attributes(value), seen)


def _attributes(value: Any) -> dict[str, Any]:
    slots = [name for cls in type(value).__mro__ for name in getattr(cls, "__slots__", ())]
    return {**getattr(value, "__dict__", {}), **{n: getattr(value, n, None) for n in slots}}

"""A case under way, and the ways to keep and to put back where it stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flatbench import data
from flatbench.optim import HalfSteps
from flatbench.protocols.cases import Case
from flatbench.records.record import Epoch
from flatbench.training.task import Task

Stepping = Literal["plain", "evaluates", "re-evaluates"]  # see `flatbench.training.stepping`


@dataclass
class Run:
    """One case under way: everything an epoch reads or moves."""

    case: Case
    where: torch.device
    dataset: data.DataSet
    evaluated: data.Part
    images: Tensor  # of the training part, padded if they are to be cropped
    labels: Tensor  # of the training part, with the case's noise
    model: nn.Module
    optimizer: torch.optim.Optimizer
    stepping: Stepping
    rates: list[float | None]  # each parameter group's learning rate, which the schedule multiplies
    why_not_resumable: str | None  # why there are no checkpoints of it, or None
    precision: str
    task: Task
    shuffle: torch.Generator
    crops: torch.Generator
    components: dict[str, str]  # what identifies the code behind each reference of the case
    key: str
    # indices of a batch -> `take_step`'s sums. It refers to the run: `close` breaks this circle.
    step: Callable[[Tensor], Tensor] = field(init=False)
    warm_up_seconds: float = 0.0
    capture_seconds: float = 0.0  # of its CUDA graph
    sharpness_history: dict[str, list[float | None]] = field(default_factory=dict)
    measure_failures: dict[str, str] = field(default_factory=dict)  # the first of each measure
    history: list[Epoch] = field(default_factory=list)
    resumed_after: list[int] = field(default_factory=list)  # epochs; a resumed run says so


def close(run: Run) -> None:
    """End a run, so that its memory is free as soon as nobody holds it.

    In the circle run -> step -> run it would wait for the garbage collector: the next run's peak
    memory would count it, and a CUDA graph could be destroyed while another is captured.
    """
    del run.step


def load_optimizer(run: Run, state: dict[str, Any]) -> None:
    """Load an optimizer's state from the CPU; torch moves all of it but the learning rate."""
    run.optimizer.load_state_dict(state)
    for group in run.optimizer.param_groups:
        if isinstance(group.get("lr"), Tensor):
            group["lr"] = group["lr"].to(run.where)


def snapshot(run: Run) -> Callable[[], None]:
    """Keep the weights and the optimizer's state, on the CPU; return what puts them back."""
    weights = _on_cpu(run.model.state_dict())
    state = _on_cpu(run.optimizer.state_dict())

    def put_back() -> None:
        if isinstance(run.optimizer, HalfSteps):
            run.optimizer.restore()  # of what was saved a step ago: the next lines overwrite it
        run.optimizer.zero_grad()
        run.model.load_state_dict(weights)
        load_optimizer(run, state)

    return put_back


def _on_cpu(value: Any) -> Any:
    """Return a copy of a state in which every tensor is on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on_cpu(item) for item in value)
    return value

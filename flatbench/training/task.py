"""What a case minimises and what it is judged by: cross-entropy and accuracy, or the user's own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flatbench import components
from flatbench.errors import UsageError
from flatbench.protocols.cases import Case
from flatbench.protocols.protocol import LOSS

Function = Callable[[Tensor, Tensor], Tensor]  # outputs, targets -> a mean over the examples, 0-d


@dataclass(frozen=True)
class Task:
    """A case's loss and metric, of outputs [B, ...] and targets [B, ...].

    Attributes:
        training_loss: what the steps minimise: a mean, with the row's label smoothing.
        loss: the same without smoothing: what every sharpness measure is of.
        loss_sum: its sum over the examples: of evaluation.
        metric_sum: the sum over the examples of what the case is judged by.
        kind: "accuracy" in percent, "score" where higher is better, "error" where lower is.
        name: what the metric is called; None of accuracy.
    """

    training_loss: Function
    loss: Function
    loss_sum: Function
    metric_sum: Function
    kind: str
    name: str | None

    def outcomes(self, **parts: float) -> dict[str, float]:
        """Return the metric of each part as the fields of a record: test=0.5 as test_error."""
        return {f"{part}_{self.kind}": value for part, value in parts.items()}


def of(case: Case) -> Task:
    """Return a case's task.

    Raises:
        UsageError: a reference names nothing; label smoothing is asked of a loss of one's own.
    """
    training = case.protocol.training
    smoothing = case.row.label_smoothing
    if smoothing is None:
        smoothing = training.label_smoothing
    where = f"protocol {case.protocol.name}: training"
    if training.loss == LOSS:
        training_loss: Function = functools.partial(F.cross_entropy, label_smoothing=smoothing)
        loss: Function = F.cross_entropy
        loss_sum: Function = functools.partial(F.cross_entropy, reduction="sum")
    else:
        if smoothing:
            raise UsageError(
                f"{where}.label_smoothing must be 0 with a loss of one's own, got {smoothing}"
            )
        loss = training_loss = _found(training.loss, case, f"{where}.loss")
        loss_sum = _summed(loss)
    if training.metric is None:
        return Task(training_loss, loss, loss_sum, percent_right, "accuracy", None)
    metric = _found(training.metric.ref, case, f"{where}.metric")
    kind = "score" if training.metric.better == "higher" else "error"
    name = training.metric.ref.rpartition(":")[2]
    return Task(training_loss, loss, loss_sum, _summed(metric), kind, name)


def percent_right(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return 100 times the number of logits [B, classes] whose largest is the target's."""
    return 100 * (outputs.argmax(1) == targets).sum().double()


def _summed(mean: Function) -> Function:
    return lambda outputs, targets: mean(outputs, targets).double() * len(targets)


CLASSIFICATION = Task(
    F.cross_entropy,
    F.cross_entropy,
    functools.partial(F.cross_entropy, reduction="sum"),
    percent_right,
    "accuracy",
    None,
)


def _found(reference: str, case: Case, where: str) -> Function:
    """Return a user's function, whose mistakes are told in one line and whose result is checked."""
    component = components.find(reference, case.protocol.folder, {}, where)

    def call(outputs: Tensor, targets: Tensor) -> Tensor:
        found: Any = component.target(outputs, targets)
        value = torch.as_tensor(found)
        if value.ndim != 0:
            raise UsageError(
                f"{where}: {reference} must return a mean over the examples, a single number, "
                f"got shape {tuple(value.shape)}"
            )
        return value

    return call

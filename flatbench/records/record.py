"""Records: what one training run measured, as versioned JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

from flatbench.protocols.cases import Case
from flatbench.protocols.schema import Check

SCHEMA_VERSION: Final = 1

_NATURAL = Check(lambda x: x >= 0, "a whole number of at least 0")
_PERCENT = Check(lambda x: 0 <= x <= 100, "a number from 0 to 100")
_AT_LEAST_ZERO = Check(lambda x: x >= 0, "a number of at least 0")
_PLACE = Check(
    lambda xs: len(xs) in (0, 2) and all(x >= 0 for x in xs), "two whole numbers of at least 0"
)
_TEXT = Check(lambda x: 0 < len(x) <= 300, "a string of 1 to 300 characters")
_SHORT = Check(lambda x: len(x) <= 300, "a string of at most 300 characters")
_FEW = Check(lambda x: len(x) <= 200, "a table of at most 200 measures")

Percent = Annotated[float, _PERCENT] | None
Number = Annotated[float, _AT_LEAST_ZERO] | None


# Left out of the JSON where they are None, as they are with an accuracy.
_OF_OWN_TASKS: Final = (
    *("metric", "train_score", "test_score", "best_test_score"),
    *("train_error", "test_error", "best_test_error"),
)


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch measured. Accuracies are top-1 in percent, losses are means over examples."""

    train_loss: float
    train_accuracy: Percent  # of the labels trained on, noisy ones included
    test_loss: float
    test_accuracy: Percent  # None for a task with a metric of its own
    sam_sharpness: Annotated[float, _AT_LEAST_ZERO]  # mean over the batches of rho * ||gradient||
    learning_rate: Annotated[float, _AT_LEAST_ZERO]  # of the epoch's first step
    # training alone, without evaluation, compilation, and the capture of a CUDA graph
    seconds: Annotated[float, _AT_LEAST_ZERO]
    gradient_evaluations: Annotated[int, _NATURAL]  # of batches, in this epoch
    # the metric of a task of one's own: a score where higher is better, else an error
    train_score: float | None = None
    test_score: float | None = None
    train_error: float | None = None
    test_error: float | None = None


@dataclass(frozen=True)
class Record:
    """One case's result. Absent numbers are None (JSON ``null``), never NaN.

    ``test_accuracy`` and its siblings are those of the last epoch; the best epoch's, which is
    selected on the test set, is kept apart and named so. A run that ``diverged`` (a loss or
    gradient was not finite) or ``failed`` (an error, a dead worker) says why in ``reason`` and
    has no final numbers; its history holds the epochs before.
    """

    protocol: Annotated[str, _TEXT]
    architecture: Annotated[str, _TEXT]
    optimizer: Annotated[str, _TEXT]
    seed: Annotated[int, _NATURAL]
    # the row that a SAM row is compared with; None for other rows
    base_row: Annotated[str, _SHORT] | None
    status: Literal["completed", "diverged", "failed"]
    base: str | None = None  # base optimizer, as "sgd"; of SAM rows too
    reason: str | None = None
    evaluation: Literal["test", "validation"] = "test"  # the part that test_* were measured on
    test_accuracy: Percent = None
    best_test_accuracy: Percent = None
    test_loss: float | None = None
    train_accuracy: Percent = None
    train_loss: float | None = None
    metric: str | None = None  # of a task of one's own: what its scores or errors are
    train_score: float | None = None
    test_score: float | None = None
    best_test_score: float | None = None
    train_error: float | None = None
    test_error: float | None = None
    best_test_error: float | None = None
    sam_sharpness: Number = None
    sharpness: Annotated[dict[str, float | None], _FEW] = field(default_factory=dict)
    # measures of the final w
    sharpness_history: Annotated[dict[str, tuple[float | None, ...]], _FEW] = field(
        default_factory=dict
    )
    # measures after each epoch of the history
    measure_failures: dict[str, str] = field(default_factory=dict)
    # why a measure could not be taken, at the end or after an epoch: its value there is None
    gradient_evaluations: Annotated[int, _NATURAL] = 0
    seconds: Number = None  # training alone, without evaluation
    calibration_seconds: Number = None  # of a fixed piece of work, timed beside the training
    peak_memory: Number = None  # bytes; of the device on CUDA, of the process on CPU
    history: tuple[Epoch, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    place: Annotated[
        tuple[int, ...], _PLACE
    ] = ()  # of the row and of the architecture in the protocol's file
    schema_version: Literal[1] = SCHEMA_VERSION

    @property
    def id(self) -> str:
        """For example "digits/resnet18/adam+sam/seed0"."""
        return f"{self.protocol}/{self.architecture}/{self.optimizer}/seed{self.seed}"

    @property
    def relative_time(self) -> float | None:
        """Training time over that of the calibration's fixed work; None where either is missing.

        It can be compared between faster and slower machines of one kind.
        """
        if not self.seconds or not self.calibration_seconds:
            return None
        return self.seconds / self.calibration_seconds

    def to_json(self) -> dict[str, Any]:
        """Return the record in JSON's own types, the history as one list for each column."""
        table = dataclasses.asdict(self)
        for name in _OF_OWN_TASKS:
            if table[name] is None:
                del table[name]
        table["place"] = list(self.place)
        history = self.sharpness_history.items()
        table["sharpness_history"] = {name: list(column) for name, column in history}
        table["history"] = {
            f.name: [getattr(epoch, f.name) for epoch in self.history]
            for f in dataclasses.fields(Epoch)
            if f.name not in _OF_OWN_TASKS
            or any(getattr(epoch, f.name) is not None for epoch in self.history)
        }
        return table

    def without_timings(self) -> dict[str, Any]:
        """Return the JSON without times and memory; two runs of one seed share it bit for bit."""
        table = self.to_json()
        for key in ("seconds", "calibration_seconds", "peak_memory"):
            del table[key]
        del table["history"]["seconds"]
        for key in ("resumed_after", "warm_up_seconds", "capture_seconds"):
            table["provenance"].pop(key, None)  # asdict made a copy
        return table


def of_case(case: Case, provenance: Mapping[str, Any], **results: Any) -> Record:
    """Return a case's record: what the case alone decides, its provenance, and its results."""
    return Record(
        protocol=case.protocol.name,
        architecture=case.architecture,
        optimizer=case.optimizer,
        seed=case.seed,
        base_row=case.protocol.base_of(case.optimizer),
        base=case.row.optimizer,
        evaluation=case.protocol.data.evaluation,
        place=(
            list(case.protocol.optimizers).index(case.optimizer),
            case.protocol.model.names.index(case.architecture),
        ),
        provenance={
            **provenance,
            "common_hash": case.protocol.common_hash(),
            "cell_hash": case.cell_hash(),
        },
        **results,
    )

"""What an engine is: it trains a case somewhere, and says how that ended.

Whoever calls `flatbench.execution.start` knows no more of an engine than its name. What all engines
share stands above them, once, in `flatbench.execution.run`: what is reused, what is tried again,
progress, and what is written where.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flatbench.protocols.cases import Case
from flatbench.records.record import Epoch, Record

OnEpoch = Callable[[int, Epoch], None]  # an epoch's number, from 1
Machines = tuple[tuple[str, ...], ...]  # each as `provenance.machine` has it


class WorkerDied(Exception):
    """The process that trained a case is gone.

    Attributes:
        is_lost: whether its machine is gone with it, so that the case is not to blame.
    """

    def __init__(self, cause: str, is_lost: bool = False) -> None:
        super().__init__(cause)
        self.is_lost = is_lost


@dataclass(frozen=True)
class Job:
    """How one attempt at a case is made.

    Attributes:
        number: of the attempt, from 1.
        data_dir: the folder of the data sets, where the case is trained.
        checkpoint: where the case keeps its checkpoint; None for none.
        resume: whether to go on from that checkpoint.
        weights: where the final weights go; None for nowhere.
    """

    number: int = 1
    data_dir: Path | None = None
    checkpoint: Path | None = None
    resume: bool = False
    weights: Path | None = None


class Engine(Protocol):
    """Where cases are trained."""

    def machines(self) -> Machines:
        """Return each kind of machine that may get a case."""

    def submit(self, case: Case, job: Job, on_epoch: OnEpoch) -> Future[Record]:
        """Begin to train a case and return its future.

        A case that raises gives a record with status "failed". The future raises `WorkerDied`
        where the worker is gone, and is cancelled where the engine was closed before the end.
        ``on_epoch`` is called from a thread of the engine's, one call at a time for each case.
        """

    def close(self) -> None:
        """End what is being trained, and every process that was started for it."""

"""How far a run has come, and the live line that shows it."""

from __future__ import annotations

import concurrent.futures
import shutil
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TextIO

from flatbench.protocols.cases import Case
from flatbench.records.quantities import OUTCOMES, TEST_ACCURACY
from flatbench.records.record import Epoch, Record


@dataclass
class Progress:
    """How far a run has come; written by an engine's threads, read by whoever shows it."""

    cases: Sequence[Case]
    started: float = field(default_factory=time.monotonic)
    finished: set[str] = field(default_factory=set)
    reused: set[str] = field(default_factory=set)  # finished before this run
    latest: tuple[Case, int, Epoch] | None = None
    epochs_done: dict[str, int] = field(default_factory=dict)
    notes: deque[str] = field(default_factory=deque)  # what happened, and was not shown yet

    def line(self) -> str:
        """Return one line: cases done, the newest epoch, loss and accuracy, time left."""
        parts = [f"{len(self.finished)}/{len(self.cases)} cases"]
        if self.latest is not None:
            case, number, epoch = self.latest
            parts += [
                f"{case.id} epoch {number}/{case.epochs}",
                f"loss {epoch.train_loss:.3f}",
                _outcome(epoch),
            ]
        left = self.seconds_left()
        parts.append("time left unknown" if left is None else f"{_duration(left)} left")
        return " · ".join(parts)

    def seconds_left(self) -> float | None:
        """Return the time that is left if gradient evaluations go on at the rate so far."""
        total = done = 0.0
        for case in self.cases:
            if case.id in self.reused:
                continue
            cost = case.row.gradients_per_step
            total += cost * case.epochs
            epochs = case.epochs if case.id in self.finished else self.epochs_done.get(case.id, 0)
            done += cost * epochs
        if done == 0:
            return None
        return (time.monotonic() - self.started) * (total - done) / done


def _outcome(epoch: Epoch) -> str:
    for name in OUTCOMES:
        value = getattr(epoch, name)
        if value is not None:
            kind = name.removeprefix("test_")
            return f"{kind} {value:.1f} %" if name == TEST_ACCURACY else f"{kind} {value:.4g}"
    return "no outcome"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass(frozen=True)
class Run:
    """Cases under way: a future of a Record for each case id, and the progress."""

    futures: dict[str, Future[Record]]
    progress: Progress


def follow(run: Run, case: Case, stream: TextIO, below_column: int | None = None) -> Record:
    """Wait for a case's record; if the stream is a terminal, it shows a live line meanwhile.

    What the run notes, such as that a worker died, is written whatever the stream is. With
    ``below_column`` the live line stands below the current one, and the cursor goes back to that
    column (from 1) of it; there is no place for notes there, and they are left to the caller.
    """
    future = run.futures[case.id]
    is_live = stream.isatty() and not future.done()
    if is_live and below_column:
        stream.write("\n")
    while not future.done():
        if is_live:
            line = run.progress.line()[: shutil.get_terminal_size().columns - 1]
            stream.write(f"\r{line}\x1b[K")
            stream.flush()
        concurrent.futures.wait([future], timeout=0.5)
        if not below_column:
            _write_notes(run.progress, stream, is_live)
    if is_live:
        up = f"\x1b[1A\x1b[{below_column}G" if below_column else ""
        stream.write(f"\r\x1b[K{up}")
        stream.flush()
    return future.result()


def _write_notes(progress: Progress, stream: TextIO, is_live: bool) -> None:
    while progress.notes:
        wipe = "\r\x1b[K" if is_live else ""
        stream.write(f"{wipe}{progress.notes.popleft()}\n")
        stream.flush()

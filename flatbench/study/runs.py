"""Training the cases of a study: the same call as `flatbench run`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flatbench import execution
from flatbench.protocols.cases import Case
from flatbench.records.record import Record
from flatbench.records.store import Store


@dataclass(frozen=True)
class Machine:
    """Where a study's cases run."""

    device: str = "auto"
    workers: int | None = None  # processes; None: one a core, or one a GPU
    data_dir: Path | None = None


def machine_of(options: argparse.Namespace) -> Machine:
    """Return the machine that a command's options name."""
    return Machine(options.device, options.workers, options.data_dir)


def train(cases: Sequence[Case], machine: Machine, store: Store) -> list[Record]:
    """Train cases and return their records, in order; a terminal shows how far it has come.

    Raises:
        UsageError: as `flatbench.execution.start`, or another run trains into the same folder.
    """
    if not cases:
        return []
    with (
        store.held(cases),
        execution.start(
            cases,
            device=machine.device,
            workers=machine.workers,
            data_dir=machine.data_dir,
            store=store,
        ) as run,
    ):
        return [execution.follow(run, case, sys.stderr) for case in cases]

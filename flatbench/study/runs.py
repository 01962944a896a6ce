"""Training the cases of a study: the same call as `flatbench run`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from flatbench import execution
from flatbench.protocols.cases import Case
from flatbench.records.quantities import outcome_of, value_of
from flatbench.records.record import Record
from flatbench.records.store import Store


def train(
    cases: Sequence[Case],
    machine: execution.Machine,
    store: Store,
    tell: Callable[[str], None] | None = None,
) -> list[Record]:
    """Train cases and return their records, in order; a terminal shows how far it has come.

    Args:
        cases: what to train.
        machine: where.
        store: what takes the records.
        tell: takes a line for each case as soon as it has come to its end.

    Raises:
        UsageError: as `flatbench.execution.start`, or another run trains into the same folder.
    """
    if not cases:
        return []
    records = []
    with store.held(cases), execution.start(cases, machine, store) as run:
        for case in cases:
            record = execution.follow(run, case, sys.stderr)
            records.append(record)
            if tell is not None:
                reused = case.id in run.progress.reused
                again = " (finished before, not trained again)" if reused else ""
                tell(f"{record.id}: {_ended(record)}{again}")
    return records


def _ended(record: Record) -> str:
    """Return what a case came to: its accuracy or score, or why it has none."""
    if record.status != "completed":
        return record.reason or record.status
    outcome = outcome_of([record])
    value = value_of(record, outcome.name)
    return f"{value:.2f} %" if outcome.unit == "%" else f"{outcome.titled()} {value:.4g}"

"""Training the cases of a study: the same call as `flatbench run`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from flatbench import execution
from flatbench.protocols.cases import Case
from flatbench.records.record import Record
from flatbench.records.store import Store


def train(cases: Sequence[Case], machine: execution.Machine, store: Store) -> list[Record]:
    """Train cases and return their records, in order; a terminal shows how far it has come.

    Raises:
        UsageError: as `flatbench.execution.start`, or another run trains into the same folder.
    """
    if not cases:
        return []
    with store.held(cases), execution.start(cases, machine, store) as run:
        return [execution.follow(run, case, sys.stderr) for case in cases]

"""What the gate looks at: records by cell, their measures, and paired differences."""

from __future__ import annotations

from collections.abc import Iterable

from flatbench.records.record import Record
from flatbench.records.sections import Section


def records_by_cell(section: Section) -> dict[tuple[str, str], list[Record]]:
    """Return the records of each (architecture, optimizer) that has any."""
    found: dict[tuple[str, str], list[Record]] = {
        (architecture, optimizer): []
        for architecture in section.architectures
        for optimizer in section.optimizers
    }
    for record in section.records:
        found[record.architecture, record.optimizer].append(record)
    return {key: cell for key, cell in found.items() if cell}


def paired_differences(sam: Iterable[Record], base: Iterable[Record]) -> list[float]:
    """Return SAM − base in test accuracy for every seed that both have."""
    of_base = {r.seed: r.test_accuracy for r in base if r.test_accuracy is not None}
    return [
        record.test_accuracy - of_base[record.seed]
        for record in sam
        if record.test_accuracy is not None and record.seed in of_base
    ]

"""Train a grid and hold it to a baseline, in one call: what a CI job runs.

Whatever can be known of the baseline before the training is said before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from flatbench import report
from flatbench.errors import UsageError
from flatbench.execution import Machine
from flatbench.files import check_writable, write_atomically, write_json
from flatbench.gate import Thresholds, beside, compare, verdict, without_thresholds
from flatbench.protocols.cases import Case
from flatbench.protocols.protocol import Protocol
from flatbench.records.store import Store
from flatbench.study.runs import train
from flatbench.text import plain

WRITTEN: Final = ("gate.md", "gate.json", "gate-comment.md")
"""What a gate writes beside the records: all of it, the same for programs, and a short form."""


def gate(
    cases: Sequence[Case],
    baseline: Path | None,
    machine: Machine,
    store: Store,
    *,
    power: float | None = None,
    details: str | None = None,
) -> verdict.Verdict:
    """Train cases, hold their records to a baseline, write what was found and return it.

    Args:
        cases: of one protocol.
        baseline: records, or thresholds; None means the thresholds beside the protocol.
        machine: where the cases are trained.
        store: what takes the records.
        power: points of accuracy, of ``--require-power``; None asks for nothing.
        details: markdown that says where the rest is, for the end of the comment and the summary.

    Raises:
        UsageError: no baseline, or one that does not fit; or as `flatbench.study.runs.train`.
    """
    protocol = cases[0].protocol
    path = _usual(protocol) if baseline is None else baseline
    known = compare.read_baseline(path)
    _check(known, cases, path)
    folder = store.results / protocol.name
    for name in WRITTEN:
        check_writable(folder / name)
        (folder / name).unlink(missing_ok=True)  # an earlier gate's would be taken for this one's
    records = train(cases, machine, store, partial(print, flush=True))
    found = verdict.demand(compare.against(known, records), power)
    found = dataclasses.replace(found, title=f"{protocol.name}, held to {path.name}")
    tables = report.render(records, protocols=[protocol])
    write_json(folder / "gate.json", found.to_json())
    write_atomically(folder / "gate.md", f"{verdict.markdown(found)}\n{tables}".encode())
    short = verdict.markdown(found, verdict.COMMENT, details)
    write_atomically(folder / "gate-comment.md", short.encode())
    verdict.add_to_step_summary(found, details)
    return found


def _usual(protocol: Protocol) -> Path:
    """Return the thresholds that stand beside a protocol's file.

    Raises:
        UsageError: there are none.
    """
    path = beside(protocol)
    if not path.exists():
        raise UsageError(f"--baseline must be given: {without_thresholds(protocol, [path])}")
    return path


def _check(known: compare.Baseline, cases: Sequence[Case], path: Path) -> None:
    """Refuse a baseline that holds none of the cases, or that is of other settings."""
    protocol = cases[0].protocol
    if not compare.fits(known, protocol):
        raise UsageError(
            f"{path}: --baseline must be of protocol {protocol.name} with the content "
            f"{protocol.common_hash()}: make it anew with the protocol as it is now"
        )
    now = {(case.architecture, case.optimizer): case.cell_hash() for case in cases}
    before = _cells(known, protocol)
    if not now.keys() & before.keys():
        wanted = ", ".join("/".join(cell) for cell in now)
        raise UsageError(f"{path}: --baseline must have one of the cells {wanted}")
    for cell, content in now.items():
        if before.get(cell, content) != content:
            raise UsageError(
                f"{path}: --baseline must have the settings that {'/'.join(cell)} has in "
                f"{protocol.name} now (content {content}), got content {plain(before[cell])}: "
                "make it anew with the protocol as it is now"
            )


def _cells(known: compare.Baseline, protocol: Protocol) -> dict[tuple[str, str], str]:
    """Return the hash of each cell of a baseline that has one."""
    if isinstance(known, Thresholds):
        return {key: cell.cell_hash for key, cell in known.cells.items()}
    return {
        (record.architecture, record.optimizer): str(content)
        for record in known
        if record.protocol == protocol.name
        and (content := record.provenance.get("cell_hash")) is not None
    }

"""What is checked of records before they stand in the leaderboard."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from flatbench.errors import UsageError
from flatbench.protocols.cases import grid
from flatbench.protocols.protocol import Protocol, Row
from flatbench.protocols.tuning import with_values
from flatbench.records.reading import collect
from flatbench.records.record import Record
from flatbench.study.equal_terms import EQUAL
from flatbench.study.trials import trial_name, trials_of, tuning_of
from flatbench.study.tune import Tuned

TRIALS = "trials*.json.gz"  # the records of a tuning, packed
NOT_RANKED = ("baseline.json.gz",)  # other seeds, behind the thresholds


def check(protocol: Protocol, files: Mapping[Path, Sequence[Record]]) -> int:
    """Check the published records of a protocol; return how many gradients a row may take.

    Every cell has all seeds of the protocol, by its content as it is today and by committed code,
    and takes no more gradients than the most expensive row of the first file.

    Args:
        protocol: what was trained.
        files: the records of each file, the protocol's own first, then those that were handed in.

    Raises:
        UsageError: a record does not fit; one line names the file and the case.
    """
    allowed = max(r.gradient_evaluations for r in next(iter(files.values())))
    for path, records in files.items():
        found = {(r.architecture, r.optimizer, r.seed): r for r in records}
        rows = {r.optimizer for r in records}
        for row in rows - protocol.optimizers.keys():
            raise UsageError(f"{path}: {row} is no row of protocol {protocol.name!r}")
        for case in grid(protocol, optimizers=sorted(rows)):
            record = found.pop((case.architecture, case.optimizer, case.seed), None)
            if record is None:
                raise UsageError(f"{path}: {case.id} is missing")
            _check_one(record, f"{path}: {case.id}", case.cell_hash(), allowed)
        for architecture, row, seed in found:
            raise UsageError(
                f"{path}: {architecture}/{row}/seed{seed} is no case of {protocol.name!r}"
            )
    return allowed


def _check_one(record: Record, where: str, cell_hash: str, allowed: int) -> None:
    provenance = record.provenance
    if provenance.get("cell_hash") != cell_hash:
        raise UsageError(
            f"{where}: cell_hash must be {cell_hash}, that of the protocol as it is, "
            f"got {provenance.get('cell_hash')}"
        )
    if record.evaluation != "test":
        raise UsageError(f"{where}: evaluation must be 'test', got {record.evaluation!r}")
    if provenance.get("dirty") is not False:
        raise UsageError(f"{where}: dirty must be false: the code of a record is committed")
    if record.gradient_evaluations > allowed * (1 + EQUAL):
        raise UsageError(
            f"{where}: gradient_evaluations must be at most {allowed}, "
            f"got {record.gradient_evaluations}"
        )


def check_tuning(protocol: Protocol, folder: Path) -> int:
    """Check that a protocol's values are those that its committed trials chose.

    Every row has all of its trials, by its space as it is today, and the values of the best one.

    Args:
        protocol: has a ``[tuning]``.
        folder: holds the packed records of the trials.

    Returns:
        How many trials there are.

    Raises:
        UsageError: a trial is missing, or a row has other values; one line names it.
    """
    records = collect(sorted(folder.glob(TRIALS)))
    rows, architectures = tuple(tuning_of(protocol).space), protocol.model.names
    trials = trials_of(protocol, rows)
    there = {(r.architecture, r.optimizer, r.seed): r for r in records}
    for case in grid(trials):
        record = there.get((case.architecture, case.optimizer, case.seed))
        if record is None or record.provenance.get("cell_hash") != case.cell_hash():
            raise UsageError(f"{folder}: {case.id} is missing, or was another trial")
    tuned = Tuned(protocol, tuple(records), rows, architectures)
    for row, architecture in tuned.trials:
        own, best = protocol.optimizer(row, architecture), tuned.best(row, architecture)
        if best is not None and _as_json(own) != _as_json(with_values(own, best.values)):
            raise UsageError(
                f"protocol {protocol.name!r}: {row} on {architecture} must have the values of "
                f"{trial_name(row, best.number)}, its best trial: {dict(best.values)}"
            )
    return len(records)


def _as_json(row: Row) -> str:
    """Return a row as text, in which a list of the protocol's file and a tuple are the same."""
    return json.dumps(dataclasses.asdict(row))


def files_of(folder: Path) -> list[Path]:
    """Return the files of published records of a protocol, its own first."""
    own = folder / "benchmark.json"
    found = {*folder.glob("*.json"), *folder.glob("*.json.gz")}
    handed_in = (path for path in found if path != own and path.name not in NOT_RANKED)
    return [own, *sorted(handed_in)]

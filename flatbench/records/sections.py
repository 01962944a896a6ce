"""Records grouped by protocol into sections, within a section by cell, and across cells by seed.

The records of a section can share a table; records that cannot raise one clear error.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from flatbench.errors import UsageError
from flatbench.protocols.protocol import Protocol, Reference
from flatbench.protocols.reading import available, load
from flatbench.records.quantities import (
    FIELDS,
    QUANTITIES,
    TEST_ACCURACY,
    Quantity,
    outcome_of,
    value_of,
)
from flatbench.records.record import Record
from flatbench.text import plain

CellKey = tuple[str, str]  # architecture, row
Pair = tuple[Record, Record]  # two runs of one seed

# Two records of one case are the same result if these agree, whatever machine they come from.
_RESULTS = (
    "status",
    *(name for name, q in QUANTITIES.items() if q.reproducible and name in FIELDS),
    "sharpness",
)


@dataclass(frozen=True)
class Section:
    """One protocol's records, each case once, with the order of the table's rows and columns."""

    protocol: str
    evaluation: str  # the part that test_* were measured on: "test" or "validation"
    common_hash: str | None
    records: tuple[Record, ...]
    architectures: tuple[str, ...]
    optimizers: tuple[str, ...]
    base_of: Mapping[str, str]  # SAM row -> the row it is compared with
    base_optimizer: Mapping[str, str]  # row -> "sgd", "adam", ..., where the records say so
    reference: Reference | None  # published results, if the protocol's content is still the same
    compare_with: str | None  # the protocol to compare this one with, on the same condition

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """All seeds that any record has, in rising order."""
        return tuple(sorted({record.seed for record in self.records}))

    @cached_property
    def cells(self) -> Mapping[CellKey, Sequence[Record]]:
        """The records of every (architecture, row) that has any, in the table's order."""
        found = _by_cell(self.records)
        keys = itertools.product(self.architectures, self.optimizers)
        return {key: found[key] for key in keys if key in found}

    def cell(self, architecture: str, row: str) -> Sequence[Record]:
        """Return the records of a cell, which may be none."""
        return self.cells.get((architecture, row), ())

    @cached_property
    def outcome(self) -> Quantity:
        """What the runs are judged by."""
        return outcome_of(self.records)

    def gains(self, architecture: str, row: str, base: str) -> dict[int, float]:
        """Return by how much a row is better than another one, by seed."""
        outcome = self.outcome
        one, other = (self.values(architecture, r, outcome.name) for r in (row, base))
        sign = 1 if outcome.better == "higher" else -1
        return {seed: sign * _difference(one[seed], other[seed]) for seed in one if seed in other}

    def values(self, architecture: str, row: str, name: str) -> Mapping[int, float]:
        """Return a quantity of a cell's completed runs, by seed; runs that lack it are left out."""
        key = architecture, row, name
        if key not in self._values:  # a report asks for each some ten times
            self._values[key] = {
                record.seed: value
                for record in self.cell(architecture, row)
                if record.status == "completed" and (value := value_of(record, name)) is not None
            }
        return self._values[key]

    @cached_property
    def _values(self) -> dict[tuple[str, str, str], dict[int, float]]:
        return {}


def paired(cell: Iterable[Record], other: Iterable[Record]) -> dict[int, Pair]:
    """Return the runs of two cells by seed, for every seed that both completed."""
    theirs = {r.seed: r for r in other if r.status == "completed"}
    return {
        r.seed: (r, theirs[r.seed]) for r in cell if r.status == "completed" and r.seed in theirs
    }


def differences(pairs: Mapping[int, Pair], name: str = TEST_ACCURACY) -> dict[int, float]:
    """Return, by seed, a quantity of the first run less that of the second.

    Pairs where either run lacks it are left out.
    """
    values = {seed: [value_of(run, name) for run in pair] for seed, pair in pairs.items()}
    return {
        seed: _difference(one, other)
        for seed, (one, other) in values.items()
        if one is not None and other is not None
    }


def _difference(one: float, other: float) -> float:
    # rounding alone is no difference
    return 0.0 if math.isclose(one, other, rel_tol=1e-12) else one - other


def sections(records: Iterable[Record], protocols: Iterable[Protocol] = ()) -> list[Section]:
    """Group records by protocol, in the order first seen.

    Rows and columns come in the order of the protocol of that name, if it is among ``protocols``
    or flatbench's own, else in the order of their places in the file that the records were made by;
    rows and columns without a place come last, as first seen.

    Raises:
        UsageError: within one protocol, records of different protocol contents or evaluation
            parts, a row compared with two bases, or one case twice with different results.
    """
    by_protocol: dict[str, list[Record]] = {}
    for record in records:
        by_protocol.setdefault(record.protocol, []).append(record)
    given = {p.name: p for p in protocols}
    return [
        _section(name, group, given.get(name) or _published(name))
        for name, group in by_protocol.items()
    ]


def _published(name: str) -> Protocol | None:
    return load(name) if name in available() else None


def _section(name: str, records: Sequence[Record], protocol: Protocol | None) -> Section:
    label = plain(name)
    evaluation = _only(label, "evaluation", (r.evaluation for r in records))
    common_hash = _only(label, "provenance.common_hash", _hashes(records, "common_hash"))
    rows: dict[str, list[Record]] = {}
    for record in records:
        rows.setdefault(record.optimizer, []).append(record)
    for (architecture, optimizer), group in _by_cell(records).items():
        where = plain(f"{name}/{architecture}/{optimizer}")
        _only(where, "provenance.cell_hash", _hashes(group, "cell_hash"))
    bases: dict[str, dict[str, str]] = {"base_row": {}, "base": {}}
    for optimizer, group in rows.items():
        for key, found in bases.items():
            values = (getattr(r, key) for r in group if r.base is not None or key != "base")
            value = _only(plain(f"{name}/*/{optimizer}"), key, values)
            if value is not None:
                found[optimizer] = value
    same = protocol is not None and protocol.common_hash() == common_hash
    return Section(
        protocol=name,
        evaluation=evaluation or "test",
        common_hash=common_hash,
        records=tuple(_each_case_once(records)),
        architectures=_ordered(
            ((r.architecture, r.place[1] if r.place else None) for r in records),
            protocol.model.names if protocol else (),
        ),
        optimizers=_ordered(
            ((r.optimizer, r.place[0] if r.place else None) for r in records),
            tuple(protocol.optimizers) if protocol else (),
        ),
        base_of=bases["base_row"],
        base_optimizer=bases["base"],
        reference=protocol.reference if protocol is not None and same else None,
        compare_with=protocol.compare_with if protocol is not None and same else None,
    )


def _by_cell(records: Iterable[Record]) -> dict[CellKey, list[Record]]:
    found: dict[CellKey, list[Record]] = {}
    for record in records:
        found.setdefault((record.architecture, record.optimizer), []).append(record)
    return found


def _hashes(records: Iterable[Record], key: str) -> Iterable[str | None]:
    """Yield a provenance entry of each record, None where absent; skip failed runs without it.

    A worker that died may not have told what it was working on. A result that does not say what
    it is a result of can't be mixed with results that do.
    """
    for record in records:
        value = record.provenance.get(key)
        if value is not None or record.status != "failed":
            yield value if value is None or isinstance(value, str) else json.dumps(value)


def _only(where: str, field: str, values: Iterable[str | None]) -> str | None:
    distinct = list(dict.fromkeys(values))
    if len(distinct) > 1:
        found = ", ".join("none" if value is None else plain(value) for value in distinct)
        raise UsageError(
            f"{where}: {field} differs between records ({found}): "
            "only results of one and the same protocol can share a table"
        )
    return distinct[0] if distinct else None


def _each_case_once(records: Iterable[Record]) -> Iterable[Record]:
    seen: dict[str, Record] = {}
    for record in records:
        first = seen.setdefault(record.id, record)
        if first is record:
            yield record
            continue
        for field in _RESULTS:
            one, other = getattr(first, field), getattr(record, field)
            if one != other:
                raise UsageError(
                    f"{plain(record.id)}: is there twice with different results: "
                    f"{field} {one} and {other}; give one of the two"
                )


def _ordered(places: Iterable[tuple[str, int | None]], protocol: Sequence[str]) -> tuple[str, ...]:
    """Return distinct names: the protocol's in its order, then by place, then as first seen."""
    seen: dict[str, int | None] = {}
    for name, place in places:
        seen[name] = place if seen.get(name) is None else seen[name]

    def key(name: str) -> tuple[int, int]:
        if name in protocol:
            return 0, protocol.index(name)
        place = seen[name]
        return (2, 0) if place is None else (1, place)

    return tuple(sorted(seen, key=key))

"""Thresholds derived from many seeds, and what fails against them: one line a failure.

A bound is a one-sided prediction limit for one new seed (`flatbench.stats.prediction_bound`):
lower for the test accuracy, upper for every sharpness, on the scale that `flatbench.gate.scales`
gives the measure and for the reasons given there: the logarithm, of accuracies that of their error.

The default level, 0.999 a bound, is chosen for a whole grid: 4 rows x 2 architectures x 3 seeds
make 24 cases, each with 2 bounds, so that by Bonferroni's inequality a grid without a regression
fails with a probability of at most 48 x 0.001 = 4.8 %. A pair is asserted once a grid, and its mean
over few seeds is known less well: its level is 0.99, so each asserted pair adds at most 1 %.
`Thresholds.false_alarm_rate` gives the number for any grid.

No bound is made for a cell that diverged or failed in the baseline, for a measure that had the
same value under every seed (the spread is unknown then), or for one that some seed lacks. Such a
cell asserts no more than that its run completes; `unbounded` lists it with the reason.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from scipy import stats

from flatbench.errors import UsageError
from flatbench.files import write_atomically
from flatbench.gate.scales import Scale, scale_of, scaled, unscaled, worse_limit
from flatbench.gate.verdict import Outcome, Verdict
from flatbench.protocols.protocol import Protocol
from flatbench.protocols.schema import Check, Reader
from flatbench.records.record import Record
from flatbench.records.sections import Section, sections
from flatbench.stats import prediction_bound, summary
from flatbench.text import plain

LEVEL = 0.999
PAIR_LEVEL = 0.99
MINIMUM_SEEDS = 10
REFERENCE_STDS = 3.0  # below a published mean
MEASURES = ("test_accuracy", "sam_sharpness")

_LEVEL = Check(lambda x: 0.5 < x < 1, "a number between 0.5 and 1")
_TWO = Check(lambda x: x >= 2, "a whole number of at least 2")
_ONE = Check(lambda x: x >= 1, "a whole number of at least 1")
_NON_NEGATIVE = Check(lambda x: x >= 0, "a number of at least 0")


@dataclass(frozen=True)
class Bound:
    """What one new seed's measure must keep; ``mean`` and ``std`` are on the ``scale``."""

    side: Literal["at_least", "at_most"]
    limit: float
    scale: Scale
    mean: float
    std: Annotated[float, _NON_NEGATIVE]

    def keeps(self, value: float) -> bool:
        """Whether the value is on the right side; a value on the bound is."""
        return value >= self.limit if self.side == "at_least" else value <= self.limit


@dataclass(frozen=True)
class CellThreshold:
    """The bounds of one cell by measure, and why a measure has none."""

    n: Annotated[int, _TWO]
    cell_hash: str
    bounds: Mapping[str, Bound]
    unbounded: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PairThreshold:
    """The paired differences SAM − base in test accuracy; ``limit`` bounds their new mean."""

    base: str
    n: Annotated[int, _TWO]
    mean: float
    std: Annotated[float, _NON_NEGATIVE]
    limit: float  # lower prediction bound of the mean over the grid's number of seeds

    @property
    def positive(self) -> bool:
        """Whether the baseline says that a new grid's mean difference is above 0."""
        return self.limit > 0


@dataclass(frozen=True)
class Thresholds:
    """A protocol's thresholds; cells and pairs by (architecture, optimizer)."""

    protocol: str
    evaluation: Literal["test", "validation"]
    common_hash: str
    level: Annotated[float, _LEVEL]
    pair_level: Annotated[float, _LEVEL]
    seeds: tuple[int, ...]  # none: from published means and standard deviations
    grid_seeds: Annotated[int, _ONE]  # how many seeds a pair's new mean is taken over
    commit: str  # of the baseline's code; of published values, where they stand
    cells: Mapping[tuple[str, str], CellThreshold]
    pairs: Mapping[tuple[str, str], PairThreshold]

    @property
    def false_alarm_rate(self) -> float:
        """The most often that a grid without a regression fails (Bonferroni's inequality)."""
        bounds = sum(len(cell.bounds) for cell in self.cells.values())
        pairs = sum(pair.positive for pair in self.pairs.values())
        alarms = (1 - self.level) * bounds * self.grid_seeds + (1 - self.pair_level) * pairs
        return min(1.0, alarms)

    @property
    def renewal(self) -> str:
        """The commands that make these thresholds anew."""
        if not self.seeds:
            return (
                f"flatbench baseline --reference {self.protocol} "
                f"--output benchmarks/thresholds/{self.protocol}.toml"
            )
        seeds = ",".join(map(str, self.seeds))
        return (
            f"flatbench run --protocol {self.protocol} --seeds {seeds} --results baseline && "
            f"flatbench baseline baseline/{self.protocol}/records "
            f"--output benchmarks/thresholds/{self.protocol}.toml"
        )


def derive(
    records: Iterable[Record],
    level: float = LEVEL,
    pair_level: float = PAIR_LEVEL,
    grid_seeds: int = 3,
    measures: Sequence[str] = MEASURES,
) -> Thresholds:
    """Derive thresholds from the records of one protocol, at least 10 seeds in every cell.

    Args:
        records: the baseline's runs.
        level: of every bound of a case, in (0.5, 1).
        pair_level: of every bound of a pair's mean difference, in (0.5, 1).
        grid_seeds: over how many new seeds the mean paired difference will be taken.
        measures: ``test_accuracy`` (bounded below) and any sharpness (bounded above): the
            record's ``sam_sharpness`` or keys of its ``sharpness``.

    Raises:
        UsageError: no record, several protocols, fewer seeds than 10 in a cell, a record that
            does not say what protocol content or commit it comes from, or an unknown measure.
    """
    grouped = sections(records)
    if len(grouped) != 1:
        names = ", ".join(plain(s.protocol) for s in grouped) or "no record"
        raise UsageError(f"a baseline is one protocol's records, not those of {names}")
    section = grouped[0]
    label = plain(section.protocol)
    for name, value in (("level", level), ("pair_level", pair_level)):
        if not 0.5 < value < 1:
            raise UsageError(f"{name} = {value}: allowed is {_LEVEL.allowed}")
    for key in ("common_hash", "cell_hash", "commit"):
        if not all(isinstance(r.provenance.get(key), str) for r in section.records):
            raise UsageError(f"{label}: a record of the baseline does not say provenance.{key}")
    for name in (section.protocol, *section.architectures, *section.optimizers):
        if plain(name) != name:
            raise UsageError(f"{plain(name)}: a name in a baseline must be printable")
    by_cell = _by_cell(section)
    for cell_key, cell in by_cell.items():
        if len(cell) < MINIMUM_SEEDS:
            raise UsageError(
                f"{label}/{'/'.join(cell_key)}: {len(cell)} seed(s) in the baseline; "
                f"at least {MINIMUM_SEEDS} are needed"
            )
    for measure in measures:
        if not any(measure in _measured(record) for record in section.records):
            raise UsageError(f"{label}: no record in the baseline measured {plain(measure)!r}")
    return Thresholds(
        protocol=section.protocol,
        evaluation="validation" if section.evaluation == "validation" else "test",
        common_hash=section.records[0].provenance["common_hash"],
        level=level,
        pair_level=pair_level,
        seeds=section.seeds,
        grid_seeds=grid_seeds,
        commit=_commit(section.records),
        cells={key: _cell(cell, level, measures) for key, cell in by_cell.items()},
        pairs=dict(_pairs(section, by_cell, pair_level, grid_seeds)),
    )


def from_reference(protocol: Protocol) -> Thresholds:
    """Return thresholds at the published mean less three standard deviations, a cell each.

    Three standard deviations of n seeds are the prediction bound of one new seed at the level
    t(3 / sqrt(1 + 1/n), n − 1), which is all that so few seeds allow: 0.94 for n = 3.

    Raises:
        UsageError: the protocol has no ``[reference]``, or one of a single seed.
    """
    reference = protocol.reference
    if reference is None or reference.seeds < 2:
        found = "no [reference]" if reference is None else f"reference.seeds = {reference.seeds}"
        raise UsageError(
            f"--reference: protocol {protocol.name} has {found}: allowed is one with published "
            "results of at least 2 seeds"
        )
    n = reference.seeds
    cells = {
        (architecture, row): CellThreshold(
            n,
            protocol.cell_hash(row, architecture),
            {"test_accuracy": Bound("at_least", mean - REFERENCE_STDS * std, "linear", mean, std)},
        )
        for architecture, rows in reference.test_accuracy.items()
        for row, (mean, std) in rows.items()
    }
    return Thresholds(
        protocol=protocol.name,
        evaluation=protocol.data.evaluation,
        common_hash=protocol.common_hash(),
        level=float(stats.t.cdf(REFERENCE_STDS / math.sqrt(1 + 1 / n), n - 1)),
        pair_level=PAIR_LEVEL,
        seeds=(),
        grid_seeds=n,
        commit=reference.source,
        cells=cells,
        pairs={},
    )


def _by_cell(section: Section) -> dict[tuple[str, str], list[Record]]:
    found: dict[tuple[str, str], list[Record]] = {
        (architecture, optimizer): []
        for architecture in section.architectures
        for optimizer in section.optimizers
    }
    for record in section.records:
        found[record.architecture, record.optimizer].append(record)
    return {key: cell for key, cell in found.items() if cell}


def _measured(record: Record) -> dict[str, float]:
    """Return every measure of a record that has a value."""
    values = {
        **record.sharpness,
        "test_accuracy": record.test_accuracy,
        "sam_sharpness": record.sam_sharpness,
    }
    return {name: value for name, value in values.items() if value is not None}


def _commit(records: Iterable[Record]) -> str:
    """Return the commits that the records were made at; dirty trees are named so."""
    return ", ".join(
        dict.fromkeys(
            plain(record.provenance["commit"])[:12]
            + ("+dirty" if record.provenance.get("dirty") else "")
            for record in records
        )
    )


def _cell(cell: Sequence[Record], level: float, measures: Sequence[str]) -> CellThreshold:
    bounds: dict[str, Bound] = {}
    unbounded: dict[str, str] = {}
    lost = sum(record.status != "completed" for record in cell)
    for measure in measures:
        values = [v for r in cell if (v := _measured(r).get(measure)) is not None]
        if lost:
            unbounded[measure] = f"{lost} of {len(cell)} seeds diverged or failed"
        elif len(values) < len(cell):
            unbounded[measure] = f"{len(cell) - len(values)} of {len(cell)} seeds have no value"
        elif min(values) == max(values):
            unbounded[measure] = f"all {len(cell)} seeds have the value {values[0]}"
        else:
            bounds[measure] = _bound(measure, values, level)
    return CellThreshold(len(cell), cell[0].provenance["cell_hash"], bounds, unbounded)


def _bound(measure: str, values: Sequence[float], level: float) -> Bound:
    scale = scale_of(measure, values)
    s = summary(scaled(values, scale))
    mean, std = s.mean or 0.0, s.std or 0.0
    limit = worse_limit(measure, mean, std, s.n, level, scale)
    return Bound("at_least" if measure == "test_accuracy" else "at_most", limit, scale, mean, std)


def _pairs(
    section: Section,
    by_cell: Mapping[tuple[str, str], Sequence[Record]],
    level: float,
    grid_seeds: int,
) -> Iterable[tuple[tuple[str, str], PairThreshold]]:
    for architecture in section.architectures:
        for row, base in section.base_of.items():
            differences = _differences(
                by_cell.get((architecture, row), ()), by_cell.get((architecture, base), ())
            )
            if len(differences) >= MINIMUM_SEEDS and min(differences) < max(differences):
                s = summary(differences)
                limit = prediction_bound(differences, level, "lower", grid_seeds)
                yield (
                    (architecture, row),
                    PairThreshold(base, s.n, s.mean or 0.0, s.std or 0.0, limit),
                )


def _differences(sam: Iterable[Record], base: Iterable[Record]) -> list[float]:
    """Return SAM − base in test accuracy for every seed that both have."""
    of_base = {r.seed: r.test_accuracy for r in base if r.test_accuracy is not None}
    return [
        record.test_accuracy - of_base[record.seed]
        for record in sam
        if record.test_accuracy is not None and record.seed in of_base
    ]


def check_case(record: Record, thresholds: Thresholds) -> list[str]:
    """Return what fails in one record, one line each; nothing where all is well.

    A run that diverged or failed fails. A cell without a baseline asserts no more than that; see
    `unbounded`.
    """
    changed = _protocol_changed(record, thresholds) or _row_changed(record, thresholds)
    if changed:
        return [changed]
    if record.status != "completed":
        return [f"{plain(record.id)}: {record.status}: {plain(record.reason or 'no reason given')}"]
    cell = thresholds.cells.get((record.architecture, record.optimizer))
    if cell is None:
        return []
    measured = _measured(record)
    failures = []
    for measure, bound in cell.bounds.items():
        value = measured.get(measure)
        if value is None:
            failures.append(
                f"{plain(record.id)}: {plain(measure)} was not measured; "
                f"baseline: {_basis(cell.n, thresholds)}"
            )
        elif not bound.keeps(value):
            side = "below" if bound.side == "at_least" else "above"
            kind = "lower" if bound.side == "at_least" else "upper"
            failures.append(
                f"{plain(record.id)}: {plain(measure)} {_shown(value)} is {side} "
                f"{_shown(bound.limit)}, the {kind} prediction bound of one new seed; "
                f"baseline: {_typical(bound)} over {_basis(cell.n, thresholds)}"
            )
    return failures


def check_pairs(records: Iterable[Record], thresholds: Thresholds) -> list[str]:
    """Return, one line each, the pairs whose mean difference is not positive but should be.

    A pair is asserted where the baseline predicts it positive and at least as many seeds of both
    rows completed as the prediction is for; a run that did not complete fails on its own.

    Raises:
        UsageError: records that cannot share a table; see `flatbench.records.sections`.
    """
    failures = []
    for section in sections(records):
        changed = _protocol_changed(section.records[0], thresholds)
        if changed:
            failures.append(changed)
            continue
        by_cell = _by_cell(section)
        for (architecture, row), pair in thresholds.pairs.items():
            sam = by_cell.get((architecture, row), [])
            base = by_cell.get((architecture, pair.base), [])
            if any(_row_changed(record, thresholds) for record in (*sam, *base)):
                continue  # each of its cases fails for that
            differences = _differences(sam, base)
            if not pair.positive or len(differences) < thresholds.grid_seeds:
                continue
            mean = sum(differences) / len(differences)
            if mean <= 0:
                failures.append(
                    f"{plain(f'{section.protocol}/{architecture}: {row} − {pair.base}')}: "
                    f"mean paired difference in test_accuracy {mean:+.2f} over "
                    f"{len(differences)} seeds is not above 0; baseline: {pair.mean:+.2f} ± "
                    f"{pair.std:.2f}, bound {pair.limit:+.2f}, over "
                    f"{_basis(pair.n, thresholds, thresholds.pair_level)}"
                )
    return failures


def judge(records: Iterable[Record], thresholds: Thresholds) -> Verdict:
    """Check a whole grid: every case, every pair, and what there is no baseline for.

    Raises:
        UsageError: records that cannot share a table; see `flatbench.records.sections`.
    """
    listed = list(records)
    cases = [(record, "; ".join(check_case(record, thresholds))) for record in listed]
    outcomes = [
        Outcome(plain(r.id), not failed, failed or f"{plain(r.id)}: keeps its bounds")
        for r, failed in cases
    ]
    pairs = check_pairs(listed, thresholds)
    outcomes += [Outcome(line.partition(": mean")[0], False, line) for line in pairs]
    return Verdict(
        f"Thresholds of {thresholds.protocol}",
        tuple(outcomes),
        tuple(unbounded(listed, thresholds)),
        thresholds.false_alarm_rate,
    )


def unbounded(records: Iterable[Record], thresholds: Thresholds) -> list[str]:
    """Return, one line each, the cells or measures of these records that nothing is asserted of."""
    lines = []
    for architecture, row in dict.fromkeys((r.architecture, r.optimizer) for r in records):
        where = plain(f"{thresholds.protocol}/{architecture}/{row}")
        cell = thresholds.cells.get((architecture, row))
        if cell is None:
            lines.append(f"{where}: no baseline")
            continue
        lines += [f"{where}: no baseline for {m}: {why}" for m, why in cell.unbounded.items()]
    return lines


def _protocol_changed(record: Record, thresholds: Thresholds) -> str | None:
    """Return why the thresholds do not speak of a record's protocol, if they do not."""
    where = plain(record.id)
    if record.protocol != thresholds.protocol:
        return f"{where}: the thresholds are of protocol {plain(thresholds.protocol)}"
    if record.evaluation != thresholds.evaluation:
        return (
            f"{where}: measured on the {record.evaluation} part, "
            f"the baseline on the {thresholds.evaluation} part"
        )
    found = record.provenance.get("common_hash")
    if found == thresholds.common_hash or (found is None and record.status == "failed"):
        return None
    return (
        f"{where}: the protocol changed since the baseline (content {plain(str(found))}, "
        f"baseline {plain(thresholds.common_hash)}); renew it: {thresholds.renewal}"
    )


def _row_changed(record: Record, thresholds: Thresholds) -> str | None:
    """Return why the thresholds do not speak of a record's cell, if they do not."""
    cell = thresholds.cells.get((record.architecture, record.optimizer))
    found = record.provenance.get("cell_hash")
    if cell is None or found == cell.cell_hash or (found is None and record.status == "failed"):
        return None
    return (
        f"{plain(record.id)}: the row's settings changed since the baseline (content "
        f"{plain(str(found))}, baseline {plain(cell.cell_hash)}); renew it: {thresholds.renewal}"
    )


def _typical(bound: Bound) -> str:
    middle = _shown(unscaled(bound.mean, bound.scale))
    if bound.scale == "linear":
        return f"{middle} ± {_shown(bound.std)}"
    return (
        f"{middle}{' with the error' * (bound.scale == 'log-error')} ×/÷ {math.exp(bound.std):.3g}"
    )


def _basis(n: int, thresholds: Thresholds, level: float | None = None) -> str:
    level = thresholds.level if level is None else level
    source = f"commit {thresholds.commit}" if thresholds.seeds else thresholds.commit
    return f"{n} seeds, level {level:g}, {plain(source)}"


def _shown(value: float) -> str:
    return f"{value:.4g}"


_HEADER = """\
# Derived from {origin}, not written by hand; to derive them anew:
#   {renewal}
# Each limit of a cell is a one-sided prediction bound of one new seed, at "level"; each limit of a
# pair bounds the mean difference over {grid_seeds} new seeds, at "pair_level". A grid of all cells
# and {grid_seeds} seeds without a regression fails with a probability of at most {rate:.1%}.
"""


def write_thresholds(path: Path, thresholds: Thresholds) -> None:
    """Write thresholds as TOML, atomically."""
    t = thresholds
    lines = [
        _HEADER.format(
            origin="the runs named below" if t.seeds else "the published values",
            renewal=t.renewal,
            grid_seeds=t.grid_seeds,
            rate=t.false_alarm_rate,
        ),
        *(
            f"{key} = {_toml(getattr(t, key))}"
            for key in ("protocol", "evaluation", "common_hash", "level", "pair_level")
        ),
        *(f"{key} = {_toml(getattr(t, key))}" for key in ("seeds", "grid_seeds")),
        f"commit = {_toml(t.commit)}",
    ]
    for (architecture, row), cell in t.cells.items():
        lines += [
            f"\n[cells.{_toml(architecture)}.{_toml(row)}]",
            f"n = {cell.n}",
            f"cell_hash = {_toml(cell.cell_hash)}",
        ]
        for measure, b in cell.bounds.items():
            values = ", ".join(
                f"{k} = {_toml(getattr(b, k))}" for k in ("side", "limit", "scale", "mean", "std")
            )
            lines.append(f"bounds.{_toml(measure)} = {{ {values} }}")
        lines += [f"unbounded.{_toml(m)} = {_toml(why)}" for m, why in cell.unbounded.items()]
    for (architecture, row), pair in t.pairs.items():
        says = "asserted: above 0" if pair.positive else "not asserted: may well be below 0"
        lines += [
            f"\n[pairs.{_toml(architecture)}.{_toml(row)}]  # {says}",
            *(f"{k} = {_toml(getattr(pair, k))}" for k in ("base", "n", "mean", "std", "limit")),
        ]
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def _toml(value: object) -> str:
    """Return a string, number or tuple of numbers as TOML.

    JSON's strings are TOML's basic strings but for DEL, which TOML wants escaped.
    """
    if isinstance(value, tuple):
        return json.dumps(list(value))
    return json.dumps(value, allow_nan=False, ensure_ascii=False).replace("\x7f", "\\u007f")


def read_thresholds(path: Path) -> Thresholds:
    """Read thresholds.

    Raises:
        UsageError: the file cannot be read, is not TOML, or holds a key that is unknown, missing
            or of the wrong type.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, or too long or deep
        raise UsageError(f"{path}: is not TOML: {error}") from None
    reader = Reader(path)
    cells = {}
    for key, where, cell in _nested(reader, table.pop("cells", {}), "cells"):
        bounds = reader.table(cell.pop("bounds", {}), f"{where}.bounds")
        cells[key] = reader.read(
            CellThreshold,
            cell,
            f"{where}.",
            bounds={
                measure: reader.read(
                    Bound,
                    reader.table(bound, f"{where}.bounds.{measure}"),
                    f"{where}.bounds.{measure}.",
                )
                for measure, bound in bounds.items()
            },
        )
    pairs = {
        key: reader.read(PairThreshold, pair, f"{where}.")
        for key, where, pair in _nested(reader, table.pop("pairs", {}), "pairs")
    }
    return reader.read(Thresholds, table, cells=cells, pairs=pairs)


def _nested(
    reader: Reader, table: object, name: str
) -> Iterable[tuple[tuple[str, str], str, dict[str, Any]]]:
    """Yield the tables of ``[name.architecture.row]`` with their keys."""
    for architecture, rows in reader.table(table, name).items():
        for row, values in reader.table(rows, f"{name}.{architecture}").items():
            where = f"{name}.{architecture}.{row}"
            yield (architecture, row), where, dict(reader.table(values, where))

"""Has anything become worse? A grid against the records of a baseline, cell by cell.

A cell's measure has regressed where the mean over the current seeds lies outside the one-sided
prediction limit that the baseline's seeds give for such a mean (`stats.prediction_limit`). The
limits' level is set from the wanted false-alarm rate of the whole comparison: with k limits each
is crossed with probability alarm / k, so that by Bonferroni's inequality a grid without a
regression fails with probability at most ``alarm``. docs/gate.md has that rate simulated, and the
drop that is found 9 times out of 10.

Means and limits are taken on the scale that `flatbench.gate.scales` gives the measure. Time is
training time divided by that of a fixed piece of work timed beside it, so that a slower machine is
not a regression. Time and memory vary for reasons that seeds do not show, so they must also be
worse by a margin: see `MARGINS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flatbench import gate
from flatbench.errors import UsageError
from flatbench.gate.scales import scale_of, scaled, unscaled, worse_limit
from flatbench.gate.verdict import Outcome, Verdict
from flatbench.protocols.protocol import Protocol
from flatbench.records.quantities import costs_of, quantity, results_of
from flatbench.records.reading import collect
from flatbench.records.record import Record
from flatbench.records.sections import Section, sections
from flatbench.stats import summary
from flatbench.text import plain

ALARM = 0.05

# By what share a mean must be worse, besides crossing its limit: on a device of the same name, and
# on another one.
MARGINS = {"relative_time": (0.10, 1.00), "peak_memory": (0.05, 0.05)}


@dataclass(frozen=True)
class _Comparison:
    """One measure of one cell: at least two values in the baseline, at least one now."""

    where: str
    measure: str
    baseline: tuple[float, ...]
    current: tuple[float, ...]
    margin: float


def compare(baseline: Iterable[Record], current: Iterable[Record], alarm: float = ALARM) -> Verdict:
    """Compare accuracy, every sharpness, relative time and memory in the cells that both have.

    A run that diverged or failed now is a regression unless the baseline has such a run in its
    cell.

    Args:
        baseline: records of at least two seeds for each cell to be compared.
        current: the records to check. A protocol that the baseline has too must have the same
            content in both.
        alarm: the false-alarm rate of the whole comparison, in (0, 1).

    Raises:
        UsageError: nothing to compare, or protocol contents that differ between the two.
    """
    if not 0 < alarm < 1:
        raise UsageError(f"alarm must be a number between 0 and 1, got {alarm}")
    before = {section.protocol: section for section in sections(baseline)}
    now = {section.protocol: section for section in sections(current)}
    runs: list[Outcome] = []
    notes: list[str] = []
    comparisons: list[_Comparison] = []
    for name, section in now.items():
        if name not in before:
            notes.append(f"{plain(name)}: not in the baseline")
            continue
        found, lost, left = _section(before[name], section)
        comparisons += found
        runs += lost
        notes += left
    notes += [f"{plain(name)}: only in the baseline" for name in before if name not in now]
    if not comparisons and not runs:
        why = f" ({notes[0]})" if notes else ""
        raise UsageError(f"baseline and current records have nothing to compare{why}")
    # All comparisons are collected before any is judged: the level depends on their number.
    level = 1 - alarm / max(len(comparisons), 1)
    return Verdict(
        "Comparison with the baseline",
        (*runs, *(_outcome(comparison, level) for comparison in comparisons)),
        tuple(notes),
        alarm if comparisons else 0.0,
    )


def _section(before: Section, now: Section) -> tuple[list[_Comparison], list[Outcome], list[str]]:
    """Return what to compare in one protocol, its lost runs that are regressions, and notes."""
    for key in ("evaluation", "common_hash"):
        _same(now.protocol, key, getattr(before, key), getattr(now, key))
    old, new = before.cells, now.cells
    comparisons: list[_Comparison] = []
    runs: list[Outcome] = []
    notes: list[str] = []
    for cell, records in new.items():
        where = plain(f"{now.protocol}/{'/'.join(cell)}")
        if cell not in old:
            notes.append(f"{where}: no baseline")
            continue
        _same(where, "cell_hash", *(_hash(records) for records in (old[cell], records)))
        lost_before = [r for r in old[cell] if r.status != "completed"]
        for record in records:
            if record.status != "completed":
                line = f"{plain(record.id)}: {record.status}: {plain(record.reason or '')}"
                # A cell that lost runs in the baseline has not become worse by losing one now.
                if lost_before:
                    notes.append(f"{line} (as {len(lost_before)} of the baseline's seeds)")
                else:
                    runs.append(Outcome(plain(record.id), False, line))
        for measure in dict.fromkeys(m for r in old[cell] for m in _measured(r)):
            made = _comparison(where, measure, old[cell], records)
            if isinstance(made, str):
                notes.append(f"{where}: {plain(measure)} not compared: {made}")
            else:
                comparisons.append(made)
    notes += [
        f"{plain(f'{now.protocol}/{a}/{row}')}: only in the baseline"
        for a, row in old
        if (a, row) not in new
    ]
    return comparisons, runs, notes


def _hash(records: Sequence[Record]) -> object:
    """Return the hash that a cell's records share, or None; a failed run may lack it."""
    return next((h for r in records if (h := r.provenance.get("cell_hash")) is not None), None)


def _same(where: str, key: str, before: object, now: object) -> None:
    if before != now:
        raise UsageError(
            f"{plain(where)}: {key} is {plain(str(before))} in the baseline and "
            f"{plain(str(now))} now: results of two protocols can't be compared"
        )


def _measured(record: Record) -> dict[str, float]:
    """Return the values of a completed run that can become worse, by name."""
    return results_of(record) | costs_of(record)


def _comparison(
    where: str, measure: str, before: Sequence[Record], now: Sequence[Record]
) -> _Comparison | str:
    """Return the comparison of a measure, or why it is not compared."""
    old = tuple(v for r in before if (v := _measured(r).get(measure)) is not None)
    new = tuple(v for r in now if (v := _measured(r).get(measure)) is not None)
    if not new:
        return "no value now"
    if len(old) < 2:
        return "one seed in the baseline says nothing about the spread"
    margin = 0.0
    if measure in MARGINS:
        same, other = MARGINS[measure]
        if _values(before, "device_kind") != _values(now, "device_kind"):
            return "another kind of device"
        margin = same if _values(before, "device") == _values(now, "device") else other
    elif min(old) == max(old):
        # Without a spread the limit is the mean itself: any change for the worse would cross it.
        return f"all {len(old)} seeds of the baseline have the value {old[0]:g}"
    return _Comparison(where, measure, old, new, margin)


def _values(records: Sequence[Record], key: str) -> set[str]:
    return {str(record.provenance.get(key)) for record in records}


def _outcome(c: _Comparison, level: float) -> Outcome:
    # One scale for both sides, so a current value without a logarithm makes the baseline linear.
    scale = scale_of(c.measure, (*c.baseline, *c.current))
    before = summary(scaled(c.baseline, scale))
    middle = unscaled(before.mean or 0.0, scale)
    limit = worse_limit(
        c.measure, before.mean or 0.0, before.std or 0.0, before.n, level, scale, len(c.current)
    )
    if c.margin:  # only costs have one, and their limits are upper ones
        limit = max(limit, middle * (1 + c.margin))
    mean = unscaled(summary(scaled(c.current, scale)).mean or 0.0, scale)
    falls = quantity(c.measure).better == "higher"
    passed = mean >= limit if falls else mean <= limit
    relation = ("at least" if passed else "below") if falls else ("at most" if passed else "above")
    line = (
        f"{c.where}: {plain(c.measure)} {mean:.4g} over {len(c.current)} seed(s) is {relation} "
        f"{limit:.4g}; baseline: {middle:.4g}, from {min(c.baseline):.4g} to "
        f"{max(c.baseline):.4g}, over {before.n} seeds; level {level:.6g}"
    )
    if c.margin:
        line += f", margin {100 * c.margin:.0f} %"
    return Outcome(f"{c.where}: {plain(c.measure)}", passed, line)


Baseline = gate.Thresholds | list[Record]


def read_baseline(path: Path) -> Baseline:
    """Read a baseline: a file of thresholds (``.toml``), or records (JSON, or a folder of it).

    Raises:
        UsageError: it cannot be read.
    """
    return gate.read_thresholds(path) if path.suffix == ".toml" else collect([path])


def against(baseline: Baseline, records: Iterable[Record], alarm: float = ALARM) -> Verdict:
    """Check records against a baseline.

    ``alarm`` is for a baseline of records; thresholds have a level of their own.

    Raises:
        UsageError: the baseline does not fit the records.
    """
    if isinstance(baseline, gate.Thresholds):
        return gate.judge(records, baseline)
    return compare(baseline, records, alarm)


def fits(baseline: Baseline, protocol: Protocol) -> bool:
    """Return whether a baseline was made with the present content of the protocol, rows apart."""
    if isinstance(baseline, gate.Thresholds):
        known = {baseline.protocol: baseline.common_hash}
    else:
        known = {s.protocol: s.common_hash or "" for s in sections(baseline)}
    return known.get(protocol.name) == protocol.common_hash()

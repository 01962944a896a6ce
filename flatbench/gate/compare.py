"""Has anything become worse? A grid against the records of a baseline, cell by cell.

A cell's measure has regressed where the mean over the current seeds lies outside the one-sided
prediction limit that the baseline's seeds give for such a mean (`flatbench.gate.limits`). The
limits' levels are set from the wanted false-alarm rate of the whole comparison: what the runs are
judged by has half of it, and all other measures the other half. With k limits that share a half,
each is crossed with probability alarm / 2k, so that by Bonferroni's inequality a grid without a
regression fails with probability at most ``alarm``. docs/gate.md has that rate simulated, and the
drop that is found 9 times out of 10.

Means and limits are taken on the scale that `flatbench.gate.scales` gives the measure. A cell with
few seeds borrows its spread from the others: `flatbench.gate.spread`. Time is training time divided
by that of a fixed piece of work timed beside it, so that a slower machine is not a regression. Time
and memory vary for reasons that seeds do not show, so they must also be worse by a margin: see
`MARGINS`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from flatbench import gate
from flatbench.errors import UsageError
from flatbench.gate.limits import Limit, chance, kept, power, row_of, seeds, shown
from flatbench.gate.scales import Scaling, scaling_of
from flatbench.gate.spread import Spread, moderated, pooled, spread_of
from flatbench.gate.verdict import Outcome, Verdict
from flatbench.protocols.protocol import Protocol
from flatbench.protocols.reading import available, load
from flatbench.records.published import published
from flatbench.records.quantities import OUTCOMES, costs_of, quantity, results_of
from flatbench.records.reading import collect
from flatbench.records.record import Record
from flatbench.records.sections import CellKey, Section, sections
from flatbench.stats import without_rounding
from flatbench.text import plain

ALARM = 0.05

# By what share a mean must be worse, besides crossing its limit: on a device of the same name, and
# on another one.
MARGINS = {"relative_time": (0.10, 1.00), "peak_memory": (0.05, 0.05)}


@dataclass(frozen=True)
class _Comparison:
    """One measure of one cell, with a value at least in the baseline and now."""

    where: str
    limit: Limit  # its level is set once all comparisons are known
    baseline: tuple[float, ...]
    current: tuple[float, ...]
    repeated: bool  # whether the current seeds gave the very numbers that they gave before


@dataclass
class _Found:
    """What a comparison consists of."""

    comparisons: list[_Comparison] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)  # what needs no limit to be judged
    notes: list[str] = field(default_factory=list)


def compare(baseline: Iterable[Record], current: Iterable[Record], alarm: float = ALARM) -> Verdict:
    """Compare accuracy, every sharpness, relative time and memory in the cells that both have.

    A run that diverged or failed now is a regression unless the baseline has such a run in its
    cell. What cannot be compared is an outcome that can't be checked, or a note where it was not
    asked for.

    Args:
        baseline: the records to hold the current ones to.
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
    found = _Found()
    for name, section in now.items():
        if name in before:
            _section(before[name], section, found)
        else:
            found.notes.append(_stranger(section, before.values()))
    found.notes += [f"{plain(name)}: only in the baseline" for name in before if name not in now]
    if not found.comparisons and not any(outcome.failed for outcome in found.outcomes):
        why = [*(outcome.line for outcome in found.outcomes), *found.notes]
        raise UsageError(
            f"baseline and current records have nothing to compare{f' ({why[0]})' if why else ''}"
        )
    return Verdict(
        "Comparison with the baseline",
        (*found.outcomes, *_judged(found.comparisons, alarm)),
        tuple(found.notes),
        alarm if found.comparisons else 0.0,
    )


def _judged(comparisons: Sequence[_Comparison], alarm: float) -> Iterable[Outcome]:
    """Yield the outcomes, each at its level.

    What the runs are judged by gets half of the alarms, however many sharpness measures there are:
    their number must not cost the accuracy its limits.
    """
    limited = [c for c in comparisons if c.limit.std is not None]
    main = sum(c.limit.scaling.measure in OUTCOMES for c in limited)
    rest = len(limited) - main
    share = 0.5 if main and rest else 1.0
    for c in comparisons:
        number = main if c.limit.scaling.measure in OUTCOMES else rest
        level = 1 - share * alarm / max(number, 1)
        yield _outcome(dataclasses.replace(c, limit=dataclasses.replace(c.limit, level=level)))


def _stranger(section: Section, known: Iterable[Section]) -> str:
    """Return what is said of a protocol that the baseline lacks; a copy has another name there."""
    copied = [s.protocol for s in known if s.common_hash == section.common_hash]
    twin = f", which has its content under the name {plain(copied[0])}" if copied else ""
    return f"{plain(section.protocol)}: not in the baseline{twin}"


def _section(before: Section, now: Section, found: _Found) -> None:
    """Add what one protocol has to compare, what failed or can't be checked, and notes."""
    for key in ("evaluation", "common_hash"):
        _same(now.protocol, key, getattr(before, key), getattr(now, key))
    spreads = _Spreads(before, chance(now.protocol, now.common_hash))
    found.notes += _repeated(before, now)
    for cell, records in now.cells.items():
        where = plain(f"{now.protocol}/{'/'.join(cell)}")
        old = before.cell(*cell)
        if not old:
            found.outcomes.append(_unable(where, "no baseline"))
            continue
        _same(where, "cell_hash", _hash(old), _hash(records))
        _lost(old, records, found)
        both = spreads.baseline[cell], _Runs(records)
        for measure in dict.fromkeys(m for runs in both for run in runs.measured for m in run):
            _measure(f"{where}: {plain(measure)}", measure, *both, spreads, cell, found)
    found.notes += [
        f"{plain(f'{now.protocol}/{a}/{row}')}: only in the baseline"
        for a, row in before.cells
        if (a, row) not in now.cells
    ]


def _lost(old: Sequence[Record], new: Sequence[Record], found: _Found) -> None:
    """Add the runs of a cell that diverged or failed now."""
    before = sum(record.status != "completed" for record in old)
    for record in new:
        if record.status != "completed":
            line = f"{plain(record.id)}: {record.status}: {plain(record.reason or '')}"
            # A cell that lost runs in the baseline has not become worse by losing one now.
            if before:
                found.notes.append(f"{line} (as {before} of the baseline's seeds)")
            else:
                found.outcomes.append(Outcome(plain(record.id), "failed", line))


@dataclass(frozen=True)
class _Runs:
    """Records of one cell, and what they measured, which is asked for again and again."""

    records: Sequence[Record]

    @cached_property
    def measured(self) -> list[dict[str, float]]:
        """The values of each run that can become worse, by name; none where it is not completed."""
        return [results_of(record) | costs_of(record) for record in self.records]

    def of(self, measure: str) -> tuple[float, ...]:
        """Return the values of a measure, of the runs that have one."""
        return tuple(run[measure] for run in self.measured if measure in run)

    def by_seed(self, measure: str) -> dict[int, float | None]:
        """Return the value of a measure of every run, None where it has none."""
        runs = zip(self.records, self.measured, strict=True)
        return {record.seed: run.get(measure) for record, run in runs}


def _measure(
    what: str,
    measure: str,
    old: _Runs,
    new: _Runs,
    spreads: _Spreads,
    cell: CellKey,
    found: _Found,
) -> None:
    """Add the comparison of one measure of one cell, or why there is none."""
    before, now = old.of(measure), new.of(measure)
    if measure in MARGINS and _differ("device_kind", old, new):
        found.notes.append(f"{what}: not compared: another kind of device")
    elif not before:
        found.outcomes.append(_unable(what, "no value in the baseline"))
    elif now:
        margin = MARGINS[measure][_differ("device", old, new)] if measure in MARGINS else 0.0
        limit = spreads.limit(cell, measure, before, len(now), margin)
        known, seeds_now = old.by_seed(measure), new.by_seed(measure)
        # whether all current runs are of seeds that gave the same value in the baseline
        same = all(seed in known and value == known[seed] for seed, value in seeds_now.items())
        found.comparisons.append(_Comparison(what, limit, before, now, same))
    elif any(record.status == "completed" for record in new.records):  # of lost runs enough is said
        found.outcomes.append(_unable(what, "no value now"))


def _unable(what: str, why: str) -> Outcome:
    return Outcome(what, "can't check", f"{what}: {why}")


class _Spreads:
    """The spreads of a baseline's measures, cell by cell.

    A cell with few seeds borrows from the protocol's published seeds, where they are of the same
    content, and from the other cells; see `flatbench.gate.spread`.
    """

    def __init__(self, section: Section, guessed: float | None) -> None:
        """Take a baseline's section, and the accuracy of guessing, where it is known."""
        self.baseline = {cell: _Runs(records) for cell, records in section.cells.items()}
        self._more = {cell: _Runs(records) for cell, records in _published(section).items()}
        self._guessed = guessed
        self._spreads = functools.cache(self._spreads_of)  # each cell borrows from all others

    def limit(
        self, cell: CellKey, measure: str, values: tuple[float, ...], new: int, margin: float
    ) -> Limit:
        """Return the limit of a mean over ``new`` seeds; its level is still to be set."""
        scaling, spread = self.of(cell, measure)
        points = scaling.points(values)
        limit = Limit(
            scaling,
            sum(points) / len(points),
            None if spread is None else max(spread.std, scaling.least_std),
            len(values),
            new,
            level=0.5,
            freedom=None if spread is None else spread.freedom,
            margin=margin,
            chance=self._guessed,
        )
        if limit.collapse is None or min(values) > limit.collapse:
            return limit
        return dataclasses.replace(limit, may_collapse=True)

    def of(self, cell: CellKey, measure: str) -> tuple[Scaling, Spread | None]:
        """Return the scale of a measure in a cell, and its spread; None if it is not known."""
        scaling = scaling_of(measure, self.baseline[cell].of(measure))
        others = pooled(
            spread
            for other in self.baseline
            if other != cell
            for spread in self._spreads(other, scaling)
        )
        spread = moderated(pooled(self._spreads(cell, scaling)), others)
        # Without a spread the limit were the mean itself, and any change for the worse beyond it.
        if spread is not None and spread.std == 0 and measure not in MARGINS:
            spread = None
        return scaling, spread

    def _spreads_of(self, cell: CellKey, scaling: Scaling) -> list[Spread | None]:
        """Return a cell's spreads on a scale, of the baseline's seeds and of the published ones."""
        found = []
        for runs in (self.baseline[cell], self._more.get(cell, _Runs(()))):
            values = runs.of(scaling.measure)
            # An offset is of this cell alone; where two differ, nothing is borrowed.
            if values and scaling_of(scaling.measure, values) == scaling:
                found.append(spread_of(without_rounding(scaling.points(values))))
        return found


def _published(section: Section) -> dict[CellKey, list[Record]]:
    """Return a protocol's published runs of the baseline's cells, under seeds that it lacks."""
    found: dict[CellKey, list[Record]] = {}
    if section.protocol not in available():
        return found
    mine = {record.id for record in section.records}
    for record in published(load(section.protocol)):
        cell = (record.architecture, record.optimizer)
        same = _hash(section.cell(*cell)) == record.provenance.get("cell_hash")
        if same and record.id not in mine and record.evaluation == section.evaluation:
            found.setdefault(cell, []).append(record)
    return found


def _repeated(before: Section, now: Section) -> Iterable[str]:
    """Yield what the runs of the same seeds say: the same numbers, or others."""
    theirs = {r.id: r for r in before.records if r.status == "completed"}
    pairs = [(theirs[r.id], r) for r in now.records if r.id in theirs and r.status == "completed"]
    if not pairs:
        return
    other = [(old, new) for old, new in pairs if results_of(old) != results_of(new)]
    yield (
        f"{plain(now.protocol)}: of {len(pairs)} runs whose seeds the baseline has too, "
        f"{len(pairs) - len(other)} repeated its results exactly"
    )
    # The key is of code, data, settings and machine: a run with the same one is the same run.
    keys = [[record.provenance.get("key") for record in pair] for pair in other]
    odd = sum(one == two is not None for one, two in keys)
    if odd:
        yield (
            f"{plain(now.protocol)}: {odd} of the others had the same code and machine: something "
            "in them is not deterministic, or their results were edited"
        )


def _hash(records: Sequence[Record]) -> object:
    """Return the hash that a cell's records share, or None; a failed run may lack it."""
    return next((h for r in records if (h := r.provenance.get("cell_hash")) is not None), None)


def _same(where: str, key: str, before: object, now: object) -> None:
    if before != now:
        raise UsageError(
            f"{plain(where)}: {key} is {plain(str(before))} in the baseline and "
            f"{plain(str(now))} now: results of two protocols can't be compared"
        )


def _differ(key: str, before: _Runs, now: _Runs) -> bool:
    """Return whether two groups of records come from different devices, or kinds of them."""
    one, other = ({str(r.provenance.get(key)) for r in runs.records} for runs in (before, now))
    return one != other


def _outcome(c: _Comparison) -> Outcome:
    limit = c.limit
    row = row_of(c.where, limit, c.current)
    if limit.keeps(c.current):
        outcome = kept(c.where, row, limit)
        if not c.repeated:
            return outcome
        # Nothing can have changed, however wide the limit.
        line = f"{c.where} {row.now}: repeated exactly under the same seeds"
        row = dataclasses.replace(row, now=f"{row.now}, repeated exactly")
        return dataclasses.replace(outcome, result="passed", line=line, rows=(row,))
    higher = quantity(limit.scaling.measure).better == "higher"
    if limit.by_collapse:
        beyond = f"no more than {shown(limit.value or 0.0)}, half of it: it has collapsed"
    else:
        beyond = f"{'below' if higher else 'above'} the limit {shown(limit.value or 0.0)}"
    several = f", from {shown(min(c.baseline))} to {shown(max(c.baseline))}" * (limit.n > 1)
    line = (
        f"{c.where} was {row.baseline} in the baseline ({seeds(limit.n)}{several}) and is "
        f"{row.now} now ({seeds(limit.new)}), {beyond}; {power(row.finds)}; "
        f"level {limit.level:.6g}"
    )
    if limit.margin:
        line += f", margin {100 * limit.margin:.0f} %"
    return Outcome(c.where, "failed", line, (row,))


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


def rate_of(baseline: Baseline) -> float:
    """Return how often, at most, a grid without a regression fails against a baseline."""
    return baseline.false_alarm_rate if isinstance(baseline, gate.Thresholds) else ALARM


def fits(baseline: Baseline, protocol: Protocol) -> bool:
    """Return whether a baseline was made with the present content of the protocol, rows apart."""
    if isinstance(baseline, gate.Thresholds):
        known = {baseline.protocol: baseline.common_hash}
    else:
        known = {s.protocol: s.common_hash or "" for s in sections(baseline)}
    return known.get(protocol.name) == protocol.common_hash()

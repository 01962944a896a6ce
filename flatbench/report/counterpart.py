"""One protocol's runs against another's, by cell and seed: bf16 against fp32, for example."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence

from flatbench import stats
from flatbench.records.sections import CellKey, Pair, differences, paired
from flatbench.report.numbers import Gain, Numbers
from flatbench.report.tables import MISSING, Cell, Table, gain_cell, usual_pairs
from flatbench.text import number, ranges

_Pairs = Mapping[CellKey, Mapping[int, Pair]]  # cell -> seed -> runs

ALL = "all"


def counterpart_tables(numbers: Numbers, other: Numbers) -> list[Table]:
    """Return the tables of accuracy differences and of time ratios; none without a common run."""
    pairs = _pairs(numbers, other)
    if not pairs:
        return []
    name = other.section.protocol
    return [_differences(numbers, pairs, name), _times(numbers, pairs, name)]


def _pairs(numbers: Numbers, other: Numbers) -> _Pairs:
    cells = numbers.section.cells.items()
    found = {key: paired(cell, other.section.cell(*key)) for key, cell in cells}
    return {key: pairs for key, pairs in found.items() if pairs}


def _differences(numbers: Numbers, pairs: _Pairs, other: str) -> Table:
    section = numbers.section
    outcome = section.outcome.name
    seeds = sorted({seed for by_seed in pairs.values() for seed in by_seed})
    by_cell = [_difference(pairs, [a], [row], outcome) for a, row in pairs]
    usual = usual_pairs([gain for gain in by_cell if gain is not None])

    def cell(architectures: Sequence[str], rows: Sequence[str]) -> Cell:
        gain = _difference(pairs, architectures, rows, outcome)
        return Cell(MISSING) if gain is None else gain_cell(gain, usual)

    return Table(
        f"Difference in {section.outcome.titled(section.evaluation)} by seed"
        f"{' (percentage points)' if section.outcome.unit == '%' else ''}, "
        f"{section.protocol} − {other}: "
        f"seed{'s' if len(seeds) > 1 else ''} {ranges(seeds)}",
        "Cells: mean of the differences between runs of the same seed (its 95 % t-interval); "
        f"n = {usual} pairs unless a cell says otherwise. Under {ALL!r} stands each seed's mean "
        "over the row's, the column's or all cells, so that n counts seeds there too. The "
        "intervals are not corrected for their number: one in 20 misses zero by chance.",
        "optimizer",
        (*section.architectures, ALL),
        _margins(numbers, cell),
    )


def _times(numbers: Numbers, pairs: _Pairs, other: str) -> Table:
    def cell(architectures: Sequence[str], rows: Sequence[str]) -> Cell:
        ratios = [
            one / other
            for key in itertools.product(architectures, rows)
            for mine, theirs in pairs.get(key, {}).values()
            if (one := mine.relative_time) and (other := theirs.relative_time)
        ]
        if not ratios:
            return Cell(MISSING)
        middle = statistics.median(ratios)
        return Cell(f"{number(middle, 2)}×", middle)

    return Table(
        f"Training time, {numbers.section.protocol} / {other}",
        "Cells: median of the ratios between runs of the same seed. A run's time is taken over "
        "that of a fixed piece of fp32 work timed before and after it.",
        "optimizer",
        (*numbers.section.architectures, ALL),
        _margins(numbers, cell),
    )


def _margins(
    numbers: Numbers, cell: Callable[[Sequence[str], Sequence[str]], Cell]
) -> tuple[tuple[str, tuple[Cell, ...]], ...]:
    """Return the rows of a table; the last row and the last column are over all the others."""
    section = numbers.section
    columns = (*([a] for a in section.architectures), section.architectures)
    rows = (*((row, [row]) for row in section.optimizers), (ALL, section.optimizers))
    return tuple((name, tuple(cell(a, listed) for a in columns)) for name, listed in rows)


def _difference(
    pairs: _Pairs, architectures: Sequence[str], rows: Sequence[str], outcome: str
) -> Gain | None:
    """Return the paired difference of the mean over some cells, for the seeds that all have."""
    keys = itertools.product(architectures, rows)
    cells = [differences(pairs.get(key, {}), outcome) for key in keys]
    seeds = sorted(set.intersection(*(set(cell) for cell in cells)))
    means = [statistics.mean(cell[seed] for cell in cells) for seed in seeds]
    return Gain("", "", "", stats.paired(means), None) if means else None

"""A section's tables in the study's layout: rows optimizers, columns architectures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flatbench.records.quantities import TEST_ACCURACY
from flatbench.records.sections import Section
from flatbench.report import numbers
from flatbench.report.numbers import ALPHA, Gain, Numbers
from flatbench.stats import Interval
from flatbench.text import decimals, number, ranges

MISSING = "—"


@dataclass(frozen=True)
class Cell:
    """What a cell shows, the number to sort it by if any, and whether it is set in bold."""

    text: str
    value: float | None = None
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A titled table; a row is (label, a cell for each column). No string in it is escaped."""

    title: str
    note: str
    corner: str  # the heading of the labels
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def described(section: Section, n: int) -> str:
    """Return which runs a table is of: protocol, evaluation part, seeds and the usual n."""
    seeds = f"seed{'s' if len(section.seeds) > 1 else ''} {ranges(section.seeds)}"
    return f"{section.protocol}, {section.evaluation} part, {seeds}, n = {n}"


def accuracy_table(numbers: Numbers) -> Table:
    """Return the table of accuracies, in bold where the corrected paired test supports a row."""
    better = {
        (gain.architecture, gain.row if gain.paired.mean > 0 else gain.base)
        for gain in numbers.pair_gains
        if gain.supported and gain.paired is not None
    }
    outcome = numbers.section.outcome
    name = titled(numbers.section)
    than = "its base, or than its SAM row" if numbers.all_sam else "the row of its pair"
    note = f"Bold: better than {than}, by seed; Holm-adjusted p < {ALPHA}."
    places = outcome_places(numbers)
    return _measure_table(numbers, outcome.name, name, places, better, note if better else "")


def titled(section: Section) -> str:
    """Return the title of a section's outcome, as "Test accuracy (%)" or "Test error (rmse)"."""
    outcome = section.outcome
    metric = next((record.metric for record in section.records if record.metric), None)
    unit = metric or outcome.unit
    title = outcome.titled(section.evaluation).capitalize()
    return f"{title} ({unit})" if unit else title


def outcome_places(numbers: Numbers) -> int:
    """Return how many decimals an outcome is shown with: two of an accuracy."""
    outcome = numbers.section.outcome
    if outcome.name == TEST_ACCURACY:
        return 2
    means = [cell.summary.mean for cell in numbers.cells(outcome.name).values()]
    return decimals([mean for mean in means if mean is not None])


def _measure_table(
    numbers: Numbers,
    measure: str,
    name: str,
    places: int,
    strong: set[tuple[str, str]],
    note: str,
) -> Table:
    section, cells = numbers.section, numbers.cells(measure)
    usual = usual_count(cell.summary.n for cell in cells.values())
    spread = "mean" if usual == 1 else "mean ± sample standard deviation over seeds"
    notes = [f"Cells: {spread}; n = {usual} unless a cell says otherwise."]
    if len({cell.seeds for cell in cells.values() if cell.seeds}) > 1:
        notes.append("The cells do not all have the same seeds.")
    if usual == 1:
        notes.append("One seed says nothing about the spread.")
    return Table(
        f"{name}: {described(section, usual)}",
        " ".join([*notes, note]).strip(),
        "optimizer",
        section.architectures,
        tuple(
            (
                row,
                tuple(
                    value_cell(cells.get((a, row)), usual, places, (a, row) in strong)
                    for a in section.architectures
                ),
            )
            for row in section.optimizers
        ),
    )


def usual_count(counts: Iterable[int]) -> int:
    """Return the commonest n above 0, and of equally common ones the largest; 0 of none."""
    listed = [n for n in counts if n > 0]
    return max(set(listed), key=lambda n: (listed.count(n), n)) if listed else 0


def value_cell(cell: numbers.Cell | None, usual: int, places: int, strong: bool) -> Cell:
    """Return a mean with its spread, and what of its runs is missing."""
    if cell is None:
        return Cell(MISSING)
    lost = [
        f"{count} {status}"
        for count, status in ((cell.diverged, "diverged"), (cell.failed, "failed"))
        if count
    ]
    s = cell.summary
    if s.mean is None:
        return Cell(", ".join(lost) or MISSING)
    text = number(s.mean, places)
    if s.std is not None:
        text += f" ± {number(s.std, places)}"
    notes = ([f"n = {s.n}"] if s.n != usual else []) + lost
    return Cell(f"{text} ({', '.join(notes)})" if notes else text, s.mean, strong)


def reference_table(numbers: Numbers) -> Table:
    """Return the published results, with the difference of this run's means from them.

    Raises:
        ValueError: the section has no reference.
    """
    section, cells = numbers.section, numbers.cells(TEST_ACCURACY)
    reference = section.reference
    if reference is None:
        raise ValueError(f"protocol {section.protocol!r} has no reference")

    def cell(row: str, architecture: str) -> Cell:
        published = reference.test_accuracy.get(architecture, {}).get(row)
        if published is None:
            return Cell(MISSING)
        mean, std = published
        own = cells.get((architecture, row))
        text = f"{mean:.3f} ± {std:.3f}"
        if own is None or own.summary.mean is None:
            return Cell(text, mean)
        return Cell(f"{text} ({number(own.summary.mean - mean, 2, sign=True)})", mean)

    return Table(
        f"Published test accuracy (%), and this run's difference from it: {section.protocol}",
        f"Source: {reference.source}; mean ± std over {reference.seeds} seeds. In parentheses: "
        "the mean of the table above less the published one.",
        "optimizer",
        section.architectures,
        tuple(
            (row, tuple(cell(row, architecture) for architecture in section.architectures))
            for row in section.optimizers
        ),
    )


def gain_table(numbers: Numbers) -> Table:
    """Return each row's gain over the row it is compared with by seed, with t-intervals."""
    section, gains = numbers.section, numbers.pair_gains
    usual = usual_pairs(gains)
    by_cell = {(gain.row, gain.architecture): gain for gain in gains}
    rows = tuple(
        (
            f"{row} − {section.base_of[row]}",
            tuple(gain_cell(by_cell[row, a], usual) for a in section.architectures),
        )
        for row in section.optimizers
        if row in section.base_of
    )
    note = (
        "Cells: mean of the differences between runs of the same seed (its 95 % t-interval); "
        f"n = {usual} pairs unless a cell says otherwise."
    )
    if any(gain.supported for gain in gains):
        note += f" Bold: told from zero, Holm-adjusted p < {ALPHA}."
    return Table(
        f"Gain in {gained(numbers)}: {described(section, usual)}",
        note,
        "pair",
        section.architectures,
        rows,
    )


def gained(numbers: Numbers) -> str:
    """Return what a gain is of, by which rows, and in which unit."""
    section = numbers.section
    what = section.outcome.titled(section.evaluation)
    pairs = "SAM − base" if numbers.all_sam else "a row − the one it is compared with,"
    unit = " (percentage points)" if section.outcome.unit == "%" else ""
    sign = "" if section.outcome.better == "higher" else ", lower counted as gain"
    return f"{what}, {pairs} by seed{unit}{sign}"


def usual_pairs(gains: Sequence[Gain]) -> int:
    """Return the commonest number of pairs."""
    return usual_count(gain.paired.n for gain in gains if gain.paired is not None)


def gain_cell(gain: Gain, usual: int) -> Cell:
    """Return a mean difference with its interval."""
    if gain.paired is None:
        return Cell(MISSING)
    text = number(gain.paired.mean, 2, sign=True)
    if gain.paired.interval is not None:
        text += f" ({_interval(gain.paired.interval, 2)})"
    if gain.paired.n != usual:
        text += f" (n = {gain.paired.n})"
    return Cell(text, gain.paired.mean, gain.supported)


def _interval(interval: Interval, places: int) -> str:
    low, high = (number(end, places, sign=True) for end in (interval.low, interval.high))
    return f"{low} to {high}"


def significance_table(numbers: Numbers) -> Table:
    """Return the tests behind the gain table, one row for each pair and architecture."""
    gains = numbers.pair_gains
    tests = sum(gain.p is not None for gain in gains)
    note = (
        f"p: two-sided paired t-test; Holm: p adjusted for the {tests} tests of this table. "
        "Signed-rank: Wilcoxon's exact test, from 6 pairs on; not corrected, for comparison. "
        "Effect: Hedges' g of the paired differences (mean / standard deviation, corrected for "
        "small n). A dash: so few pairs allow no such number."
    )
    return Table(
        f"Tests of the gains: {described(numbers.section, usual_pairs(gains))}",
        note,
        "pair",
        ("architecture", "n", "mean", "95 % interval", "p", "Holm", "signed-rank", "effect"),
        tuple((f"{gain.row} − {gain.base}", _test_cells(gain)) for gain in gains),
    )


def _test_cells(gain: Gain) -> tuple[Cell, ...]:
    p = gain.paired
    architecture = Cell(gain.architecture)
    if p is None:
        return (architecture, Cell("0", 0.0), *(Cell(MISSING) for _ in range(6)))
    return (
        architecture,
        Cell(str(p.n), float(p.n)),
        Cell(number(p.mean, 2, sign=True), p.mean),
        Cell(MISSING if p.interval is None else _interval(p.interval, 2)),
        p_cell(p.t_p),
        p_cell(gain.p, gain.supported),
        p_cell(p.wilcoxon_p),
        Cell(MISSING) if p.effect is None else Cell(number(p.effect, 2, sign=True), p.effect),
    )


def p_cell(p: float | None, strong: bool = False) -> Cell:
    """Return a p-value."""
    if p is None:
        return Cell(MISSING)
    return Cell("< 0.0001" if p < 1e-4 else f"{p:.4f}", p, strong)

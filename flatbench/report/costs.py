"""What accuracy costs: rows with as many gradients side by side, and the way to a target."""

from __future__ import annotations

import math

from flatbench.records.quantities import TEST_ACCURACY
from flatbench.records.record import Record
from flatbench.records.sections import Section
from flatbench.report.numbers import Numbers
from flatbench.report.tables import (
    MISSING,
    Cell,
    Table,
    described,
    gain_cell,
    outcome_places,
    p_cell,
    titled,
    usual_pairs,
    value_cell,
)
from flatbench.text import decimals, number


def equal_compute_table(numbers: Numbers) -> Table | None:
    """Return rows against others that took as many gradients; None if there are none."""
    gains, section = numbers.equal_compute, numbers.section
    if not gains:
        return None
    usual = usual_pairs(gains)
    outcomes, places = numbers.cells(section.outcome.name), outcome_places(numbers)
    first = "SAM" if numbers.all_sam else "first"
    note = (
        f"{'A SAM step costs two gradient evaluations; here' if numbers.all_sam else 'Here'} "
        "both rows had as many. Difference: mean by seed (its 95 % t-interval), Holm-adjusted for "
        f"the tests of this table. Time: the {first} row's training seconds over the other's, "
        "which hold for the hardware below alone."
    )
    rows = tuple(
        (
            f"{gain.row} − {gain.base}",
            (
                Cell(gain.architecture),
                value_cell(outcomes.get((gain.architecture, gain.row)), usual, places, False),
                value_cell(outcomes.get((gain.architecture, gain.base)), usual, places, False),
                gain_cell(gain, usual),
                p_cell(gain.p, gain.supported),
                _count_cell(numbers.gradients(gain.architecture, gain.row)),
                _ratio_cell(
                    numbers.mean(gain.architecture, gain.row, "seconds"),
                    numbers.mean(gain.architecture, gain.base, "seconds"),
                ),
            ),
        )
        for gain in gains
    )
    return Table(
        f"{titled(section)} at equal compute: {described(section, usual)}",
        note,
        "pair",
        (
            "architecture",
            *(("SAM", "base") if numbers.all_sam else ("row", "other")),
            "difference",
            "Holm",
            "gradient evaluations",
            "time",
        ),
        rows,
    )


def _count_cell(count: float | None) -> Cell:
    return Cell(MISSING) if count is None else Cell(f"{count:.0f}", count)


def _ratio_cell(one: float | None, other: float | None) -> Cell:
    if one is None or not other:
        return Cell(MISSING)
    return Cell(f"{one / other:.2f}×", one / other)


def time_to_accuracy_table(numbers: Numbers, target: float | None = None) -> Table | None:
    """Return what it costs to reach a target accuracy; None without a history or an accuracy.

    Args:
        numbers: the numbers of one section.
        target: an accuracy in percent, for every architecture. By default each architecture has
            its own: the lowest final mean of its rows, rounded down, which every row reaches on
            average.
    """
    section = numbers.section
    if section.outcome.name != TEST_ACCURACY or not any(r.history for r in section.records):
        return None
    aims = targets(numbers, target)
    how = (
        "The targets were set from these very runs: the lowest final mean of any row of the "
        "architecture, rounded down, so that every row reaches it on average."
        if target is None
        else "The target was given by the user."
    )
    return Table(
        f"Cost of reaching a target {section.evaluation} accuracy: {section.protocol}",
        f"Cells: mean gradient evaluations (mean training seconds) until the end of the first "
        f"epoch at or above the target; a mean only where every run reached it. {how}",
        "optimizer",
        tuple(f"{a} (≥ {aims[a]:g} %)" if a in aims else a for a in section.architectures),
        tuple(
            (
                row,
                tuple(_cost_cell(section, a, row, aims.get(a)) for a in section.architectures),
            )
            for row in section.optimizers
        ),
    )


def targets(numbers: Numbers, target: float | None = None) -> dict[str, float]:
    """Return the accuracy that each architecture's rows are to reach; see the table."""
    section, found = numbers.section, {}
    accuracies = numbers.cells(TEST_ACCURACY)
    for architecture in section.architectures:
        means = [
            cell.summary.mean
            for (a, _), cell in accuracies.items()
            if a == architecture and cell.summary.mean is not None
        ]
        if target is not None or means:
            found[architecture] = math.floor(min(means)) if target is None else target
    return found


def _cost_cell(section: Section, architecture: str, row: str, target: float | None) -> Cell:
    runs = section.cell(architecture, row)
    if not runs or target is None:
        return Cell(MISSING)
    costs = [spent for run in runs if (spent := cost(run, target)) is not None]
    if len(costs) < len(runs):
        return Cell(f"reached by {len(costs)} of {len(runs)}")
    evaluations = sum(spent[0] for spent in costs) / len(costs)
    seconds = sum(spent[1] for spent in costs) / len(costs)
    known = all(spent[0] for spent in costs)
    count = f"{evaluations:.0f}" if known else MISSING
    time = f"({number(seconds, decimals([seconds]))} s)"
    return Cell(f"{count} {time}", evaluations if known else None)


def cost(run: Record, target: float) -> tuple[int, float] | None:
    """Return a run's gradient evaluations and seconds until an accuracy; None if never reached.

    The count is 0 where the record has none.
    """
    evaluations, seconds = 0, 0.0
    for epoch in run.history:
        evaluations += epoch.gradient_evaluations
        seconds += epoch.seconds
        if epoch.test_accuracy is not None and epoch.test_accuracy >= target:
            return evaluations, seconds
    return None

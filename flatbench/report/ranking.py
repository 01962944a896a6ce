"""Which sharpness measures rank the optimizers as test accuracy does?"""

from __future__ import annotations

import math
from collections.abc import Sequence

from flatbench.records.quantities import in_training, quantity
from flatbench.report.numbers import Numbers
from flatbench.report.tables import MISSING, Cell, Table
from flatbench.stats import Correlation, kendall, without_rounding
from flatbench.text import number

MOST = 500  # runs of a cell that are ranked


def correlation(numbers: Numbers, measure: str, against: str = "test_error") -> Correlation | None:
    """Return Kendall's τ between a sharpness measure and an error, or None where it is undefined.

    It counts pairs of runs of two rows on one architecture, of at most `MOST` seeds a cell.

    Args:
        numbers: the numbers of one section.
        measure: a sharpness measure.
        against: ``test_error`` (100 − test accuracy, or what a task's own metric says is worse)
            or ``gap``, by how much the training outcome, which is of the labels trained on, is
            better than the test outcome.
    """
    frame, outcome = numbers.frame, numbers.section.outcome
    runs = frame[(frame["status"] == "completed") & frame[outcome.name].notna()]
    if against == "gap":
        sign = 1 if outcome.better == "higher" else -1
        error = sign * (runs[in_training(outcome)] - runs[outcome.name])
    elif outcome.better == "lower":
        error = runs[outcome.name]
    else:
        error = (100.0 if outcome.unit == "%" else 0.0) - runs[outcome.name]
    runs = runs.assign(error=error)
    runs = runs[runs["error"].notna() & runs[measure].notna()]
    # Pairs are as many as the square of the runs.
    cells = runs.sort_values("seed", kind="stable").groupby(["architecture", "optimizer"])
    runs = cells.head(MOST).sort_index()
    architectures = runs["architecture"].tolist()
    return kendall(
        runs[measure].tolist(),
        runs["error"].tolist(),
        list(zip(architectures, runs["optimizer"].tolist(), strict=True)),
        strata=architectures,
    )


def ranking_table(numbers: Numbers) -> Table | None:
    """Return τ between every measure and the test error; None with fewer than three rows."""
    section = numbers.section
    if len(section.optimizers) < 3:
        return None
    rows = tuple(
        (
            quantity(measure).heading,
            (
                *(
                    _rows_cell(numbers, measure, architecture)
                    for architecture in section.architectures
                ),
                _runs_cell(correlation(numbers, measure)),
            ),
        )
        for measure in numbers.measures
    )
    k = len(section.optimizers)
    is_cut = any(len(records) > MOST for records in section.cells.values())
    return Table(
        f"Does sharpness rank optimizers as {section.outcome.titled(section.evaluation)} does? "
        f"{section.protocol}",
        f"Kendall's τ-b between sharpness and {section.evaluation} error: +1, the flatter of two "
        "is always the more accurate; 0, no relation; −1, always the less accurate. By "
        "architecture: of the rows' means over seeds. All runs: of pairs of runs of two rows on "
        "one architecture, with a rough 95 % interval by resampling whole cells, for seeds of a "
        "cell are not independent evidence (none below 5 cells, or where all pairs agree). "
        f"{k} rows in random order agree fully with probability 1/{math.factorial(k)}: "
        + (
            "so few rows can suggest an answer, not settle it."
            if k < 6
            else "the rows are a choice, not a sample of all optimizers."
        )
        + (f" Of cells with more runs, the {MOST} lowest seeds are ranked." if is_cut else ""),
        "measure",
        (*section.architectures, "all runs"),
        rows,
    )


def _rows_cell(numbers: Numbers, measure: str, architecture: str) -> Cell:
    outcome = numbers.section.outcome
    sharpness, accuracy = numbers.cells(measure), numbers.cells(outcome.name)
    sign = -1 if outcome.better == "higher" else 1
    both = [
        (s, sign * a)
        for row in numbers.section.optimizers
        if (key := (architecture, row)) in accuracy
        and (s := sharpness[key].summary.mean) is not None
        and (a := accuracy[key].summary.mean) is not None
    ]
    # Means of equal counts are ties though rounding tells them apart. One resample, since the
    # interval is not shown.
    errors = without_rounding([e for _, e in both])
    found = kendall([s for s, _ in both], errors, range(len(both)), resamples=1)
    if found is None:
        return Cell(MISSING)
    return Cell(f"{number(found.tau, 2, sign=True)} ({found.n} rows)", found.tau)


def _runs_cell(found: Correlation | None) -> Cell:
    return Cell(MISSING) if found is None else Cell(tau_text(found), found.tau)


def tau_text(found: Correlation) -> str:
    """Return τ as text, with its interval where it has one, and how many runs it is over."""
    of: Sequence[str] = [f"n = {found.n} runs in {found.clusters} cells"]
    if found.interval is not None:
        ends = (number(end, 2, sign=True) for end in (found.interval.low, found.interval.high))
        of = [f"95 %: {' to '.join(ends)}", *of]
    return f"{number(found.tau, 2, sign=True)} ({'; '.join(of)})"

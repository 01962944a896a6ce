"""How often the gates fail without a regression, and what they find: the numbers of docs/gate.md.

`docs.alarms` simulates the false alarms; powers are those of the noncentral t distribution.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy import optimize, special, stats
from tabulate import tabulate

from docs.alarms import (
    ARCHITECTURES,
    BASELINE,
    CELLS,
    GRIDS,
    LEVEL,
    MEASURES,
    NEW,
    ROWS,
    SPREADS,
    SPREADS_OF_CELLS,
    cells_vary,
    comparison_alarms,
    conditional_alarms,
    drawn_alarms,
    drawn_finds,
    few_alarms,
    near_the_top,
    threshold_alarms,
)
from flatbench import gate
from flatbench.gate import compare
from flatbench.gate.scales import Scaling, scaling_of
from flatbench.gate.spread import PRIOR
from flatbench.records.quantities import SAM_SHARPNESS, TEST_ACCURACY, Scale, quantity, results_of
from flatbench.records.record import Record
from flatbench.records.sections import sections
from flatbench.stats import detectable_shift, prediction_limit
from flatbench.text import ranges


def detectable_by_cases(
    n: int, new: int, level: float = LEVEL, rate: float = 0.9, draws: int = 20_000
) -> float:
    """Return the smallest shift, in std, that fails at least one of a cell's ``new`` cases."""
    random = np.random.default_rng(0)
    baseline = random.standard_normal((draws, n))
    limit = prediction_limit(baseline.mean(-1), baseline.std(-1, ddof=1), n, level, "lower")

    def missed(shift: float) -> float:
        return float(np.mean(stats.norm.sf(limit + shift) ** new)) - (1 - rate)

    return float(optimize.brentq(missed, 0, 100))


def skewness(records: Iterable[Record]) -> list[tuple[str, float, float]]:
    """Return the name of each scale, its mean skewness over cells, and the standard error of that.

    The skewness is bias-corrected, and turned so that a negative one is to the bad side. Cells with
    a value that has no logarithm are left out.
    """
    turned: list[tuple[str, str, Scale, int]] = [
        ("accuracy", TEST_ACCURACY, "linear", 1),
        ("−log(100 − accuracy)", TEST_ACCURACY, "log-error", -1),
        ("−sam_sharpness", SAM_SHARPNESS, "linear", -1),
        ("−log(sam_sharpness)", SAM_SHARPNESS, "log", -1),
    ]
    cells = [
        [results_of(record) for record in cell]
        for section in sections(records)
        for cell in section.cells.values()
    ]
    found = []
    for name, measure, scale, sign in turned:
        values = [[run[measure] for run in cell if measure in run] for cell in cells]
        logarithmic = Scaling(measure, quantity(measure).scale)
        fitting = [v for v in values if v and scaling_of(measure, v) == logarithmic]
        points = [Scaling(measure, scale).points(v) for v in fitting]
        skews = [sign * float(stats.skew(p, bias=False)) for p in points]
        found.append((name, float(np.mean(skews)), float(stats.sem(skews))))
    return found


def page(records: Sequence[Record], grids: int = GRIDS) -> str:
    """Return docs/gate.md, with the digits baseline's records, from so many simulated grids."""
    counts, news = (3, 5, 10, 20, 30), (1, 3, NEW, 10)
    level = 1 - compare.ALARM / (CELLS * MEASURES)
    power = [[n, *(f"{detectable_shift(n, level, new):.1f}" for new in news)] for n in counts]
    thresholds = gate.derive(records, level=LEVEL, grid_seeds=NEW)
    return _PAGE.format(
        grids=f"{grids:,}",
        top_grids=f"{grids // 10:,}",
        drawn_grids=f"{grids // 50:,}",
        alarm=_percent(compare.ALARM),
        limits=CELLS * MEASURES,
        level=f"{level:.6g}",
        case_level=f"{LEVEL:g}",
        case_alarm=_percent((1 - LEVEL) * CELLS * MEASURES * NEW),
        mean_alarm=_percent((1 - LEVEL) * CELLS * MEASURES),
        half=_percent(compare.ALARM / 2),
        half_cases=_percent((1 - LEVEL) * CELLS * NEW),
        baseline=BASELINE,
        new=NEW,
        rows=ROWS,
        architectures=ARCHITECTURES,
        cells=CELLS,
        prior=PRIOR,
        top=_table(
            ("true error, test part", "comparison", "thresholds"),
            [
                [
                    f"{error:g} %, {examples} examples",
                    *map(_percent, near_the_top(error, examples, BASELINE, NEW, grids // 10)),
                ]
                for examples in (360, 719, 10_000)
                for error in (0.1, 0.5, 2.0)
            ],
        ),
        few=_table(
            ("true spread", *(f"{n} seeds{alone}" for n in (2, 3, 5) for alone in ("", ", alone"))),
            [
                [name]
                + [
                    _percent(few_alarms(spreads, n, 3, borrow=borrow, grids=grids))
                    for n in (2, 3, 5)
                    for borrow in (True, False)
                ]
                for name, spreads in SPREADS_OF_CELLS.items()
            ],
        ),
        few_power=_table(
            (
                "baseline seeds",
                *(f"{new} new{alone}" for new in (3, 6) for alone in ("", ", alone")),
            ),
            [
                [n]
                + [
                    f"{detectable_shift(n, level, new, freedom):.1f}"
                    for new in (3, 6)
                    for freedom in (n - 1 + PRIOR, n - 1)
                ]
                for n in (2, 3, 5, 9)
            ],
        ),
        resampled=_table(
            ("baseline seeds", "comparison with 3 new seeds"),
            [
                [n, _percent(drawn_alarms(records, n, 3, grids // 50))]
                for n in (2, 3, 5, len(thresholds.seeds) - 3)
            ],
        ),
        rates=_table(("spread of the seeds", "comparison", "thresholds"), _rates(grids)),
        conditional=_table(
            ("baseline seeds", "median", "one baseline in ten above"),
            [[n, *map(_percent, conditional_alarms(n, NEW, grids))] for n in (3, 10, 20, 30)],
        ),
        skewness=_table(
            ("of", "mean skewness ± standard error"),
            [[name, f"{mean:+.2f} ± {error:.2f}"] for name, mean, error in skewness(records)],
        ),
        power=_table(("baseline seeds", *(f"{new} new" for new in news)), power),
        case_power=_table(
            ("baseline seeds", "one seed", f"any of {NEW}"),
            [
                [n, f"{detectable_shift(n, LEVEL):.1f}", f"{detectable_by_cases(n, NEW):.1f}"]
                for n in (10, 20, 30)
            ],
        ),
        digits=digits_table(thresholds),
        drawn_finds=_table(
            ("baseline and new seeds", *(f"{points} points" for points in (2, 3, 5, 10))),
            [
                [f"{len(thresholds.seeds) - new} and {new}"]
                + [
                    _percent(
                        drawn_finds(records, len(thresholds.seeds) - new, new, points, grids // 50)
                    )
                    for points in (2, 3, 5, 10)
                ]
                for new in (3, 6)
            ],
        ),
        runs=len(records),
        seeds=ranges(thresholds.seeds),
        code=thresholds.code,
        varies="{:.2f} ± {:.2f}".format(*cells_vary(records)),
        varies_assumed=f"{float(special.polygamma(1, PRIOR / 2)):.2f}",
        n=len(thresholds.seeds),
    )


def _rates(grids: int) -> Iterable[list[str]]:
    for name, draw in SPREADS.items():
        yield [
            name,
            _percent(comparison_alarms(draw, BASELINE, NEW, grids=grids)),
            _percent(threshold_alarms(draw, BASELINE, NEW, grids=grids)),
        ]


def digits_table(thresholds: gate.Thresholds) -> str:
    """Return, for every cell, the drop in accuracy that is found 9 times out of 10, in points."""
    level = 1 - compare.ALARM / (CELLS * MEASURES)
    rows = []
    for (architecture, row), cell in thresholds.cells.items():
        bound = cell.bounds.get(TEST_ACCURACY)
        if bound is None:
            continue
        by_mean = detectable_shift(cell.n, level, thresholds.grid_seeds)
        by_cell = detectable_shift(cell.n, thresholds.level, thresholds.grid_seeds)
        by_case = detectable_by_cases(cell.n, thresholds.grid_seeds, thresholds.level)
        scaling = Scaling(TEST_ACCURACY, bound.scale, bound.offset)
        middle, *shifted = (
            scaling.value(bound.mean + scaling.worse * shift * bound.std)
            for shift in (0.0, by_mean, by_cell, by_case)
        )
        rows.append(
            [f"{architecture} {row}", f"{middle:.1f}", f"{bound.limit:.1f}"]
            + [f"{middle - value:.1f}" for value in shifted]
        )
    return _table(
        (
            *("cell", "accuracy (%)", "one seed's bound"),
            *("drop: comparison", "drop: mean", "drop: thresholds"),
        ),
        rows,
    )


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def _table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    columns = list(header)
    return tabulate(
        [list(map(str, row)) for row in rows],
        columns,
        tablefmt="pipe",
        disable_numparse=True,
        colalign=("left", *("right" for _ in columns[1:])),
    )


_PAGE = """\
# What the gates find, and how often they are wrong

Made by `tox -e docs` from results/digits/baseline.json.gz, the {runs} runs of digits with seeds
{seeds} ({code}) that the thresholds are derived from; not edited by hand.

There are two gates. **Thresholds** (`benchmarks/thresholds/*.toml`) hold every case of a grid, one
seed at a time, to bounds at level {case_level}, and the mean over a cell's seeds to a limit at that
level. A **comparison** (`flatbench compare`, `--gate`) holds every cell's mean over the seeds to
limits whose level is set from the wanted rate of false alarms, by default {alarm} for all limits
together. The accuracies have half of it, however many other measures share the other half: with
{cells} cells, level {level}. All are one-sided prediction limits for values that are normal on the
measure's scale: the logarithm of the sharpness, and of the error, 100 − accuracy.

A limit finds drops of some size, and the gate says of which: **pass** means that every check could
have failed, and none did. A check **can't tell** if half of the accuracy could be lost, a positive
measure could grow more than tenfold, or nothing tells its spread. `--require-power POINTS` makes a
failure of such a check, and of one of a cell's accuracy that finds a drop of so many points less
often than 9 times out of 10.

## The scale

Skewness of the {runs} runs, mean over the cells; below zero: skewed to the bad side.

{skewness}

## False alarms

Share of {grids} simulated grids ({rows} rows × {architectures} architectures, test accuracy and
sharpness, {baseline} baseline seeds, {new} new ones) that fail although nothing has changed. Each
grid has its own baseline. Stated: at most {alarm} for a comparison; at most {case_alarm} for
thresholds, for the seeds one by one (their means add at most {mean_alarm}, and asserted pairs 1 %
each).

{rates}

The stated rates hold for seeds that are normal on the scale, and for the rounding that a finite
test set does. Heavy tails and rare bad seeds exceed them: look at the seeds' spread before you
trust a gate, and take unstable training out of the protocol rather than out of the gate.

The rate is an average over baselines. One baseline serves many grids, and its own rate may be
higher; of a comparison with {new} new seeds:

{conditional}

A grid trained with the same seeds by the same code on the same machine gives the same numbers and
raises no alarm, and the gate says that it repeated exactly; the rates speak of grids that differ by
chance.

### Near 100 % accuracy

A test part is finite, and near the top its accuracies are a few counts. Of one measure, the
accuracy, in {cells} cells of {baseline} baseline seeds and {new} new ones, {top_grids} grids;
stated: at most {half} for a comparison, {half_cases} for thresholds.

{top}

Where a baseline has an accuracy of 100 %, one wrong example is added to every error before its
logarithm. Such accuracies taken as they are, as they once were, failed far more grids than stated.

## Few seeds

A comparison takes what baseline there is. Cells with fewer than 10 seeds borrow: the variances of
the other cells, pooled, count for {prior} degrees of freedom beside the cell's own. Seeds of the
protocol's published records that the baseline lacks tell the spread, too. Share of {grids}
simulated grids, of one measure and 3 new seeds, that fail without a regression, stated: at most
{half}; "alone" is without borrowing.

{few}

The logarithms of the cells' variances vary by {varies} beyond chance in the {runs} runs (mean
over the measures ± standard error), and by {varies_assumed} in the middle row.

And of grids that are drawn from the {runs} real runs, of accuracy and sharpness, stated: at most
{alarm}; {drawn_grids} grids each:

{resampled}

What borrowing buys is the smallest drop that is found 9 times out of 10, in standard deviations:

{few_power}

A cell whose accuracy is half of its baseline's or less fails with any number of seeds, even one.

## Power

The smallest drop that a comparison finds 9 times out of 10, in standard deviations over seeds on
the scale, by the number of seeds in the baseline and in the new grid ({limits} limits together at
{alarm}):

{power}

The same for thresholds: in the case of one seed, and in any of {new} seeds of a cell.

{case_power}

In percentage points of test accuracy, for the digits grid with {n} baseline seeds and {new}
new ones:

{digits}

"One seed's bound" is that of a case, "drop: thresholds" what any of its {new} cases finds;
the mean over them, which thresholds hold as well, finds "drop: mean". Ten seeds are the least that
thresholds are made from.

How often a comparison finds a drop in the cell in which it finds it least, in {drawn_grids} grids
drawn from the {runs} real runs, whose new accuracies were then lowered:

{drawn_finds}
"""

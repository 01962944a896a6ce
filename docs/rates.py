"""How often the gates fail without a regression, and what they find: the numbers of docs/gate.md.

``python -m docs.rates RECORDS`` prints that page. It simulates 10,000 grids for every kind of
spread, from fixed random seeds, and takes powers from the noncentral t distribution.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from scipy import optimize, stats
from tabulate import tabulate

from flatbench import gate
from flatbench.gate import compare
from flatbench.gate.scales import Scaling, scaling_of
from flatbench.records.quantities import SAM_SHARPNESS, TEST_ACCURACY, Scale, quantity, results_of
from flatbench.records.reading import collect
from flatbench.records.record import Record
from flatbench.records.sections import sections
from flatbench.stats import FloatArray, detectable_shift, prediction_limit
from flatbench.text import ranges

GRIDS = 10_000
CELLS = 8  # 4 rows x 2 architectures
MEASURES = 2  # test accuracy, sam_sharpness

Draw = Callable[[np.random.Generator, tuple[int, ...]], FloatArray]


def _normal(random: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
    return random.standard_normal(shape)


def _lognormal(random: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
    return -np.exp(0.25 * random.standard_normal(shape))


def _heavy(random: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
    return random.standard_t(5, shape)


def _rounded(random: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
    return np.round(random.standard_normal(shape) * 4) / 4


def _outliers(random: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
    return random.standard_normal(shape) - 5.0 * (random.random(shape) < 0.02)


# Values stand for a measure on its scale, turned so that lower is worse.
SPREADS: dict[str, Draw] = {
    "normal on the scale used": _normal,
    "rounded to a quarter of its std": _rounded,
    "log-normal errors, had they not been put on a logarithmic scale": _lognormal,
    "heavy-tailed (Student's t, 5 degrees of freedom)": _heavy,
    "one seed in 50 lost by 5 std": _outliers,
}


def comparison_alarms(
    draw: Draw, n: int, new: int, alarm: float = compare.ALARM, grids: int = GRIDS, seed: int = 0
) -> float:
    """Return the share of grids without a regression that `compare.compare` would fail."""
    baseline, current = _draw(draw, n, new, grids, seed)
    level = 1 - alarm / (CELLS * MEASURES)
    limit = prediction_limit(baseline.mean(-1), baseline.std(-1, ddof=1), n, level, "lower", new)
    return float(np.mean(np.any(current.mean(-1) < limit, axis=1)))


def threshold_alarms(
    draw: Draw, n: int, new: int, level: float = gate.LEVEL, grids: int = GRIDS, seed: int = 0
) -> float:
    """Return the share of grids without a regression in which `gate.check_case` fails a case."""
    baseline, current = _draw(draw, n, new, grids, seed)
    limit = prediction_limit(baseline.mean(-1), baseline.std(-1, ddof=1), n, level, "lower")
    return float(np.mean(np.any(current < limit[..., None], axis=(1, 2))))


def _draw(draw: Draw, n: int, new: int, grids: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Return (grids, cells x measures, seeds) values of a baseline and of a new grid."""
    random = np.random.default_rng(seed)
    shape = (grids, CELLS * MEASURES)
    return draw(random, (*shape, n)), draw(random, (*shape, new))


def conditional_alarms(
    n: int, new: int, baselines: int = GRIDS, seed: int = 0
) -> tuple[float, float]:
    """Return the median and the 90 % quantile, over baselines, of a comparison's alarm rate.

    Seeds are normal. A baseline serves many grids, and an unlucky one alarms more often.
    """
    baseline, _ = _draw(_normal, n, 1, baselines, seed)
    level = 1 - compare.ALARM / (CELLS * MEASURES)
    limit = prediction_limit(baseline.mean(-1), baseline.std(-1, ddof=1), n, level, "lower", new)
    kept = stats.norm.sf(limit * math.sqrt(new))
    rates = 1 - kept.prod(axis=1)
    return float(np.median(rates)), float(np.quantile(rates, 0.9))


def detectable_by_cases(
    n: int, new: int, level: float = gate.LEVEL, rate: float = 0.9, draws: int = 20_000
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


def page(records: Sequence[Record]) -> str:
    """Return docs/gate.md, with the digits baseline's records."""
    counts, news = (3, 5, 10, 12, 20, 30), (1, 3, 5, 10)
    level = 1 - compare.ALARM / (CELLS * MEASURES)
    power = [[n, *(f"{detectable_shift(n, level, new):.1f}" for new in news)] for n in counts]
    thresholds = gate.derive(records)
    return _PAGE.format(
        grids=f"{GRIDS:,}",
        alarm=_percent(compare.ALARM),
        limits=CELLS * MEASURES,
        level=f"{level:.6g}",
        case_level=f"{gate.LEVEL:g}",
        case_alarm=_percent((1 - gate.LEVEL) * CELLS * MEASURES * 3),
        rates=_table(("spread of the seeds", "comparison", "thresholds"), _rates()),
        conditional=_table(
            ("baseline seeds", "median", "one baseline in ten above"),
            [[n, *map(_percent, conditional_alarms(n, 3))] for n in (3, 10, 12, 20, 30)],
        ),
        skewness=_table(
            ("of", "mean skewness ± standard error"),
            [[name, f"{mean:+.2f} ± {error:.2f}"] for name, mean, error in skewness(records)],
        ),
        power=_table(("baseline seeds", *(f"{new} new" for new in news)), power),
        case_power=_table(
            ("baseline seeds", "one seed", "any of three"),
            [
                [n, f"{detectable_shift(n, gate.LEVEL):.1f}", f"{detectable_by_cases(n, 3):.1f}"]
                for n in (10, 12, 20, 30)
            ],
        ),
        digits=digits_table(thresholds),
        runs=len(records),
        seeds=ranges(thresholds.seeds),
        commit=thresholds.commit,
        n=len(thresholds.seeds),
    )


def _rates() -> Iterable[list[str]]:
    for name, draw in SPREADS.items():
        yield [
            name,
            _percent(comparison_alarms(draw, 10, 3)),
            _percent(threshold_alarms(draw, 10, 3)),
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
        by_case = detectable_by_cases(cell.n, thresholds.grid_seeds, thresholds.level)
        scaling = Scaling(TEST_ACCURACY, bound.scale, bound.offset)
        middle, *shifted = (
            scaling.value(bound.mean + scaling.worse * shift * bound.std)
            for shift in (0.0, by_mean, by_case)
        )
        rows.append(
            [f"{architecture} {row}", f"{middle:.1f}", f"{bound.limit:.1f}"]
            + [f"{middle - value:.1f}" for value in shifted]
        )
    return _table(
        ("cell", "accuracy (%)", "one seed's bound", "drop: comparison", "drop: thresholds"), rows
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

Made by `python -m docs.rates RECORDS > docs/gate.md`; not edited by hand. RECORDS: the {runs}
runs of digits with seeds {seeds} (commit {commit}) that the thresholds are derived from.

There are two gates. **Thresholds** (`benchmarks/thresholds/*.toml`) hold every case of a grid, one
seed at a time, to bounds at level {case_level}. A **comparison** (`flatbench compare`, `--gate`)
holds every cell's mean over the seeds to limits whose level is set from the wanted rate of false
alarms, by default {alarm} for all limits together: {limits} limits, at level {level} each. Both are
one-sided prediction limits for values that are normal on the measure's scale: the logarithm of the
sharpness, and of the error, 100 − accuracy.

## The scale

Skewness of the {runs} runs, mean over the cells; below zero: skewed to the bad side.

{skewness}

## False alarms

Share of {grids} simulated grids (4 rows × 2 architectures, test accuracy and sharpness, 10 baseline
seeds, 3 new ones) that fail although nothing has changed. Each grid has its own baseline. Stated:
at most {alarm} for a comparison; at most {case_alarm} for thresholds (asserted pairs add at most
1 % each).

{rates}

The stated rates hold for seeds that are normal on the scale, and for the rounding that a finite
test set does. Heavy tails and rare bad seeds exceed them: look at the seeds' spread before you
trust a gate, and take unstable training out of the protocol rather than out of the gate.

The rate is an average over baselines. One baseline serves many grids, and its own rate may be
higher; of a comparison with 3 new seeds:

{conditional}

A grid trained with the same seeds by the same code on the same machine gives the same numbers and
raises no alarm; the rates speak of grids that differ by chance.

## Power

The smallest drop that a comparison finds 9 times out of 10, in standard deviations over seeds on
the scale, by the number of seeds in the baseline and in the new grid ({limits} limits together at
{alarm}):

{power}

The same for thresholds: in the case of one seed, and in any of three seeds of a cell.

{case_power}

In percentage points of test accuracy, for the digits grid with {n} baseline seeds and 3 new ones:

{digits}

Three baseline seeds find next to nothing: with 2 degrees of freedom the limit lies so far out that
only a collapse crosses it. Ten are the least that thresholds are made from.
"""


if __name__ == "__main__":
    sys.stdout.write(page(collect(map(Path, sys.argv[1:]))))

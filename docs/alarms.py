"""How often the gates fail a grid in which nothing has changed: the simulations of docs/gate.md.

Each simulates thousands of grids for a kind of spread, from fixed random seeds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from scipy import special, stats

from flatbench import gate
from flatbench.gate import compare
from flatbench.gate.limits import Limit
from flatbench.gate.scales import scaling_of
from flatbench.gate.spread import PRIOR
from flatbench.gate.verdict import Verdict
from flatbench.protocols.reading import load
from flatbench.records.quantities import TEST_ACCURACY, results_of
from flatbench.records.record import Record
from flatbench.records.sections import sections
from flatbench.stats import FloatArray, prediction_limit

GRIDS = 10_000
DIGITS = load("digits")
THRESHOLDS = gate.read_thresholds(
    Path(__file__).parents[1] / "benchmarks" / "thresholds" / "digits.toml"
)
ROWS, ARCHITECTURES = len(DIGITS.optimizers), len(DIGITS.model.names)
CELLS = ROWS * ARCHITECTURES
BASELINE, NEW = len(THRESHOLDS.seeds), THRESHOLDS.grid_seeds
LEVEL = THRESHOLDS.level
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
    draw: Draw, n: int, new: int, level: float = LEVEL, grids: int = GRIDS, seed: int = 0
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


# True spreads of the cells, each in its own units; a cell with few seeds borrows their mean.
SPREADS_OF_CELLS: dict[str, Draw] = {
    "the same in all cells": lambda random, shape: np.ones(shape),
    "as the published grids' cells (variances: scaled inverse χ², 4 degrees of freedom)": (
        lambda random, shape: np.sqrt(PRIOR / random.chisquare(PRIOR, shape))
    ),
    "one cell with 3 times the others' std": (
        lambda random, shape: np.where(np.arange(shape[1]) == 0, 3.0, 1.0) * np.ones(shape)
    ),
}


def few_alarms(
    spreads: Draw, n: int, new: int, *, borrow: bool = True, grids: int = GRIDS, seed: int = 0
) -> float:
    """Return the share of grids of one measure that a comparison fails, at half of ALARM.

    Seeds are normal, and cells borrow their spread as in `flatbench.gate.spread`, or don't.
    """
    random = np.random.default_rng(seed)
    std = spreads(random, (grids, CELLS))[..., None]
    baseline, current = (std * random.standard_normal((grids, CELLS, k)) for k in (n, new))
    variance, freedom = baseline.var(-1, ddof=1), n - 1
    if borrow:
        others = (variance.sum(1, keepdims=True) - variance) / (CELLS - 1)
        freedom = n - 1 + PRIOR
        variance = ((n - 1) * variance + PRIOR * others) / freedom
    level = 1 - compare.ALARM / 2 / CELLS
    means, std = baseline.mean(-1), np.sqrt(variance)
    limit = prediction_limit(means, std, n, level, "lower", new, freedom)
    return float(np.mean(np.any(current.mean(-1) < limit, axis=1)))


def _drawn(
    records: Sequence[Record], n: int, new: int, grids: int, lower: float = 0.0
) -> Iterable[Verdict]:
    """Yield the verdicts of comparisons between grids that are drawn from one protocol's records.

    Of every cell's accuracies and sharpness so many seeds are drawn without replacement, those of
    the baseline and the new ones, whose accuracies are then lower by some points.
    """
    random = np.random.default_rng(0)
    (section,) = sections(records)
    for _ in range(grids):
        drawn: tuple[list[Record], list[Record]] = [], []
        for cell in section.cells.values():
            for number, place in enumerate(random.permutation(len(cell))[: n + new]):
                run, now = cell[place], number >= n
                accuracy = run.test_accuracy
                if accuracy is not None and now:
                    accuracy = max(accuracy - lower, 0.0)
                # another name, since the published seeds of this one would be borrowed from
                changed = {"protocol": "drawn", "sharpness": {}, "test_accuracy": accuracy}
                costs = {"peak_memory": None, "seconds": None}
                drawn[now].append(dataclasses.replace(run, **changed, **costs))
        yield compare.compare(*drawn)


def drawn_alarms(records: Sequence[Record], n: int, new: int, grids: int) -> float:
    """Return the share of comparisons that fail between grids drawn from real records."""
    return float(np.mean([bool(v.failures) for v in _drawn(records, n, new, grids)]))


def drawn_finds(records: Sequence[Record], n: int, new: int, lower: float, grids: int) -> float:
    """Return how often a drop in accuracy is found in the cell in which it is found least."""
    found: dict[str, list[bool]] = {}
    for verdict in _drawn(records, n, new, grids, lower):
        for outcome in verdict.outcomes:
            if outcome.name.endswith(TEST_ACCURACY):
                found.setdefault(outcome.name, []).append(outcome.failed)
    return min(float(np.mean(cell)) for cell in found.values())


def near_the_top(
    error: float, examples: int, n: int, new: int, grids: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Return the shares of grids without a regression that fail near 100 % accuracy.

    Seeds' true errors are log-normal about ``error`` (percent, log std 0.2), and counted on a test
    part of so many examples. The first share is of comparisons, at half of ALARM; the second is of
    thresholds, for the seeds one by one.
    """
    random = np.random.default_rng(seed)
    truth = error / 100 * np.exp(random.normal(0, 0.2, (grids, CELLS, n + new)))
    counted = 100 - 100 * random.binomial(examples, np.minimum(truth, 1)) / examples
    levels = {new: 1 - compare.ALARM / 2 / CELLS, 1: LEVEL}
    failed = np.zeros((2, grids), bool)
    for number, grid in enumerate(counted.tolist()):
        for cell in grid:
            scaling = scaling_of(TEST_ACCURACY, cell[:n])
            points = scaling.points(cell[:n])
            std = max(float(np.std(points, ddof=1)), scaling.least_std)
            if max(cell[:n]) > min(cell[:n]):
                together, alone = (
                    Limit(scaling, float(np.mean(points)), std, n, k, levels[k]) for k in (new, 1)
                )
                failed[0, number] |= not together.keeps(cell[n:])
                failed[1, number] |= not alone.keeps([min(cell[n:])])  # then every seed does
    return float(failed[0].mean()), float(failed[1].mean())


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


def cells_vary(records: Iterable[Record]) -> tuple[float, float]:
    """Return by how much the cells' log variances vary beyond chance, and the standard error of it.

    That is, as a mean over the protocols' measures, the variance over the cells of log s² less what
    it is for normal seeds of one spread, trigamma((n − 1) / 2).
    """
    found = []
    for section in sections(records):
        runs = [[results_of(record) for record in cell] for cell in section.cells.values()]
        for measure in runs[0][0]:
            values = [[run[measure] for run in cell if measure in run] for cell in runs]
            few = [v for v in values if len(v) > 2]
            spreads = [np.var(scaling_of(measure, v).points(v), ddof=1) for v in few]
            if len(few) > 2 and min(spreads) > 0:
                chance = np.mean([special.polygamma(1, (len(v) - 1) / 2) for v in few])
                found.append(float(np.var(np.log(spreads), ddof=1) - chance))
    return float(np.mean(found)), float(stats.sem(found))

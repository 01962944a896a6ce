"""Means, intervals and tests over seeds: scipy.stats in the words of this field.

Functions take plain sequences of finite numbers, one for each seed, and know nothing of where they
come from. What cannot be computed from so few values is None, never NaN.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import optimize, special, stats

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A closed interval of numbers."""

    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """The mean of ``n`` values (None of none) and their sample std, ddof = 1 (None below two)."""

    n: int
    mean: float | None
    std: float | None


def summary(values: Sequence[float]) -> Summary:
    """Return the number of values, their mean and their sample standard deviation."""
    n = len(values)
    return Summary(
        n,
        float(np.mean(values)) if n else None,
        float(np.std(values, ddof=1)) if n > 1 else None,
    )


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Return Student's two-sided confidence interval of the mean; None below two values."""
    if len(values) < 2:
        return None
    mean, std = float(np.mean(values)), float(np.std(values, ddof=1))
    return _interval(mean, std / math.sqrt(len(values)), len(values) - 1, confidence)


def _interval(mean: float, error: float, freedom: int, confidence: float = 0.95) -> Interval:
    half = _t_quantile((1 + confidence) / 2, freedom) * error
    return Interval(mean - half, mean + half)


Side = Literal["lower", "upper"]
Numbers = TypeVar("Numbers", float, FloatArray)


def prediction_bound(values: Sequence[float], level: float, side: Side, new: int = 1) -> float:
    """Return the bound that the mean of ``new`` further values keeps with probability ``level``.

    See `prediction_limit`.

    Raises:
        ValueError: fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"values must be at least two, got {len(values)}")
    mean, std = float(np.mean(values)), float(np.std(values, ddof=1))
    return prediction_limit(mean, std, len(values), level, side, new)


def prediction_limit(
    mean: Numbers,
    std: Numbers,
    n: int,
    level: float,
    side: Side,
    new: int = 1,
    freedom: int | None = None,
) -> Numbers:
    """Return the bound from the mean and sample std of ``n`` values; element-wise for arrays.

    It is mean ∓ t(level, n − 1) · s · sqrt(1/new + 1/n), the exact one-sided prediction limit for
    independent normal values (Hahn & Meeker, Statistical Intervals, 1991, section 4.8). Where the
    std comes from more than these values, ``freedom`` is its degrees of freedom.
    """
    quantile = _t_quantile(level, n - 1 if freedom is None else freedom)
    reach = quantile * math.sqrt(1 / new + 1 / n) * std
    return mean - reach if side == "lower" else mean + reach


def detection_rate(
    shift: float, n: int, level: float, new: int = 1, freedom: int | None = None
) -> float:
    """Return the probability that a shift for the worse, in standard deviations, crosses the limit.

    For normal values whose spread stays, the difference of the two means over
    s · sqrt(1/new + 1/n) is noncentral t with the degrees of freedom of s.
    """
    freedom = n - 1 if freedom is None else freedom
    noncentrality = shift / math.sqrt(1 / new + 1 / n)
    return float(stats.nct.sf(_t_quantile(level, freedom), freedom, noncentrality))


@functools.cache
def detectable_shift(
    n: int, level: float, new: int = 1, freedom: int | None = None, rate: float = 0.9
) -> float:
    """Return the smallest shift, in standard deviations, that is found at this rate."""
    highest = 1.0
    while detection_rate(highest, n, level, new, freedom) < rate:
        highest *= 2

    def missed(shift: float) -> float:
        return detection_rate(shift, n, level, new, freedom) - rate

    return float(optimize.brentq(missed, 0, highest))


@functools.cache
def _t_quantile(probability: float, freedom: int) -> float:
    return float(stats.t.ppf(probability, freedom))


def detectable_gain(std: float, n: int, alpha: float = 0.05, power: float = 0.9) -> float | None:
    """Return the smallest mean difference that n pairs show, or None below two.

    That is the mean of normal differences with this std for which the two-sided paired t-test at
    ``alpha`` is significant, on the side of the mean, with probability ``power``.
    """
    return None if n < 2 else _detectable(n, alpha, power) * std / math.sqrt(n)


@functools.cache
def _detectable(n: int, alpha: float, power: float) -> float:
    """Return the noncentrality at which the t-test of n differences has this power."""
    critical = _t_quantile(1 - alpha / 2, n - 1)

    def found(noncentrality: float) -> float:
        return float(stats.nct.sf(critical, n - 1, noncentrality)) - power

    highest = 1.0
    while found(highest) < 0:
        highest *= 2
    return float(optimize.brentq(found, 0, highest))


EQUAL = 1e-9  # differences that differ by less than this part of the largest are equal


def without_rounding(differences: Sequence[float]) -> list[float]:
    """Return differences in which those that differ by rounding alone are equal.

    Accuracies are counts over a number of examples. Equal differences of counts come out unequal in
    the 14th digit, and a test would take that digit for their whole spread.
    """
    largest = max(map(abs, differences), default=0.0)
    sizes: dict[float, float] = {}
    last = 0.0
    for size in sorted(map(abs, differences)):
        if size - last > EQUAL * largest:
            last = size
        sizes[size] = last
    return [math.copysign(sizes[abs(d)], d) for d in differences]


@dataclass(frozen=True)
class Paired:
    """What paired differences say; a number that n does not allow is None."""

    n: int
    mean: float
    interval: Interval | None  # of the mean, 95 %, by Student's t
    t_p: float | None  # two-sided, paired t-test
    wilcoxon_p: float | None  # two-sided, exact signed-rank test; n of at least 6
    effect: float | None  # Hedges' g: mean / std, corrected for small n; n of at least 3


def paired(differences: Sequence[float], *, signed_rank: bool = True) -> Paired | None:
    """Return the mean, interval, tests and effect size of paired differences, or None without any.

    Differences that are all equal have no test: their spread is unknown, not zero. Below n = 6
    the exact signed-rank test cannot reach 5 % (its smallest p-value is 2^(1 − n)), so it is not
    run. Its p-value is exact up to 50 differences of different sizes, and up to 13 with ties or
    zeros among them. More of those take 8,192 random sign changes, and more than 50 differences
    the normal approximation. The effect size is d = mean / std times J(n − 1), which makes it
    unbiased (Hedges, Journal of Educational Statistics 6, 1981). Two pairs have none: the mean of d
    is infinite there.

    Differences that differ by rounding alone count as equal; see `without_rounding`. Without
    ``signed_rank``, which takes half of the time, that test is left out.
    """
    n = len(differences)
    if n == 0:
        return None
    differences = without_rounding(differences)
    mean = float(np.mean(differences))
    std = float(np.std(differences, ddof=1)) if min(differences) < max(differences) else 0.0
    if not std:
        return Paired(n, mean, None, None, None, None)
    # scipy's ttest_1samp takes 20 times as long, and simulations make hundreds of thousands
    error = std / math.sqrt(n)
    return Paired(
        n,
        mean,
        _interval(mean, error, n - 1),
        2 * float(special.stdtr(n - 1, -abs(mean) / error)),
        _signed_rank(differences) if signed_rank and n >= 6 else None,
        mean / std * _hedges(n - 1) if n >= 3 else None,
    )


def _signed_rank(differences: Sequence[float]) -> float:
    tied = len({abs(d) for d in differences}) < len(differences) or 0 in differences
    method: Literal["exact", "approx"] | stats.PermutationMethod
    if len(differences) > 50:
        method = "approx"
    elif tied:
        method = stats.PermutationMethod(n_resamples=2**13, rng=0)
    else:
        method = "exact"
    return float(stats.wilcoxon(differences, method=method).pvalue)


def _hedges(freedom: int) -> float:
    """Return Hedges' J of at least two degrees of freedom, which is below 1 and tends to it."""
    ratio = math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2)
    return math.exp(ratio) / math.sqrt(freedom / 2)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm, Scandinavian J. of Statistics 6, 1979).

    To reject the hypotheses whose adjusted value is below α has a family-wise error of at most α,
    whatever their dependence.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0  # an adjusted value is at least those of the smaller p-values
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


@dataclass(frozen=True)
class Correlation:
    """Kendall's τ-b of ``n`` points in ``clusters`` groups, and its 95 % interval."""

    n: int
    clusters: int
    tau: float
    interval: Interval | None


def kendall(
    x: Sequence[float],
    y: Sequence[float],
    clusters: Sequence[object],
    strata: Sequence[object] | None = None,
    resamples: int = 2000,
) -> Correlation | None:
    """Return Kendall's τ-b between clusters, with a bootstrap interval that resamples clusters.

    Runs of one cell under several seeds are not independent evidence of a relation between cells.
    So only pairs of points from two clusters count, and whole clusters are drawn (Davison &
    Hinkley, Bootstrap Methods, 1997, section 3.8); the interval has the percentiles of τ over the
    draws. The draws are seeded: the same data give the same interval.

    Args:
        x: one value for each point.
        y: one value for each point.
        clusters: the cluster of each point.
        strata: the stratum of each point, one for a whole cluster. Only pairs within a stratum
            count, and each stratum is drawn from by itself. None means one stratum.
        resamples: how often the clusters are drawn.

    Returns:
        τ, or None where it is undefined: no pair, or one side constant. It has no interval below
        5 clusters, or where all pairs agree.
    """
    groups: dict[object, int] = {}
    group = np.array([groups.setdefault(cluster, len(groups)) for cluster in clusters], int)
    stratum = {} if strata is None else dict(zip(group.tolist(), strata, strict=True))
    members: dict[object, list[int]] = {}
    for g in range(len(groups)):
        members.setdefault(stratum.get(g), []).append(g)
    within = np.zeros((len(groups), len(groups)))
    for same in members.values():
        within[np.ix_(same, same)] = 1
    np.fill_diagonal(within, 0)  # copies of one cluster in a resample are no pair either
    concordant, untied_x, untied_y = (
        sums * within
        for sums in _pairs_between(np.asarray(x, float), np.asarray(y, float), group, len(groups))
    )

    def taus(counts: FloatArray) -> FloatArray:
        """Return τ of samples, from how often each holds each group: (samples, groups)."""
        sums = [((counts @ m) * counts).sum(1) for m in (concordant, untied_x, untied_y)]
        with np.errstate(invalid="ignore"):  # 0 / 0: a resample with one side constant
            return np.asarray(sums[0] / np.sqrt(sums[1] * sums[2]))

    tau = float(taus(np.ones((1, len(groups))))[0])
    if math.isnan(tau):
        return None
    interval = None
    if len(groups) >= 5:
        random = np.random.default_rng(0)
        counts = np.zeros((resamples, len(groups)))
        for same in members.values():
            counts[:, same] = random.multinomial(
                len(same), np.full(len(same), 1 / len(same)), resamples
            )
        drawn = taus(counts)
        low, high = np.nanquantile(drawn, [0.025, 0.975])
        # where all pairs agree every resample agrees as well: that is no certainty
        interval = Interval(float(low), float(high)) if low < high else None
    return Correlation(len(x), len(groups), tau, interval)


def _pairs_between(
    x: FloatArray, y: FloatArray, group: npt.NDArray[np.int_], groups: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return, for every two groups, three sums over the pairs of their points, (groups, groups).

    The sums are of sign(Δx) sign(Δy), of Δx ≠ 0 and of Δy ≠ 0. The τ of a resample needs no more
    than these, so the n² work is done once instead of once for each resample.
    """
    order = np.argsort(group, kind="stable")
    x, y, group = x[order], y[order], group[order]
    starts = np.searchsorted(group, np.arange(groups))
    sums = np.zeros((3, groups, groups))
    for g in range(groups):
        # a sum over fewer than 128 rows fits 8 bits, and takes a fraction of the time
        for rows in np.array_split(np.flatnonzero(group == g), 1 + int(np.sum(group == g)) // 127):
            dx = (x[rows, None] > x).astype(np.int8) - (x[rows, None] < x)
            dy = (y[rows, None] > y).astype(np.int8) - (y[rows, None] < y)
            for which, signs in enumerate((dx * dy, dx * dx, dy * dy)):
                sum_of_rows = signs.sum(0, dtype=np.int8).astype(np.int64)
                sums[which, g] += np.add.reduceat(sum_of_rows, starts)
    return sums[0], sums[1], sums[2]

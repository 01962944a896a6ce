"""Limits: what new seeds must keep of one measure of one cell, and what such a limit can find.

A limit is a prediction limit on the measure's scale (`flatbench.stats.prediction_limit`). Whatever
the seeds spread, a cell whose accuracy is half of its baseline's or less has collapsed, and fails.
A limit so wide that half of the accuracy could be lost, or that a positive measure could grow more
than tenfold, checks nothing: it is reported as such, never as passed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import stats

from flatbench.gate.scales import Scaling
from flatbench.gate.verdict import Outcome, Row
from flatbench.protocols.reading import available, load
from flatbench.records.quantities import OUTCOMES, quantity
from flatbench.stats import EQUAL, Side, detectable_shift, prediction_limit

FOUND = 0.9  # how often a limit finds the smallest drop that is said of it
COLLAPSED = 0.5  # an accuracy has collapsed that is no more than this share of its baseline's
GROWTH = 10.0  # a limit checks nothing if a positive measure may grow by more than this factor
BEST = 4.0  # a value counts for no more than so many std better than the baseline's mean
CLASSES = {"digits": 10, "fashion-mnist": 10, "cifar10": 10, "cifar100": 100}


def chance(protocol: str, content: str | None) -> float | None:
    """Return the accuracy of guessing, percent, in one of flatbench's protocols.

    None where the protocol's content is another one: nothing says then how many classes it has.
    """
    ours = load(protocol) if protocol in available() else None
    if ours is None or ours.common_hash() != content or ours.data.name not in CLASSES:
        return None
    return 100 / CLASSES[ours.data.name]


def limit_point(
    scaling: Scaling,
    mean: float,
    std: float,
    n: int,
    new: int,
    level: float,
    freedom: int | None = None,
) -> float:
    """Return, on the scale, what a mean over ``new`` seeds is not worse than, with ``level``."""
    side: Side = "upper" if scaling.worse > 0 else "lower"
    return prediction_limit(mean, std, n, level, side, new, freedom)


@dataclass(frozen=True)
class Limit:
    """The limit that the mean of ``new`` seeds must keep, from a baseline of ``n`` seeds.

    The mean is taken on the scale, as ``mean`` and ``std`` of the baseline are. Without a std there
    is no limit, but a collapse is still one.
    """

    scaling: Scaling
    mean: float
    std: float | None
    n: int
    new: int
    level: float
    freedom: int | None = None  # of the std, where it is not n − 1
    margin: float = 0.0  # by what share a cost must be worse, besides
    given: float | None = None  # the limit, where it is a value that a file of thresholds has
    may_collapse: bool = False  # whether some seed of the baseline has collapsed
    chance: float | None = None  # the accuracy of guessing, where it is known

    @property
    def middle(self) -> float:
        """The baseline's mean as a value of the measure."""
        return self.scaling.value(self.mean)

    @cached_property
    def collapse(self) -> float | None:
        """The accuracy at and below which the cell has collapsed; None where none is a collapse."""
        if quantity(self.scaling.measure).unit != "%" or self.may_collapse or self.middle <= 0:
            return None
        return COLLAPSED * self.middle

    @cached_property
    def point(self) -> float | None:
        """The limit on the scale, by the spread alone."""
        if self.given is not None:
            return self.scaling.points([self.given])[0]
        if self.std is None:
            return None
        point = limit_point(
            self.scaling, self.mean, self.std, self.n, self.new, self.level, self.freedom
        )
        if self.margin:  # only costs have one, and are worse above
            point = max(point, *self.scaling.points([self.middle * (1 + self.margin)]))
        return point

    @property
    def value(self) -> float | None:
        """The worst value that passes; None if every value does."""
        limit = None if self.point is None else self.scaling.value(self.point)
        if self.collapse is None or limit is None:
            return limit if self.collapse is None else self.collapse
        return max(limit, self.collapse)

    def mean_of(self, values: Sequence[float]) -> float:
        """Return the mean of new values on the scale.

        A value counts for no more than 4 std better than the baseline's mean. So a value without a
        place on the scale has one, no lucky seed hides what became of the others, and a better
        value never gives a worse mean.
        """
        points = np.array(self.scaling.points(values))
        if self.std is not None:
            end = self.mean - self.scaling.worse * BEST * self.std
        else:
            end = self.mean
        worse = np.maximum if self.scaling.worse > 0 else np.minimum
        return float(np.mean(worse(points, end)))

    def now(self, values: Sequence[float]) -> float:
        """Return the mean of new values, as a value: of what fails, the one that is judged."""
        if not self.keeps(values):
            return self.scaling.value(self.mean_of(values))
        return self.scaling.value(float(np.mean(self.scaling.points(values))))

    def keeps(self, values: Sequence[float]) -> bool:
        """Return whether the mean of new values is no worse than the limit, and no collapse."""
        mean = self.mean_of(values)
        # a tie with the collapse is one, whatever the rounding
        if self.collapse is not None and self.scaling.value(mean) <= self.collapse * (1 + EQUAL):
            return False
        return self.point is None or self.scaling.worse * (mean - self.point) <= 0

    @property
    def by_collapse(self) -> bool:
        """Whether a collapse is the limit, and not the spread."""
        return self.collapse is not None and self.value == self.collapse

    @cached_property
    def found(self) -> float | None:
        """The nearest worse value that is found 9 times out of 10; None if none is."""
        if self.std is None:
            return None
        shift = self.std * detectable_shift(self.n, self.level, self.new, self.freedom, FOUND)
        by_both = self.std * (1 / self.n + 1 / self.new) ** 0.5
        point = self.mean + self.scaling.worse * shift
        if self.margin:
            (allowed,) = self.scaling.points([self.middle * (1 + self.margin)])
            point = max(point, allowed + float(stats.norm.ppf((1 + FOUND) / 2)) * by_both)
        if self.collapse is not None:
            (collapsed,) = self.scaling.points([self.collapse])
            spread = self.scaling.worse * float(stats.norm.ppf(FOUND)) * self.std / self.new**0.5
            nearest = min if self.scaling.worse > 0 else max
            point = nearest(point, collapsed + spread)
        found = self.scaling.value(point)
        lost = quantity(self.scaling.measure).unit == "%" and found <= 0
        return None if lost or not np.isfinite(found) else found

    @property
    def drop(self) -> float | None:
        """How much worse the value is that is found 9 times out of 10."""
        return None if self.found is None else abs(self.middle - self.found)

    @property
    def finds(self) -> str:
        """What is found 9 times out of 10, in words: "a drop of 3.1 points"."""
        if self.drop is None:
            return "nothing"
        what = quantity(self.scaling.measure)
        if what.unit == "%":
            return f"a drop of {self.drop:.1f} points"
        return f"{'a drop' if what.better == 'higher' else 'a rise'} of {shown(self.drop)}"

    @property
    def _guessed(self) -> float:
        """The accuracy of guessing; where the classes are unknown, of as few as there can be."""
        if self.chance is not None:
            return self.chance
        guesses = (100 / classes for classes in range(2, 1001))
        return next((guess for guess in guesses if guess < self.middle), 0.0)

    @property
    def blind(self) -> str | None:
        """Why this limit checks nothing, or None if it does."""
        what = quantity(self.scaling.measure)
        if self.point is None:
            same = " with one and the same value" if self.n > 1 else ""
            return f"the baseline's {seeds(self.n)}{same} cannot tell the spread"
        limit = self.scaling.value(self.point)
        if what.better == "higher" and self.middle > 0 and limit <= COLLAPSED * self.middle:
            return (
                f"by the spread alone it could fall from {shown(self.middle)} to {shown(limit)}, "
                "and half of it be lost"
            )
        if what.unit == "%" and limit <= (guessed := self._guessed):
            return f"its limit {shown(limit)} is no better than guessing, {shown(guessed)}"
        if self.scaling.scale == "log" and limit > GROWTH * self.middle:
            return (
                f"it could grow from {shown(self.middle)} to {shown(limit)}, more than "
                f"{GROWTH:g}-fold"
            )
        return None


def row_of(what: str, limit: Limit, now: Sequence[float]) -> Row:
    """Return a check's numbers in words."""
    higher = quantity(limit.scaling.measure).better == "higher"
    kind = "above" if limit.by_collapse else "at least" if higher else "at most"
    return Row(
        what,
        shown(limit.middle),
        shown(limit.now(now)),
        "none" if limit.value is None else f"{kind} {shown(limit.value)}",
        limit.finds,
    )


def kept(where: str, row: Row, limit: Limit) -> Outcome:
    """Return the outcome of a cell whose measure keeps its limit; a blind one has checked nothing.

    Args:
        where: the cell and the measure.
        row: the numbers.
        limit: the limit that they keep.
    """
    numbers = (
        f"{where} {row.now} over {seeds(limit.new)} "
        f"{'has no limit' if limit.value is None else f'is {row.limit}'}; baseline: "
        f"{row.baseline} over {seeds(limit.n)}"
    )
    drop = None
    if limit.scaling.measure in OUTCOMES:
        drop = math.inf if limit.drop is None else limit.drop
    if limit.blind is not None:
        return Outcome(where, "can't check", f"{numbers}; {limit.blind}", (row,), drop)
    return Outcome(where, "passed", f"{numbers}; {power(row.finds)}", (row,), drop)


def shown(value: float) -> str:
    """Return a number as the gate prints it."""
    return f"{value:.4g}"


def power(finds: str) -> str:
    """Return, as part of a sentence, what a limit finds."""
    return f"9 times out of 10 such a limit finds {finds}"


def seeds(number: int) -> str:
    """Return "1 seed" or "3 seeds"."""
    return f"{number} seed{'s' * (number != 1)}"

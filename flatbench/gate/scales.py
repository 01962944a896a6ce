"""The scale on which a measure is taken to be normal over seeds.

Sharpness, time and memory are positive scale quantities: seeds spread them by factors rather than
by amounts, the spread grows with the size, and no limit can fall below zero. So the scale is their
logarithm. For accuracies it is the logarithm of the error, 100 − accuracy: near the top, accuracies
are skewed to the bad side, and limits for normal accuracies are crossed more often than stated.
docs/gate.md has the skewness measured and the alarms simulated.

The baseline's values alone choose the scale, so that a better value now can never move the limit.
An error of zero has no logarithm. Where the baseline has one, one wrong example is added to every
error: such errors are counts near zero, and limits for them as normal values were crossed several
times as often as stated. A sharpness that is not above zero is taken as it is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from flatbench.records.quantities import Scale, quantity
from flatbench.stats import without_rounding

# Below one wrong example a seed the accuracies are nearly all equal, and their spread is no guide.
# From none to one wrong example is log 2 = 0.69 on the scale of errors with one example added.
LEAST_STD = 0.5


@dataclass(frozen=True)
class Scaling:
    """The scale of a measure, as its baseline's values choose it."""

    measure: str
    scale: Scale
    offset: float = 0.0  # added to an error before its logarithm, in points

    @property
    def worse(self) -> int:
        """The direction in which points become worse: 1, or −1 where lower points are worse."""
        return -1 if self.scale == "linear" and quantity(self.measure).better == "higher" else 1

    @property
    def least_std(self) -> float:
        """The smallest std over seeds that is believed."""
        return LEAST_STD if self.offset else 0.0

    def points(self, values: Sequence[float]) -> list[float]:
        """Return the values' places on the scale; −inf for one that is better than any place."""
        if self.scale == "linear":
            return list(values)
        plain = values if self.scale == "log" else [100 - v + self.offset for v in values]
        return [math.log(x) if x > 0 else -math.inf for x in plain]

    def value(self, point: float) -> float:
        """Return the value at a place of the scale; an accuracy's lies between 0 and 100."""
        if self.scale == "linear":
            return min(max(point, 0.0), 100.0) if quantity(self.measure).unit == "%" else point
        size = math.exp(min(point, 700.0))  # exp overflows beyond 709
        return size if self.scale == "log" else min(max(100 + self.offset - size, 0.0), 100.0)


def scaling_of(measure: str, baseline: Sequence[float]) -> Scaling:
    """Return the scale of a measure in a cell whose baseline has these values."""
    scale = quantity(measure).scale
    if scale == "log-error" and max(baseline) >= 100:
        errors = without_rounding(sorted(100 - v for v in baseline))
        # the smallest step between two accuracies is one example of the test part
        steps = [b - a for a, b in itertools.pairwise(errors) if b > a]
        return Scaling(measure, scale, min(steps)) if steps else Scaling(measure, "linear")
    if scale == "log" and min(baseline) <= 0:
        return Scaling(measure, "linear")
    return Scaling(measure, scale)

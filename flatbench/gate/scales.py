"""The scale on which a measure is taken to be normal over seeds, and limits on that scale.

Sharpness, time and memory are positive scale quantities: seeds spread them by factors rather than
by amounts, the spread grows with the size, and no limit can fall below zero. So the scale is their
logarithm. For accuracies it is the logarithm of the error, 100 − accuracy: near the top, accuracies
are skewed to the bad side, and limits for normal accuracies are crossed more often than stated.
docs/gate.md has the skewness measured and the alarms simulated. Where a value is not above zero
there is no logarithm, and the values are taken as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from flatbench.records.quantities import Scale, quantity
from flatbench.stats import prediction_limit


def scale_of(measure: str, values: Sequence[float]) -> Scale:
    """Return the scale of a measure, or "linear" where one of these values has no logarithm."""
    scale = quantity(measure).scale
    fits = max(values) < 100 if scale == "log-error" else min(values) > 0
    return scale if fits else "linear"


def scaled(values: Sequence[float], scale: Scale) -> list[float]:
    """Return the values as points on a scale."""
    if scale == "linear":
        return list(values)
    return [math.log(100 - v if scale == "log-error" else v) for v in values]


def unscaled(value: float, scale: Scale) -> float:
    """Return the value at a point of a scale; an accuracy's is at least 0."""
    if scale == "linear":
        return value
    if scale == "log":
        return math.exp(min(value, 700.0))  # exp overflows beyond 709
    return 100 - math.exp(min(value, math.log(100)))


def worse_limit(
    measure: str, mean: float, std: float, n: int, level: float, scale: Scale, new: int = 1
) -> float:
    """Return the limit that a mean over ``new`` seeds keeps with probability ``level``.

    It is a value of the measure, and lies on the side where the measure is worse. ``mean`` and
    ``std`` are those of ``n`` values on the scale, and the mean over the new seeds must be taken
    on the scale too.
    """
    # On the scale of its error a lower accuracy is a higher point, so the limit is an upper one.
    falls = quantity(measure).better == "higher" and scale == "linear"
    limit = prediction_limit(mean, std, n, level, "lower" if falls else "upper", new)
    return unscaled(max(limit, 0.0) if falls else limit, scale)

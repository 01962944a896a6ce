"""Points of a search space: quasi-random, the same ones every time."""

from __future__ import annotations

import math
from typing import Any

from scipy.stats import qmc

from flatbench.protocols.tuning import Choice, Range, Space

EDGE = 0.1  # the part of a range, in its logarithm, that counts as an edge of it


def points(space: Space, trials: int) -> list[dict[str, Any]]:
    """Return points of a space: a scrambled Halton sequence with a fixed seed.

    They fill the space more evenly than random points or, of several hyperparameters, a grid
    (Bousquet et al. 2017, arXiv:1706.03200). The first n of more points are the n points, so trials
    that are done already stay of use when more are asked for.

    Args:
        space: what is tuned; ranges are uniform in their logarithm, and rounded to 3 digits.
        trials: how many points, at least 1.
    """
    unit = qmc.Halton(len(space), scramble=True, rng=0).random(trials)
    return [
        {name: _value(found, float(u)) for (name, found), u in zip(space.items(), row, strict=True)}
        for row in unit
    ]


def _value(found: Range | Choice, unit: float) -> Any:
    if isinstance(found, Range):
        rounded = float(f"{found.low * (found.high / found.low) ** unit:.3g}")
        return min(max(rounded, found.low), found.high)
    return found[min(int(unit * len(found)), len(found) - 1)]


def is_at_edge(found: Range | Choice, value: Any) -> bool:
    """Return whether a value lies in the outer tenth of a range, or at an end of a choice.

    A choice has ends where its values are more than two numbers.
    """
    if isinstance(found, Range):
        place = math.log(value / found.low) / math.log(found.high / found.low)
        return not EDGE <= place <= 1 - EDGE
    numbers = [v for v in found if isinstance(v, int | float) and not isinstance(v, bool)]
    return len(numbers) == len(found) > 2 and value in (min(numbers), max(numbers))

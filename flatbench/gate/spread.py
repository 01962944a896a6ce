"""How far the seeds of a cell spread, where the baseline has few of them.

Two or three seeds of a cell say next to nothing about its spread, but the other cells' seeds do:
their variances are pooled, and count for `PRIOR` degrees of freedom beside the cell's own (the
moderated t of Smyth, Statistical Applications in Genetics and Molecular Biology 3, 2004, with a
prior that is known). So few, because the cells of the published grids differ: the logarithms of
their variances vary by about 0.5 beyond what chance does, and those of a scaled inverse χ² with 4
degrees of freedom by 0.64. docs/gate.md has the false alarms that this costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

PRIOR = 4
ENOUGH = 10  # so many seeds tell their own spread; see docs/gate.md, "Power"


@dataclass(frozen=True)
class Spread:
    """The std of a cell's seeds on a scale, and its degrees of freedom."""

    std: float
    freedom: int


def pooled(groups: Iterable[Sequence[float]]) -> Spread | None:
    """Return the spread within groups of values, or None where no group has two of them."""
    kept = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in kept)
    if not freedom:
        return None
    # less their first, equal values have a variance of exactly 0
    squares = sum(float(np.var(np.subtract(g, g[0]), ddof=1)) * (len(g) - 1) for g in kept)
    return Spread(math.sqrt(squares / freedom), freedom)


def moderated(own: Spread | None, others: Spread | None) -> Spread | None:
    """Return the spread of a cell, from its own seeds and from those of the other cells.

    Its own are enough from 10 seeds on. None where neither says anything.
    """
    if others is None or (own is not None and own.freedom >= ENOUGH - 1):
        return own
    prior = min(PRIOR, others.freedom)
    if own is None:
        return Spread(others.std, prior)
    freedom = own.freedom + prior
    variance = (own.freedom * own.std**2 + prior * others.std**2) / freedom
    return Spread(math.sqrt(variance), freedom)

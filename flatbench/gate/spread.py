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


def spread_of(values: Sequence[float]) -> Spread | None:
    """Return the spread of values, or None below two."""
    if len(values) < 2:
        return None
    # less their first, equal values have a std of exactly 0
    return Spread(float(np.std(np.subtract(values, values[0]), ddof=1)), len(values) - 1)


def pooled(groups: Iterable[Spread | None]) -> Spread | None:
    """Return the spread within groups of values, or None where no group has one."""
    kept = [group for group in groups if group is not None]
    freedom = sum(group.freedom for group in kept)
    if not freedom:
        return None
    return Spread(math.sqrt(sum(g.std**2 * g.freedom for g in kept) / freedom), freedom)


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

"""Places: which rows are best, as far as the seeds can tell."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from flatbench.records.quantities import Quantity
from flatbench.records.sections import Section
from flatbench.report.comparisons import Question, compared


@dataclass(frozen=True)
class Place:
    """The places that a row may have among others by one quantity.

    Attributes:
        first: one more than the rows that are told to be better.
        last: all rows that have a place, less those that are told to be worse.
    """

    first: int
    last: int

    def __str__(self) -> str:
        """Return "3", or "1–9" where the seeds leave it open."""
        return str(self.first) if self.first == self.last else f"{self.first}–{self.last}"


def places(
    section: Section, architecture: str, rows: Sequence[str], measured: Quantity
) -> dict[str, Place]:
    """Return each row's place by one quantity on one architecture; none of a row without a value.

    Every two rows are compared by seed as a report compares them, with Holm's adjustment for all
    these pairs. So in at least 95 of 100 such tables no two rows are told apart in the wrong order,
    and every row's true place is among those that it is given. It is the joint confidence set for
    ranks of Klein, Wright & Wieczorek (2020), "A joint confidence region for an overall ranking of
    populations", Journal of the Royal Statistical Society C 69, 589–606.
    """
    kept = [row for row in rows if section.values(architecture, row, measured.name)]
    questions = [
        Question(architecture, one, other, "places", other)
        for one, other in itertools.combinations(kept, 2)
    ]
    better, worse = dict.fromkeys(kept, 0), dict.fromkeys(kept, 0)
    for found in compared(section, measured, questions):
        winner, loser = found.question.mine, found.question.reference
        if found.verdict == "worse":
            winner, loser = loser, winner
        elif found.verdict != "better":
            continue
        worse[winner] += 1
        better[loser] += 1
    return {row: Place(1 + better[row], len(kept) - worse[row]) for row in kept}

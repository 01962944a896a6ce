"""Is mine better? The answer that records give, with its uncertainty; `sentences` has its words."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flatbench.records.quantities import OUTCOMES, quantity, results_of
from flatbench.records.sections import Section
from flatbench.report.comparisons import Comparison, Question, compared, headline


@dataclass(frozen=True)
class Answer:
    """All comparisons of an optimizer.

    Attributes:
        mine: its row.
        outcome: by what the runs are judged by, as accuracy.
        flatness: by the `headline` measure.
        other_flatness: by every other sharpness measure.
        lost: the compared runs that came to no end, with the reason.
    """

    mine: str
    outcome: tuple[Comparison, ...]
    flatness: tuple[Comparison, ...]
    other_flatness: tuple[Comparison, ...]
    lost: tuple[str, ...]

    def of(self, reference: str) -> tuple[Comparison, ...]:
        """Return the outcome's comparisons with one reference row."""
        return tuple(c for c in self.outcome if c.question.about == reference)

    def to_json(self) -> dict[str, Any]:
        """Return the answer in JSON's own types."""
        return dataclasses.asdict(self)


def answer(section: Section, mine: str, questions: Sequence[Question]) -> Answer:
    """Return the answer to questions about the row ``mine``."""
    records = [
        r
        for q in questions
        for row in (q.mine, q.reference)
        for r in section.cell(q.architecture, row)
    ]
    measured = dict.fromkeys(
        name for r in records for name in results_of(r) if name not in OUTCOMES
    )
    first = headline(measured)
    lost = dict.fromkeys(
        f"{r.id}: {r.reason or r.status}" for r in records if r.status != "completed"
    )
    return Answer(
        mine,
        compared(section, section.outcome, questions),
        compared(section, quantity(first), questions),
        tuple(
            c
            for name in measured
            if name != first
            for c in compared(section, quantity(name), questions)
        ),
        tuple(lost),
    )


def require(found: Answer, reference: str) -> str | None:
    """Return why mine is not better than a reference row, or None if it is in every comparison."""
    compared = found.of(reference)
    if not compared:
        return f"better-than={reference}: it was not compared"
    short = [c for c in compared if c.verdict != "better"]
    if not short:
        return None
    q = short[0].question
    return f"better-than={reference}: {q.architecture}, {q.terms}: {short[0].verdict}"

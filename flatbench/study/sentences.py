"""The words of an answer: a line for each comparison."""

from __future__ import annotations

from collections.abc import Sequence

from flatbench.records.quantities import Quantity
from flatbench.report.comparisons import Comparison, tests_of
from flatbench.report.numbers import ALPHA
from flatbench.report.sentences import sentence
from flatbench.study.answer import Answer
from flatbench.text import ranges


def lines(found: Answer, outcome: Quantity) -> list[str]:
    """Return the answer, a line for each comparison of the outcome and of the headline measure."""
    made = [f"lost: {line}" for line in found.lost]
    made.append(f"{outcome.titled()}, {_terms(found.outcome)}:")
    made += [f"  {sentence(c, outcome)}" for c in found.outcome]
    made.append(f"flatness, {_terms(found.flatness)}:")
    made += [f"  {sentence(c, outcome)}" for c in found.flatness]
    both = (*found.outcome, *found.flatness)
    unclear = sum(c.verdict == "can't tell" for c in both)
    if unclear:
        made.append(
            f"can't tell in {unclear} of {len(both)} comparisons: there may be differences that "
            "so few seeds do not show"
        )
    return made


def flatness_lines(found: Answer, outcome: Quantity) -> list[str]:
    """Return a line for each comparison by the other sharpness measures."""
    return [sentence(c, outcome) for c in found.other_flatness]


def _terms(compared: Sequence[Comparison]) -> str:
    """Return on which seeds, and how the tests were adjusted."""
    seeds = sorted({seed for c in compared for seed in c.seeds})
    on = f"over seeds {ranges(seeds)}" if seeds else "over no seed"
    tests = tests_of(compared)
    if not tests:
        return on
    return (
        f"{on}; p by the paired t-test, adjusted for {tests} "
        f"comparison{'s' if tests != 1 else ''} (Holm); what would have shown is at the strictest "
        f"of their levels, {100 * ALPHA / tests:.2g} %"
    )

"""The words of an answer: a line for each comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from flatbench.records.quantities import Quantity, quantity
from flatbench.report.numbers import ALPHA
from flatbench.study.answer import Answer, Comparison, tests_of
from flatbench.text import number, ranges

OF_SHARPNESS: Mapping[str, str] = {"better": "flatter", "worse": "sharper"}


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


def sentence(found: Comparison, outcome: Quantity) -> str:
    """Return a comparison in one line."""
    q = found.question
    where = f"{q.architecture}, {q.terms}"
    title = _title(found)
    if found.gain is None:
        return f"{where}: {q.mine} − {q.reference}: no seed that has both: can't tell"
    n = f"{len(found.seeds)} seed{'s' if len(found.seeds) > 1 else ''}"
    if found.verdict == "the same":
        of = f" in {title}" if found.is_of_logarithms else ""
        return f"{where}: {q.mine} equals {q.reference}{of}, bit for bit, in {n}: the same"
    if found.is_of_logarithms:
        parts = [
            f"{where}: {q.mine} has {_amount(found, found.gain, outcome)} {q.reference}'s {title}"
        ]
    else:
        gain = _amount(found, found.gain, outcome, sign=True)
        parts = [f"{where}: {q.mine} − {q.reference}: {gain}{_unit(outcome)}"]
    if found.interval is not None:
        ends = [found.interval.low, found.interval.high]
        if found.is_of_logarithms:  # the larger gain is the smaller ratio
            ends.reverse()
        low, high = (_amount(found, end, outcome, sign=True) for end in ends)
        parts.append(f"95 % from {low} to {high}")
    parts.append(f"no test of {n}" if found.p is None else _p(found.p))
    if found.detectable is not None:
        shown = f"{_amount(found, found.detectable, outcome)}{_unit(outcome)}"
        if found.is_of_logarithms:
            shown = f"a factor of {math.exp(found.detectable):.3g}"
        parts.append(f"{n} would have shown {shown} 9 times out of 10")
    word: str = found.verdict
    if found.is_of_logarithms:
        word = OF_SHARPNESS.get(word, word)
    return f"{', '.join(parts)}: {word}{_why(found)}"


def _amount(found: Comparison, gain: float, outcome: Quantity, *, sign: bool = False) -> str:
    """Return a gain, or the ratio that a gain of logarithms stands for."""
    if found.is_of_logarithms:
        return f"{math.exp(-gain):.3g} ×"
    return number(gain, 2 if outcome.unit == "%" else 4, sign=sign)


def _unit(outcome: Quantity) -> str:
    return " points" if outcome.unit == "%" else ""


def _title(found: Comparison) -> str:
    title = quantity(found.measure).titled()
    return title if title[:2].isupper() else title[0].lower() + title[1:]


def _p(p: float) -> str:
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def _why(found: Comparison) -> str:
    """Return what is missing, where that alone keeps a difference from a verdict."""
    if found.verdict != "can't tell" or found.p is None or found.p >= ALPHA:
        return ""
    if found.unmeasured:
        return f", since seeds {ranges(found.unmeasured)} have no value above 0"
    q = found.question
    row, lost = (q.mine, found.lost) if found.lost else (q.reference, found.reference_lost)
    return f", since {row} came to no end with seeds {ranges(lost)}"


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

"""Is mine better? The answer that records give, with its uncertainty, in numbers and in words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flatbench.records.quantities import Quantity, quantity, value_of
from flatbench.records.sections import Section
from flatbench.report.numbers import ALPHA
from flatbench.stats import Interval, detectable_gain, holm, paired, summary, without_rounding
from flatbench.text import number, ranges

Verdict = Literal["better", "worse", "can't tell", "the same"]
HEADLINES = ("hessian_max_eigenvalue", "hessian_trace", "ascent_sharpness", "sam_sharpness")
OF_SHARPNESS: Mapping[str, str] = {"better": "flatter", "worse": "sharper"}


@dataclass(frozen=True)
class Question:
    """Two rows to be compared on one architecture, and what is equal between them."""

    architecture: str
    mine: str
    reference: str
    terms: str  # "equal epochs", "equal gradients", or both
    about: str  # the protocol's row that is asked about: reference, or what it trains longer


@dataclass(frozen=True)
class Comparison:
    """What the seeds that both rows completed say about one quantity.

    Attributes:
        question: what is compared.
        measure: the quantity's name.
        seeds: those that both rows completed with a value.
        gain: mean paired difference, above 0 where mine is better. Of a sharpness it is the mean of
            log(reference / mine), so that exp(−gain) is mine as a multiple of the reference's.
        interval: of the gain, 95 %, by Student's t.
        p: of the paired t-test, adjusted by Holm's method for all comparisons of this measure.
        detectable: the smallest gain that so many seeds, of the spread seen, would have shown 9
            times out of 10 at the level of the strictest of those tests.
        verdict: "the same" where every pair is equal; better or worse below p = 0.05.
    """

    question: Question
    measure: str
    seeds: tuple[int, ...]
    gain: float | None
    interval: Interval | None
    p: float | None
    detectable: float | None
    verdict: Verdict

    @property
    def is_of_logarithms(self) -> bool:
        """Whether the gain is of logarithms, as a sharpness's is."""
        return self.measure in HEADLINES


@dataclass(frozen=True)
class Answer:
    """All comparisons of an optimizer: of the outcome, and of one sharpness measure."""

    mine: str
    outcome: tuple[Comparison, ...]
    flatness: tuple[Comparison, ...]
    lost: tuple[str, ...]  # mine's runs that came to no end, with the reason

    def of(self, reference: str) -> tuple[Comparison, ...]:
        """Return the outcome's comparisons with one reference row."""
        return tuple(c for c in self.outcome if c.question.about == reference)

    def to_json(self) -> dict[str, Any]:
        """Return the answer in JSON's own types."""
        return dataclasses.asdict(self)


def answer(section: Section, mine: Sequence[str], questions: Sequence[Question]) -> Answer:
    """Return the answer to questions about the rows ``mine``, the first of which is the optimizer.

    Pairs are runs of the same seed, which share label noise, first weights and batches.
    """
    records = [r for q in questions for r in section.cell(q.architecture, q.mine)]
    found = next(
        (m for m in HEADLINES if any(value_of(r, m) is not None for r in records)), HEADLINES[-1]
    )
    lost = dict.fromkeys(
        f"{r.id}: {r.reason or r.status}" for r in records if r.status != "completed"
    )
    return Answer(
        mine[0],
        _compared(section, section.outcome, questions),
        _compared(section, quantity(found), questions),
        tuple(lost),
    )


def _compared(
    section: Section, measured: Quantity, questions: Sequence[Question]
) -> tuple[Comparison, ...]:
    gains = [_gains(section, measured, q) for q in questions]
    tests = [paired([*g.values()]) for g in gains]
    raw = {i: t.t_p for i, t in enumerate(tests) if t is not None and t.t_p is not None}
    adjusted = dict(zip(raw, holm([*raw.values()]), strict=True))
    made = []
    for i, (question, gain, test) in enumerate(zip(questions, gains, tests, strict=True)):
        p = adjusted.get(i)
        equal = [*gain.values()] and not any(gain.values())
        verdict: Verdict = "the same" if equal else "can't tell"
        if test is not None and p is not None and p < ALPHA:
            verdict = "better" if test.mean > 0 else "worse"
        spread = summary(without_rounding([*gain.values()])).std
        made.append(
            Comparison(
                question,
                measured.name,
                tuple(sorted(gain)),
                None if test is None else test.mean,
                None if test is None else test.interval,
                p,
                detectable_gain(spread, len(gain), ALPHA / len(raw)) if spread and raw else None,
                verdict,
            )
        )
    return tuple(made)


def _gains(section: Section, measured: Quantity, question: Question) -> dict[int, float]:
    """Return by how much mine is better, by seed; of a sharpness, how much smaller its log is."""
    if measured.name == section.outcome.name:
        return section.gains(question.architecture, question.mine, question.reference)
    pairs = section.pairs(question.architecture, question.mine, question.reference)
    values = {seed: [value_of(run, measured.name) for run in pair] for seed, pair in pairs.items()}
    return {
        # a sharpness at or below 0 has no logarithm: that pair says nothing here
        seed: 0.0 if one == other else math.log(other / one)
        for seed, (one, other) in values.items()
        if one is not None and other is not None and one > 0 and other > 0
    }


def sentence(found: Comparison, outcome: Quantity) -> str:
    """Return a comparison in one line."""
    q = found.question
    where = f"{q.architecture}, {q.terms}: {q.mine} − {q.reference}"
    if not found.seeds:
        return f"{where}: no seed that both completed: can't tell"
    if found.verdict == "the same":
        return f"{where}: equal in every one of {len(found.seeds)} seeds: the same"
    assert found.gain is not None
    if found.is_of_logarithms:
        return f"{_ratio(found)}: {OF_SHARPNESS.get(found.verdict, found.verdict)}"
    unit = " points" if outcome.unit == "%" else ""
    places = 2 if outcome.unit == "%" else 4
    parts = [f"{where}: {number(found.gain, places, sign=True)}{unit}"]
    if found.interval is not None:
        ends = (number(e, places, sign=True) for e in (found.interval.low, found.interval.high))
        parts.append(f"95 % from {' to '.join(ends)}")
    parts.append(_p(found.p))
    if found.detectable is not None:
        gain = number(found.detectable, places)
        parts.append(f"{len(found.seeds)} seeds show {gain} 9 times out of 10")
    return f"{', '.join(parts)}: {found.verdict}"


def _ratio(found: Comparison) -> str:
    q = found.question
    assert found.gain is not None
    title = quantity(found.measure).title
    parts = [
        f"{q.architecture}, {q.terms}: {q.mine} has {math.exp(-found.gain):.3g} × "
        f"{q.reference}'s {title[0].lower()}{title[1:]}"
    ]
    if found.interval is not None:
        ends = sorted(math.exp(-e) for e in (found.interval.low, found.interval.high))
        parts.append(f"95 % from {ends[0]:.3g} to {ends[1]:.3g}")
    parts.append(_p(found.p))
    if found.detectable is not None:
        factor = math.exp(-found.detectable)
        parts.append(f"{len(found.seeds)} seeds show {factor:.3g} × 9 times out of 10")
    return ", ".join(parts)


def _p(p: float | None) -> str:
    if p is None:
        return "no test"
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def lines(found: Answer, outcome: Quantity) -> list[str]:
    """Return the whole answer, a line for each comparison."""
    tests = sum(c.p is not None for c in found.outcome)
    made = [f"lost: {line}" for line in found.lost]
    seeds = sorted({seed for c in found.outcome for seed in c.seeds})
    made.append(
        f"{outcome.titled()}, over seeds {ranges(seeds) or 'none'}; p by the paired t-test, "
        f"adjusted for {tests} comparison{'s' if tests != 1 else ''}:"
    )
    made += [f"  {sentence(c, outcome)}" for c in found.outcome]
    made.append("flatness, in the same words:")
    made += [f"  {sentence(c, outcome)}" for c in found.flatness]
    return made


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

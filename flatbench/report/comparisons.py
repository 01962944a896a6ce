"""Is one row better than another? What records say, with its uncertainty.

`sentences` has the words.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Literal

from flatbench.records.quantities import (
    OUTCOMES,
    SAM_SHARPNESS,
    Quantity,
    results_of,
)
from flatbench.records.record import Record
from flatbench.records.sections import Section
from flatbench.report.numbers import ALPHA
from flatbench.stats import Interval, detectable_gain, holm, paired, summary, without_rounding

Verdict = Literal["better", "worse", "can't tell", "the same"]
# The sharpness that is answered with: the first of them that was measured.
HEADLINES = ("hessian_max_eigenvalue", "hessian_trace", "ascent_sharpness")


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
        lost: those that the reference completed and mine did not.
        reference_lost: those that mine completed and the reference did not.
        unmeasured: those that both completed, of which one has no value, or none above 0 where its
            logarithm is needed.
        gain: mean paired difference, above 0 where mine is better. Of a sharpness it is the mean of
            log(reference / mine), so that exp(−gain) is mine as a multiple of the reference's.
        interval: of the gain, 95 %, by Student's t.
        p: of the paired t-test, adjusted by Holm's method for all comparisons of this measure.
        detectable: the smallest gain that so many seeds, of the spread seen, would have shown 9
            times out of 10 at the level of the strictest of those tests.
        verdict: better or worse below p = 0.05, if no run that is missing could turn it; "the same"
            where every pair of runs is equal bit for bit. Both need two seeds.
    """

    question: Question
    measure: str
    seeds: tuple[int, ...]
    lost: tuple[int, ...]
    reference_lost: tuple[int, ...]
    unmeasured: tuple[int, ...]
    gain: float | None
    interval: Interval | None
    p: float | None
    detectable: float | None
    verdict: Verdict

    @property
    def is_of_logarithms(self) -> bool:
        """Whether the gain is of logarithms, as a sharpness's is."""
        return self.measure not in OUTCOMES


def headline(measured: Container[str]) -> str:
    """Return the sharpness measure that an answer is given by, of those that were measured."""
    return next((name for name in HEADLINES if name in measured), SAM_SHARPNESS)


def compared(
    section: Section, measured: Quantity, questions: Sequence[Question]
) -> tuple[Comparison, ...]:
    """Return the answers to questions about one quantity, adjusted for their number.

    Pairs are runs of the same seed, which share label noise, first weights and batches.
    """
    gains = [_gains(section, measured, q) for q in questions]
    tests = [paired([*g.values()], signed_rank=False) for g in gains]
    rows = [_rows(q) for q in questions]
    raw = {
        key: t.t_p
        for key, t in zip(rows, tests, strict=True)
        if t is not None and t.t_p is not None
    }
    adjusted = dict(zip(raw, holm([*raw.values()]), strict=True))
    made = []
    for question, key, gain, test in zip(questions, rows, gains, tests, strict=True):
        one, other = (_completed(section, question.architecture, row) for row in key[1:])
        # a seed that only one of the two was given is not lost
        mine, theirs = ({r.seed for r in section.cell(key[0], row)} for row in key[1:])
        both = mine & theirs
        spread = summary(without_rounding([*gain.values()])).std
        found = Comparison(
            question,
            measured.name,
            tuple(sorted(gain)),
            tuple(sorted(both & other.keys() - one.keys())),
            tuple(sorted(both & one.keys() - other.keys())),
            tuple(sorted((one.keys() & other.keys()) - gain.keys())),
            None if test is None else test.mean,
            None if test is None else test.interval,
            adjusted.get(key),
            detectable_gain(spread, len(gain), ALPHA / len(raw)) if spread and raw else None,
            "can't tell",
        )
        same = all(_are_the_same(one[seed], other[seed]) for seed in one.keys() & other.keys())
        made.append(dataclasses.replace(found, verdict=_verdict(found, same)))
    return tuple(made)


def _completed(section: Section, architecture: str, row: str) -> dict[int, Record]:
    return {r.seed: r for r in section.cell(architecture, row) if r.status == "completed"}


def _verdict(found: Comparison, same: bool) -> Verdict:
    """Return the verdict.

    Seeds that a row lost are no accident of the others: whatever they would have given, the
    comparison of the rest says nothing for the row that lost them.
    """
    if len(found.seeds) < 2:
        return "can't tell"
    if same and not found.lost and not found.reference_lost:
        return "the same"
    if found.p is None or found.p >= ALPHA or found.unmeasured or not found.gain:
        return "can't tell"
    if found.gain > 0:
        return "can't tell" if found.lost else "better"
    return "can't tell" if found.reference_lost else "worse"


def _are_the_same(one: Record, other: Record) -> bool:
    """Return whether two runs gave the same numbers, bit for bit, in every epoch."""

    def numbers(record: Record) -> tuple[object, ...]:
        curves = [
            (e.train_loss, e.train_accuracy, e.test_loss, e.test_accuracy) for e in record.history
        ]
        return record.train_loss, record.test_loss, results_of(record), curves

    return numbers(one) == numbers(other)


def _gains(section: Section, measured: Quantity, question: Question) -> dict[int, float]:
    """Return by how much mine is better, by seed; of a sharpness, how much smaller its log is."""
    if measured.name in OUTCOMES:
        return section.gains(question.architecture, question.mine, question.reference)
    mine, theirs = (
        section.values(question.architecture, row, measured.name)
        for row in (question.mine, question.reference)
    )
    return {
        seed: 0.0 if one == other else math.log(other / one)
        for seed, one in mine.items()
        if (other := theirs.get(seed)) is not None and one > 0 and other > 0
    }


def tests_of(compared: Sequence[Comparison]) -> int:
    """Return how many tests p was adjusted for: two questions about the same rows are one."""
    return len({_rows(c.question) for c in compared if c.p is not None})


def _rows(question: Question) -> tuple[str, str, str]:
    return question.architecture, question.mine, question.reference

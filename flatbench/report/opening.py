"""What a report says first: which row of each pair is better, how surely, and what can't be said.

Two lists of pairs are answered: every row over the one it is compared with, and over what took as
many gradients. They are those of the tables of gains and of equal compute, tests and all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flatbench.records.quantities import quantity
from flatbench.records.record import Record
from flatbench.report.comparisons import Comparison, Question, compared, tests_of
from flatbench.report.flatness import KINDS, headlines, kind_of
from flatbench.report.numbers import ALPHA, Gain, Numbers
from flatbench.report.sentences import Finding, finding
from flatbench.report.tables import usual_pairs

EQUAL_EPOCHS, EQUAL_GRADIENTS = "equal epochs", "equal gradients"


@dataclass(frozen=True)
class Answers:
    """The pairs that are compared on the same terms, and what was found of one quantity."""

    title: str  # "At equal epochs"
    count: str  # how many of them were told, and which way
    findings: tuple[Finding, ...]
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class Opening:
    """The answer."""

    outcome: tuple[Answers, ...]
    note: str  # how the findings are to be read
    flatness: tuple[str, ...]  # a sentence for each of the terms
    flatness_by_pair: tuple[Answers, ...]  # by the measures that an answer is given by
    warnings: tuple[str, ...]


def opening(numbers: Numbers) -> Opening:
    """Return what a section says first."""
    section = numbers.section
    asked = {title: questions for title, questions in _questions(numbers).items() if questions}
    outcome = [
        _answers(numbers, title, compared(section, section.outcome, questions))
        for title, questions in asked.items()
    ]
    flatness = {
        title: {m: compared(section, quantity(m), questions) for m in numbers.measures}
        for title, questions in asked.items()
    }
    said = [_flatness(numbers, title, found) for title, found in flatness.items()]
    return Opening(
        tuple(outcome),
        _note(outcome),
        tuple(sentence for sentence in said if sentence),
        tuple(
            _answers(numbers, f"{quantity(measure).heading}, {_inside(title)}", found[measure])
            for measure in headlines(numbers)
            for title, found in flatness.items()
        ),
        tuple(_warnings(numbers)),
    )


def _inside(title: str) -> str:
    """Return a title as it stands inside a sentence."""
    return f"{title[0].lower()}{title[1:]}"


def _questions(numbers: Numbers) -> dict[str, list[Question]]:
    """Return what is asked, by the terms."""

    def of(gains: Iterable[Gain], terms: str) -> list[Question]:
        ordered = sorted(gains, key=lambda g: section.optimizers.index(g.row))
        return [Question(g.architecture, g.row, g.base, terms, g.base) for g in ordered]

    section, gains = numbers.section, numbers.pair_gains
    alike = all(numbers.equal_epochs(g.architecture, g.row, g.base) for g in gains)
    first = f"At {EQUAL_EPOCHS}" if alike else "Against the row of its pair"
    return {
        first: of(gains, EQUAL_EPOCHS if alike else ""),
        f"At {EQUAL_GRADIENTS}": of(numbers.equal_compute, EQUAL_GRADIENTS),
    }


def _answers(numbers: Numbers, title: str, comparisons: Sequence[Comparison]) -> Answers:
    outcome = numbers.section.outcome
    of_logarithms = any(c.is_of_logarithms for c in comparisons)
    words = ("flatter", "sharper") if of_logarithms else ("better", "worse")
    if outcome.unit == "%" and not of_logarithms:
        words = ("more accurate", "less accurate")
    found = Counter(c.verdict for c in comparisons)
    same, unclear = found["the same"], found["can't tell"]
    who = "SAM" if numbers.all_sam else "the first row"
    parts = [
        f"{who} is {words[0]} in {found['better']} of {len(comparisons)}",
        f"{words[1]} in {found['worse']}",
        *([f"the same in {same}"] if same else []),
        f"can't tell in {unclear}",
    ]
    return Answers(
        title,
        ", ".join(parts),
        tuple(finding(c, outcome) for c in comparisons),
        tuple(comparisons),
    )


def _note(answers: Sequence[Answers]) -> str:
    counts = [tests_of(found.comparisons) for found in answers]
    if not any(counts):
        return ""
    levels = ", ".join(f"{100 * ALPHA / n:.2g} %" for n in dict.fromkeys(counts) if n)
    tests = " and ".join(str(n) for n in counts)
    return (
        "95 %: t-interval of the mean difference by seed. Verdict: paired t-test at "
        f"{100 * ALPHA:g} %, Holm-adjusted for the {tests} tests of a list. Could have shown: "
        f"9 times out of 10, at the strictest of these levels ({levels})."
    )


def _flatness(numbers: Numbers, title: str, by_measure: Mapping[str, Sequence[Comparison]]) -> str:
    """Return how many comparisons by sharpness go which way, by the kind of measure."""
    parts: list[str] = []
    for kind in KINDS:
        measures = [m for m in by_measure if kind_of(m) is kind]
        found = [c for m in measures for c in by_measure[m] if c.seeds]
        if found:
            told = Counter(c.verdict for c in found)
            lower = sum(c.gain is not None and c.gain > 0 for c in found)
            parts.append(
                f"in {lower} of {len(found)}{'' if parts else ' comparisons'} by "
                f"{kind.counted(len(measures))} (told flatter in {told['better']}, sharper in "
                f"{told['worse']})"
            )
    who = "SAM" if numbers.all_sam else "the first row"
    said = f"Flatness {_inside(title)}: {who} has the lower mean {', '.join(parts)}."
    return said if parts else ""


def _warnings(numbers: Numbers) -> Iterable[str]:
    """Yield what the numbers cannot say, in plain words."""
    section, gains = numbers.section, numbers.pair_gains
    lost = [r for r in section.records if r.status != "completed"]
    if lost:
        which = ", ".join(r.id for r in lost[:3])
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        yield f"{len(lost)} of {len(section.records)} runs have no result: {which}{more}."
    n = usual_pairs(gains)
    if n == 1:
        yield (
            "One seed: no interval and no test. A difference here may be the seed's as well as "
            "the optimizer's."
        )
    if 1 < n < 6:
        yield (
            f"The t-test takes the differences to be normal, which {n} values cannot show, and "
            f"without that no test of {n} pairs can reach 5 %: the signed-rank test's smallest "
            f"p-value is {2.0 ** (1 - n):g}. Read a verdict as worth more seeds, not as proof."
        )
    yield from _unequal(numbers)
    yield from _other_seeds(numbers)
    yield from _measure_failures(section.records)


def _unequal(numbers: Numbers) -> Iterable[str]:
    """Yield which gains are not gains at equal cost."""
    covered = {(gain.architecture, gain.row) for gain in numbers.equal_compute}
    without: dict[str, list[str]] = {}
    for gain in numbers.pair_gains:
        if (gain.architecture, gain.row) not in covered:
            without.setdefault(gain.row, []).append(gain.architecture)
    if without:
        rows = ", ".join(f"{row} ({', '.join(on)})" for row, on in without.items())
        why = "SAM takes two gradients a step, its base one. " if numbers.all_sam else ""
        yield f"{why}No row took as many gradients as {rows}: no gain of it is at equal cost."


def _other_seeds(numbers: Numbers) -> Iterable[str]:
    """Yield which pairs have fewer seeds than the others, where both rows completed some."""
    gains = [*numbers.pair_gains, *numbers.equal_compute]
    usual = usual_pairs(gains)
    few = {
        f"{g.row} − {g.base}": g.paired.n
        for g in gains
        if g.paired is not None and g.paired.n < usual
    }
    if few:
        listed = ", ".join(f"{pair} ({n})" for pair, n in few.items())
        yield f"Fewer than {usual} seeds: {listed}."


def _measure_failures(records: Iterable[Record]) -> Iterable[str]:
    """Yield a sentence for each measure that could not be taken, and for each of its reasons."""
    cases: dict[tuple[str, str], list[str]] = {}
    for record in records:
        for name, reason in record.measure_failures.items():
            cases.setdefault((name, reason), []).append(record.id)
    for (name, reason), found in cases.items():
        others = f" and {len(found) - 1} more" if len(found) > 1 else ""
        yield f"{name} could not be taken of {found[0]}{others}: {reason}"

"""How often `flatbench try` is wrong, and what it finds: the numbers of docs/answers.md.

It makes up whole tables, from fixed random seeds, with the spread over seeds of the published
records, and has them answered as `flatbench try` does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats
from tabulate import tabulate

from flatbench.protocols.reading import load
from flatbench.records.published import published
from flatbench.records.record import Record
from flatbench.records.sections import Section, sections
from flatbench.report.comparisons import Question
from flatbench.report.numbers import ALPHA
from flatbench.stats import detectable_gain
from flatbench.study.answer import Answer, answer

GRIDS = 2000
SEEDS = (3, 6, 10)
ARCHITECTURE, EIGENVALUE = "resnet18", "hessian_max_eigenvalue"
ROWS = ("sgd", "sgd+sam", "adam", "adam+sam")
LEVEL = 60.0  # every row's mean accuracy, far from 100 %

# Mine takes a gradient a step: beside the SAM rows it trains at equal epochs, and twice as long.
QUESTIONS = tuple(
    Question(ARCHITECTURE, mine, row, terms, row)
    for row in ROWS
    for mine, terms in (
        [("lion", "equal epochs"), ("lion-2x", "equal gradients")]
        if "+sam" in row
        else [("lion", "equal epochs and gradients")]
    )
)


@dataclass(frozen=True)
class Spread:
    """Sample std over seeds: of the accuracy, and of the eigenvalue's logarithm."""

    accuracy: float
    eigenvalue: float


def spreads() -> dict[str, Spread]:
    """Return the published spread of every row; mine has that of Adam."""
    found = {}
    for row in ROWS:
        runs = [
            r
            for r in published(load("digits"))
            if (r.optimizer, r.architecture) == (row, ARCHITECTURE)
        ]
        accuracies = [r.test_accuracy for r in runs if r.test_accuracy is not None]
        logarithms = [math.log(v) for r in runs if (v := r.sharpness[EIGENVALUE]) is not None]
        found[row] = Spread(float(np.std(accuracies, ddof=1)), float(np.std(logarithms, ddof=1)))
    return {**found, "lion": found["adam"], "lion-2x": found["adam"]}


def answers(
    of: Mapping[str, Spread], seeds: int, grids: int, gain: float = 0.0
) -> Iterator[Answer]:
    """Yield the answers of made-up tables: normal values, Adam's accuracies lower by ``gain``."""
    random = np.random.default_rng(seeds)
    for _ in range(grids):
        yield answer(_section(of, seeds, gain, random), "lion", QUESTIONS)


def _section(
    of: Mapping[str, Spread], seeds: int, gain: float, random: np.random.Generator
) -> Section:
    records = []
    for row, spread in of.items():
        mean = LEVEL - (gain if row == "adam" else 0.0)
        for seed in range(seeds):
            value = float(np.exp(random.normal(3, spread.eigenvalue)))
            records.append(
                Record(
                    "made-up",
                    ARCHITECTURE,
                    row,
                    seed,
                    None,
                    "completed",
                    test_accuracy=float(np.clip(random.normal(mean, spread.accuracy), 0, 100)),
                    sharpness={EIGENVALUE: value},
                )
            )
    (section,) = sections(records)
    return section


def alarms(of: Mapping[str, Spread], seeds: int, grids: int) -> dict[str, float]:
    """Return in what share of tables without a difference each word is said at all."""
    said = dict.fromkeys(("better", "worse", "flatter", "sharper"), 0)
    for found in answers(of, seeds, grids):
        outcome = {c.verdict for c in found.outcome}
        flatness = {c.verdict for c in found.flatness}
        said["better"] += "better" in outcome
        said["worse"] += "worse" in outcome
        said["flatter"] += "better" in flatness
        said["sharper"] += "worse" in flatness
    return {word: n / grids for word, n in said.items()}


def shown_gain(of: Mapping[str, Spread], seeds: int) -> float:
    """Return the gain over Adam that so many seeds are said to show 9 times out of 10."""
    std = math.hypot(of["lion"].accuracy, of["adam"].accuracy)
    gain = detectable_gain(std, seeds, ALPHA / len(QUESTIONS))
    assert gain is not None
    return gain


def power(of: Mapping[str, Spread], seeds: int, grids: int, gain: float) -> float:
    """Return in what share of tables mine is called better than Adam, if it is by ``gain``."""
    found = [c.verdict == "better" for a in answers(of, seeds, grids, gain) for c in a.of("adam")]
    return sum(found) / len(found)


def page() -> str:
    """Return docs/answers.md."""
    of = spreads()
    wrong = [(n, alarms(of, n, GRIDS)) for n in SEEDS]
    found = []
    for n in SEEDS:
        gain = shown_gain(of, n)
        low, high = (float(stats.chi.ppf(p, n - 1)) / math.sqrt(n - 1) for p in (0.05, 0.95))
        rate = 100 * power(of, n, GRIDS, gain)
        found.append((n, f"{gain:.1f}", f"{rate:.1f} %", f"{low:.2f} to {high:.2f}"))
    alarm_table = tabulate(
        [(n, *(f"{100 * rate:.1f} %" for rate in rates.values())) for n, rates in wrong],
        headers=["seeds", *(f'any "{word}"' for word in wrong[0][1])],
        tablefmt="pipe",
    )
    power_table = tabulate(
        found,
        headers=["seeds", "true gain, points", 'called "better"', "printed gain / true one"],
        tablefmt="pipe",
        disable_numparse=True,
    )
    stds = ", ".join(f"{row} {of[row].accuracy:.2f}" for row in ROWS)
    return f"""# How often `flatbench try` is wrong, and what it finds

Made by `tox -e docs`; not edited by hand.

An optimizer that takes a gradient a step is compared with four rows, with the SAM rows at equal
epochs and at equal gradients: {len(QUESTIONS)} comparisons of accuracy and as many of the Hessian's
largest eigenvalue. p is adjusted for all comparisons of a measure (Holm). Every table is made up of
normal accuracies, and normal logarithms of the eigenvalue, with the spread over seeds that the
published records of digits have on ResNet-18, in points:
{stds}; mine has Adam's.

## False alarms

The share of {GRIDS:,} tables in which the word is said at all, though no row differs from another:
an optimizer that is Adam under another name, trained with other seeds. The stated rate is
{100 * ALPHA:.0f} % for both words of a measure together.

{alarm_table}

With the same seeds and options Adam under another name gives the same numbers bit for bit, and is
called the same.

## Power

Mine is better than Adam by the gain that so many seeds are said to show 9 times out of 10, and no
better than the other rows. The share of {GRIDS:,} tables in which it is called better than Adam:

{power_table}

The last column: `try` computes that gain from the spread that its seeds have, which is uncertain
itself; 9 times out of 10 what it prints is the true one times a number in this range. The rates are
of normal values: heavy tails and rare bad seeds move them, as [gate.md](gate.md) shows for the
gates.
"""

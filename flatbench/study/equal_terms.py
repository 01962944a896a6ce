"""Equal terms: what two rows are compared at, and for how long each must train for it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from flatbench.protocols.cases import Case
from flatbench.protocols.protocol import Protocol
from flatbench.records.record import Record
from flatbench.report.comparisons import Question
from flatbench.stats import summary

# Two numbers of gradients are equal if they agree to 1 %: a row may have lost a last batch.
EQUAL = 0.01


def questions_of(
    protocol: Protocol,
    given: Protocol,
    name: str,
    against: Sequence[str],
    architectures: Sequence[str],
    records: Sequence[Record],
) -> tuple[Protocol, tuple[tuple[str, str], ...], list[Question]]:
    """Return a protocol with the rows that must train longer, these rows, and what to compare.

    Whichever of two rows evaluated fewer gradients trains for proportionally more epochs, with its
    own options.

    Args:
        protocol: has the row that is asked about.
        given: the protocol as it came, whose own longer rows are taken.
        name: the row that is asked about.
        against: the rows that it is compared with.
        architectures: on which.
        records: of all these rows: they say how many gradients each one evaluated.
    """
    longer: dict[tuple[str, str], None] = {}
    questions = []
    for architecture in architectures:
        for other in against:
            own, theirs = (_gradients(records, r, architecture) for r in (name, other))
            epochs, other_epochs = (
                Case(protocol, architecture, r, 0).epochs for r in (name, other)
            )
            if not own or not theirs:  # a count of 0 was not recorded
                questions.append(Question(architecture, name, other, "equal epochs", other))
            elif abs(own - theirs) <= EQUAL * max(own, theirs):
                terms = (
                    "equal gradients" if epochs != other_epochs else "equal epochs and gradients"
                )
                questions.append(Question(architecture, name, other, terms, other))
            else:
                if epochs == other_epochs:
                    questions.append(Question(architecture, name, other, "equal epochs", other))
                short, needed = (
                    (name, math.ceil(epochs * theirs / own - EQUAL))
                    if own < theirs
                    else (other, math.ceil(other_epochs * own / theirs - EQUAL))
                )
                protocol, longest = _longer(protocol, given, short, needed, architecture)
                longer[longest, architecture] = None
                pair = (longest, other) if short == name else (name, longest)
                questions.append(Question(architecture, *pair, "equal gradients", other))
    return protocol, tuple(longer), questions


def _gradients(records: Iterable[Record], row: str, architecture: str) -> float | None:
    """Return how many gradients a row's training evaluated, as the suite counted them."""
    return summary(
        [
            float(r.gradient_evaluations)
            for r in records
            if (r.optimizer, r.architecture, r.status) == (row, architecture, "completed")
        ]
    ).mean


def _longer(
    protocol: Protocol, given: Protocol, row: str, epochs: int, architecture: str
) -> tuple[Protocol, str]:
    """Return a row that trains so many epochs: a given row's own counterpart, or a copy of ``row``.

    A row of the given protocol for the same optimizer was tuned for that length, which is fairer.
    """
    short = protocol.optimizer(row, architecture)
    for name in given.optimizers if row in given.optimizers else ():
        found = given.optimizer(name, architecture)
        alike = (found.optimizer, found.is_sam) == (short.optimizer, short.is_sam)
        if name.startswith(f"{row}-") and alike and found.epochs == epochs:
            return protocol, name
    times = f"{epochs / Case(protocol, architecture, row, 0).epochs:.3g}"
    name = f"{row}-{times}x"
    while name in given.optimizers:  # which is another optimizer, or has another length
        name += "-copy"
    copy = dataclasses.replace(short, name=name, epochs=epochs, against=None)
    overrides = {**protocol.overrides, (name, architecture): copy}
    rows = {**protocol.optimizers}
    rows.setdefault(name, copy)
    return dataclasses.replace(protocol, optimizers=rows, overrides=overrides), name

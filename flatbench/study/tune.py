"""Choosing hyperparameters on the validation part, with the same number of trials for every row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from flatbench.execution import Machine
from flatbench.protocols.cases import grid
from flatbench.protocols.protocol import Protocol
from flatbench.records.quantities import Quantity, outcome_of, value_of
from flatbench.records.record import Record
from flatbench.records.store import Store
from flatbench.stats import summary
from flatbench.study.runs import train
from flatbench.study.space import is_at_edge, points
from flatbench.study.trials import trial_name, trials_of, tuning_of

CellKey = tuple[str, str]  # row, architecture


@dataclass(frozen=True)
class Trial:
    """One point of a row's space on one architecture, trained with every seed of the tuning."""

    number: int
    values: Mapping[str, Any]
    outcomes: tuple[float, ...]  # of the seeds that completed, on the validation part
    lost: int  # seeds that diverged or failed
    gradients: int | None  # evaluated in one training
    higher_is_better: bool = True

    @property
    def score(self) -> float | None:
        """The mean over the seeds, less its standard error; larger is always better.

        The best of many noisy means is an unstable one more often than not: the standard error
        makes up for that. Of a single seed it is unknown, and nothing is taken off. None where a
        seed was lost.
        """
        if self.lost or not self.outcomes:
            return None
        found = summary(self.outcomes)
        assert found.mean is not None
        error = 0.0 if found.std is None else found.std / math.sqrt(found.n)
        return (found.mean if self.higher_is_better else -found.mean) - error


@dataclass(frozen=True)
class Tuned:
    """What a tuning found.

    Attributes:
        protocol: the protocol that was tuned.
        records: of all its trials.
        rows: the rows that were tuned.
        architectures: on which.
    """

    protocol: Protocol
    records: tuple[Record, ...]
    rows: tuple[str, ...]
    architectures: tuple[str, ...]

    @property
    def outcome(self) -> Quantity:
        """What the trials are judged by."""
        return outcome_of(self.records)

    @cached_property
    def trials(self) -> Mapping[CellKey, tuple[Trial, ...]]:
        """Every row's trials by (row, architecture), in the order of their numbers."""
        by_cell: dict[CellKey, list[Record]] = {}
        for record in self.records:
            by_cell.setdefault((record.optimizer, record.architecture), []).append(record)
        tuning, outcome = tuning_of(self.protocol), self.outcome
        return {
            (row, architecture): tuple(
                _trial(number, values, by_cell[trial_name(row, number), architecture], outcome)
                for number, values in enumerate(points(tuning.space[row], tuning.trials))
            )
            for row in self.rows
            for architecture in self.architectures
        }

    def best(self, row: str, architecture: str) -> Trial | None:
        """Return the trial with the highest score; None where every one lost a seed."""
        scored = [t for t in self.trials[row, architecture] if t.score is not None]
        return max(scored, key=lambda t: t.score or 0.0, default=None)

    def edges(self, row: str, architecture: str) -> tuple[str, ...]:
        """Return the hyperparameters of the best trial that stand at an edge of their space."""
        best = self.best(row, architecture)
        space = tuning_of(self.protocol).space[row]
        values = {} if best is None else best.values
        return tuple(name for name, value in values.items() if is_at_edge(space[name], value))

    @property
    def without_winner(self) -> tuple[CellKey, ...]:
        """The cells in which every trial lost a seed."""
        return tuple(key for key in self.trials if self.best(*key) is None)


def _trial(
    number: int, values: Mapping[str, Any], records: Sequence[Record], outcome: Quantity
) -> Trial:
    completed = [r for r in records if r.status == "completed"]
    found = [v for r in completed if (v := value_of(r, outcome.name)) is not None]
    return Trial(
        number,
        values,
        tuple(found),
        len(records) - len(found),
        completed[0].gradient_evaluations if completed else None,
        outcome.better == "higher",
    )


def expected_best(values: Sequence[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the expected best of k of these n values, drawn without replacement, for k = 1 … n.

    It is what a budget of k trials buys (Dodge et al. 2019, arXiv:1909.03004), in the form that is
    unbiased (Tang et al. 2020, arXiv:2004.13705): of the values in rising order, the i-th is the
    best of C(i − 1, k − 1) of the C(n, k) subsets.
    """
    rising = sorted(values)
    n = len(rising)
    return np.array(
        [
            math.fsum(
                math.comb(i, k - 1) / math.comb(n, k) * value for i, value in enumerate(rising)
            )
            for k in range(1, n + 1)
        ]
    )


def tune(
    protocol: Protocol,
    rows: Sequence[str] | None = None,
    architectures: Sequence[str] | None = None,
    *,
    machine: Machine,
    store: Store,
) -> Tuned:
    """Train every trial, or take the finished ones from the store.

    Args:
        protocol: what to tune; it has a ``[tuning]``.
        rows: which of its rows; None means all that have a space.
        architectures: on which; None means all.
        machine: where the trials run.
        store: keeps their records.

    Raises:
        UsageError: no tuning or no space, or as `flatbench.execution.start`.
    """
    chosen = tuple(tuning_of(protocol).space if rows is None else rows)
    trials = trials_of(protocol, chosen)
    cases = grid(trials, architectures)
    return Tuned(
        protocol,
        tuple(train(cases, machine, store)),
        chosen,
        tuple(architectures or protocol.model.names),
    )

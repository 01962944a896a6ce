"""A section's numbers in pandas: one row a record, and the gains of SAM over its base."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from flatbench.records.quantities import (
    SAM_SHARPNESS,
    TEST_ACCURACY,
    TRAIN_ACCURACY,
    is_standard_error,
)
from flatbench.records.sections import Section
from flatbench.stats import Paired, Summary, holm, paired, summary

ALPHA = 0.05

_CASE = ("architecture", "optimizer", "seed", "status")
_NUMBERS = (
    TEST_ACCURACY,
    TRAIN_ACCURACY,
    SAM_SHARPNESS,
    "gradient_evaluations",
    "seconds",
)


@dataclass(frozen=True)
class Cell:
    """What one cell's records say about one measure."""

    summary: Summary
    seeds: frozenset[int]  # with a value
    diverged: int
    failed: int


@dataclass(frozen=True)
class Gain:
    """One row's test accuracy less another's, by seed, on one architecture."""

    architecture: str
    row: str
    base: str
    paired: Paired | None  # None: no seed that both rows completed
    p: float | None  # the paired t-test's, Holm-adjusted over its table

    @property
    def supported(self) -> bool:
        """Whether the corrected test tells the mean difference from zero."""
        return self.p is not None and self.p < ALPHA


@dataclass(frozen=True)
class Numbers:
    """A section and its numbers."""

    section: Section

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row a record: the case, its status, every measure (absent: NaN)."""
        extra = [name for name in self.measures if name != SAM_SHARPNESS]
        frame = pd.DataFrame(
            [
                [getattr(record, name) for name in (*_CASE, *_NUMBERS)]
                + [record.sharpness.get(name) for name in extra]
                for record in self.section.records
            ],
            columns=[*_CASE, *_NUMBERS, *extra],
            dtype=object,  # names stay Python's strings, whatever they hold
        )
        return frame.astype(dict.fromkeys((*_NUMBERS, *extra), float) | {"seed": "int64"})

    @cached_property
    def measures(self) -> tuple[str, ...]:
        """The sharpness measures that any record has, ``sam_sharpness`` first."""
        names = dict.fromkeys(
            name
            for record in self.section.records
            for name, value in record.sharpness.items()
            if value is not None and name not in _NUMBERS + _CASE and not is_standard_error(name)
        )
        return (SAM_SHARPNESS, *names)

    def cells(self, measure: str) -> dict[tuple[str, str], Cell]:
        """Return the cells that have records, by (architecture, optimizer)."""
        found = {}
        for key, cell in self.frame.groupby(["architecture", "optimizer"], sort=False):
            measured = cell[(cell["status"] == "completed") & cell[measure].notna()]
            architecture, optimizer = key
            found[str(architecture), str(optimizer)] = Cell(
                summary(measured[measure].tolist()),
                frozenset(measured["seed"].tolist()),
                int((cell["status"] == "diverged").sum()),
                int((cell["status"] == "failed").sum()),
            )
        return found

    @cached_property
    def _accuracy_by_seed(self) -> Mapping[tuple[str, str], pd.Series]:
        completed = self.frame[self.frame["status"] == "completed"]
        return {
            (str(key[0]), str(key[1])): cell.set_index("seed")[TEST_ACCURACY].dropna()
            for key, cell in completed.groupby(["architecture", "optimizer"], sort=False)
        }

    def gains(self, pairs: Iterable[tuple[str, str, str]]) -> list[Gain]:
        """Compare (architecture, row, base) by seed; the corrected tests are one family."""
        found = []
        for architecture, row, base in pairs:
            one = self._accuracy_by_seed.get((architecture, row))
            other = self._accuracy_by_seed.get((architecture, base))
            differences = [] if one is None or other is None else (one - other).dropna().tolist()
            found.append(Gain(architecture, row, base, paired(differences), None))
        tested = {
            i: gain.paired.t_p
            for i, gain in enumerate(found)
            if gain.paired is not None and gain.paired.t_p is not None
        }
        for i, p in zip(tested, holm(list(tested.values())), strict=True):
            found[i] = dataclasses.replace(found[i], p=p)
        return found

    @cached_property
    def sam_gains(self) -> list[Gain]:
        """Every SAM row against its base on every architecture."""
        return self.gains(
            (architecture, row, self.section.base_of[row])
            for row in self.section.optimizers
            if row in self.section.base_of
            for architecture in self.section.architectures
        )

    @cached_property
    def equal_compute(self) -> list[Gain]:
        """Every SAM row against the plain rows of its base with as many gradient evaluations."""
        return self.gains(
            (architecture, row, plain)
            for architecture in self.section.architectures
            for row in self.section.optimizers
            if row in self.section.base_of
            for plain in self.section.optimizers
            if plain not in self.section.base_of
            and self.section.base_optimizer.get(row) is not None
            and self.section.base_optimizer.get(plain) == self.section.base_optimizer.get(row)
            and self._equal(self.mean(architecture, row), self.mean(architecture, plain))
        )

    def mean(
        self, architecture: str, row: str, measure: str = "gradient_evaluations"
    ) -> float | None:
        """Return a measure's mean over a cell's completed runs."""
        if (architecture, row) not in self._means.index:
            return None
        mean = typing.cast(float, self._means.loc[(architecture, row), measure])
        return None if math.isnan(mean) else mean

    @cached_property
    def _means(self) -> pd.DataFrame:
        completed = self.frame[self.frame["status"] == "completed"]
        return completed.groupby(["architecture", "optimizer"])[list(_NUMBERS)].mean()

    @staticmethod
    def _equal(one: float | None, other: float | None) -> bool:
        """Whether two costs are the same to 1 %: a last batch may be cut off in one of them."""
        return one is not None and other is not None and abs(one - other) <= 0.01 * max(one, other)

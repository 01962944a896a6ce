"""A section's numbers: a frame with a row for each record, and the gains of rows over others."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from flatbench.records.quantities import (
    OUTCOMES,
    QUANTITIES,
    SAM_SHARPNESS,
    in_training,
    is_standard_error,
)
from flatbench.records.sections import Section
from flatbench.stats import Paired, Summary, holm, paired, summary

ALPHA = 0.05

_CASE = ("architecture", "optimizer", "seed", "status")
_NUMBERS = (
    *OUTCOMES,
    *(in_training(QUANTITIES[name]) for name in OUTCOMES),
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
    """By how much one row's outcome is better than another's, by seed, on one architecture."""

    architecture: str
    row: str
    base: str
    paired: Paired | None  # None: no seed that both rows completed
    p: float | None  # of the paired t-test, Holm-adjusted over its table

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
        """One row for each record: the case, its status, every measure (NaN where absent)."""
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
        if measure in self._cells:
            return self._cells[measure]
        found = {}
        for key, records in self.section.cells.items():
            values = self.section.values(*key, measure)
            lost = Counter(record.status for record in records)
            found[key] = Cell(
                summary(list(values.values())),
                frozenset(values),
                lost["diverged"],
                lost["failed"],
            )
        self._cells[measure] = found
        return found

    @cached_property
    def _cells(self) -> dict[str, dict[tuple[str, str], Cell]]:
        return {}

    def gains(self, pairs: Iterable[tuple[str, str, str]]) -> list[Gain]:
        """Return the gain of each (architecture, row, base); Holm's correction is over all."""
        found = []
        for architecture, row, base in pairs:
            by_seed = self.section.gains(architecture, row, base)
            found.append(Gain(architecture, row, base, paired([*by_seed.values()]), None))
        tested = {
            i: gain.paired.t_p
            for i, gain in enumerate(found)
            if gain.paired is not None and gain.paired.t_p is not None
        }
        for i, p in zip(tested, holm(list(tested.values())), strict=True):
            found[i] = dataclasses.replace(found[i], p=p)
        return found

    @cached_property
    def pair_gains(self) -> list[Gain]:
        """The gain of every row over the row it is compared with, on every architecture."""
        return self.gains(
            (architecture, row, self.section.base_of[row])
            for row in self.section.optimizers
            if row in self.section.base_of
            for architecture in self.section.architectures
        )

    @cached_property
    def equal_compute(self) -> list[Gain]:
        """The gain of every row that is compared over what took as many gradients.

        That is the row it is compared with, and plain rows of its own base optimizer.
        """
        return self.gains(
            (architecture, row, other)
            for architecture in self.section.architectures
            for row in self.section.optimizers
            if row in self.section.base_of
            for other in self.section.optimizers
            if other == self.section.base_of[row]
            or (other != row and self.is_plain(other) and self._share_base(row, other))
            if self.equal_gradients(architecture, row, other)
        )

    @cached_property
    def all_sam(self) -> bool:
        """Whether every row that is compared is a SAM row beside its base, by their names."""
        return all(row.startswith(f"{base}+") for row, base in self.section.base_of.items())

    def is_plain(self, row: str) -> bool:
        """Return whether a row is no variant, as SAM is, of a row of the same base optimizer."""
        base = self.section.base_of.get(row)
        return base is None or not self._share_base(row, base)

    def _share_base(self, row: str, other: str) -> bool:
        base = self.section.base_optimizer
        return base.get(row) is not None and base.get(row) == base.get(other)

    def mean(self, architecture: str, row: str, measure: str) -> float | None:
        """Return a measure's mean over a cell's completed runs."""
        return summary([*self.section.values(architecture, row, measure).values()]).mean

    def gradients(self, architecture: str, row: str) -> float | None:
        """Return a cell's mean number of gradient evaluations, None where a run tells none."""
        counts = self.section.values(architecture, row, "gradient_evaluations").values()
        return summary([*counts]).mean if all(counts) else None

    def equal_epochs(self, architecture: str, row: str, other: str) -> bool:
        """Return whether all completed runs of two rows tell of the same number of epochs."""
        lengths = {
            len(record.history)
            for r in (row, other)
            for record in self.section.cell(architecture, r)
            if record.status == "completed"
        }
        return len(lengths) == 1 and lengths != {0}

    def equal_gradients(self, architecture: str, row: str, other: str) -> bool:
        """Return whether two rows' counts are known and agree to 1 %.

        One of them may have lost a last batch.
        """
        counts = [self.gradients(architecture, r) for r in (row, other)]
        known = [count for count in counts if count is not None]
        return len(known) == 2 and max(known) - min(known) <= 0.01 * max(known)

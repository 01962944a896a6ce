"""What a report says of one protocol, before any format: tables and plain sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from flatbench.protocols.protocol import Protocol
from flatbench.records.quantities import SAM_SHARPNESS
from flatbench.records.record import Record
from flatbench.records.sections import sections
from flatbench.report import captions
from flatbench.report.costs import equal_compute_table, time_to_accuracy_table
from flatbench.report.counterpart import counterpart_tables
from flatbench.report.flatness import sharpness_tables
from flatbench.report.numbers import Numbers
from flatbench.report.opening import Answers, Opening, opening
from flatbench.report.ranking import ranking_table
from flatbench.report.tables import (
    Table,
    accuracy_table,
    gain_table,
    reference_table,
    significance_table,
)


@dataclass(frozen=True)
class Fold:
    """A part of a report that most readers skip. Its figures stand by their names in `captions`."""

    title: str
    tables: tuple[Table, ...] = ()
    answers: tuple[Answers, ...] = ()
    figures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chapter:
    """One protocol's part of a report. No string in it is escaped."""

    numbers: Numbers
    opening: Opening
    tables: tuple[Table, ...]
    folds: tuple[Fold, ...]
    failures: tuple[tuple[str, str], ...]  # case id, what became of it and why
    made_with: tuple[str, ...]  # one line for each set-up

    @property
    def all_tables(self) -> tuple[Table, ...]:
        """The tables that stand open and those that are folded away."""
        return (*self.tables, *(table for fold in self.folds for table in fold.tables))

    @property
    def figures(self) -> list[str]:
        """The names of the figures that stand open: the gains, and the outcome by flatness."""
        opened = (captions.GAINS, captions.OUTCOME)
        return [name for name in captions.names(self.numbers) if name.startswith(opened)]

    @property
    def in_percent(self) -> bool:
        """Whether the outcome is in percent, and a gain in points."""
        return self.numbers.section.outcome.unit == "%"

    @property
    def name(self) -> str:
        """The protocol's name."""
        return self.numbers.section.protocol

    @property
    def on_validation(self) -> bool:
        """Whether the numbers are of the validation part."""
        return self.numbers.section.evaluation == "validation"


def chapters(
    records: Iterable[Record],
    protocols: Iterable[Protocol] = (),
    *,
    brief: bool = False,
    target: float | None = None,
) -> list[Chapter]:
    """Return one chapter for each protocol.

    Args:
        records: of any number of protocols.
        protocols: for the order of rows, and published results, of protocols that do not come
            with flatbench.
        brief: only the opening, accuracy, gains, failures and provenance.
        target: the accuracy, in percent, of the time to accuracy; see `time_to_accuracy_table`.

    Raises:
        UsageError: records that cannot share a table; see `flatbench.records.sections`.
    """
    by_name = {s.protocol: Numbers(s) for s in sections(records, protocols)}
    return [
        _chapter(numbers, by_name.get(numbers.section.compare_with or ""), brief, target)
        for numbers in by_name.values()
    ]


def _chapter(numbers: Numbers, other: Numbers | None, brief: bool, target: float | None) -> Chapter:
    section = numbers.section
    gains = gain_table(numbers) if section.base_of else None
    made = [accuracy_table(numbers)]
    if section.reference is not None:
        made.append(reference_table(numbers))
    if brief:
        made += [gains] if gains is not None else []
    else:
        made += counterpart_tables(numbers, other) if other is not None else []
        made += sharpness_tables(numbers)
    said = opening(numbers)
    return Chapter(
        numbers,
        said,
        tuple(made),
        () if brief else tuple(_folds(numbers, said, gains, target)),
        tuple(
            (record.id, f"{record.status}: {record.reason or 'no reason recorded'}")
            for record in section.records
            if record.status != "completed"
        ),
        (
            *dict.fromkeys(made_with(r.provenance) for r in section.records if r.provenance),
            *_components(section.records),
        ),
    )


def _folds(
    numbers: Numbers, said: Opening, gains: Table | None, target: float | None
) -> Iterable[Fold]:
    """Yield what most readers skip, without what is empty."""
    drawn = captions.names(numbers)
    outcome = numbers.section.outcome.name
    tests = significance_table(numbers) if gains is not None else None
    for title, tables, answers, shown in (
        ("Gains by seed, and their tests", (gains, tests, equal_compute_table(numbers)), (), ()),
        ("Flatness, pair by pair", (), said.flatness_by_pair, ()),
        (
            "What a result costs",
            (time_to_accuracy_table(numbers, target),),
            (),
            (captions.COST, captions.PRICE),
        ),
        ("Curves by epoch", (), (), (outcome, SAM_SHARPNESS)),
        (
            "Does sharpness rank the rows as their outcome does?",
            (ranking_table(numbers),),
            (),
            [name for name in drawn if name.startswith(captions.GAP)],
        ),
    ):
        fold = Fold(
            title,
            tuple(table for table in tables if table is not None),
            tuple(answers),
            tuple(name for name in shown if name in drawn),
        )
        if fold.tables or fold.answers or fold.figures:
            yield fold


def _components(records: Iterable[Record]) -> Iterable[str]:
    """Yield a line for each reference of the protocol: the code, or codes, that it stood for."""
    found: dict[str, list[str]] = {}
    for record in records:
        named = record.provenance.get("components")
        for reference, source in named.items() if isinstance(named, dict) else ():
            sources = found.setdefault(str(reference), [])
            if str(source) not in sources:
                sources.append(str(source))
    for reference, sources in found.items():
        differ = "; these differ" if len(sources) > 1 else ""
        yield f"{reference}: {', '.join(sources)}{differ}"


def made_with(provenance: Mapping[str, Any]) -> str:
    """Return one line that names the software and hardware of a record."""
    parts = []
    for label, key in _MADE_WITH:
        value = provenance.get(key)
        if value is not None and value != "":
            parts.append(f"{label}{str(value)[:12] if key == 'commit' else value}")
            if key == "commit" and provenance.get("dirty"):
                parts[-1] += " with uncommitted changes"
    return ", ".join(parts)


_MADE_WITH = (
    ("flatbench ", "flatbench_version"),
    ("commit ", "commit"),
    ("protocol content ", "common_hash"),
    ("PyTorch ", "torch"),
    ("Python ", "python"),
    ("on ", "device"),
    ("driver ", "driver"),
    ("CUDA ", "cuda"),
    ("precision ", "precision"),
    ("threads ", "threads"),
)

"""What a report says of one protocol, before any format: tables and plain sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from scipy import stats

from flatbench.protocols.protocol import Protocol
from flatbench.records.record import Record
from flatbench.records.sections import sections
from flatbench.report.costs import equal_compute_table, time_to_accuracy_table
from flatbench.report.counterpart import counterpart_tables
from flatbench.report.numbers import Numbers
from flatbench.report.ranking import ranking_table
from flatbench.report.tables import Table, main_tables, significance_table, usual_pairs


@dataclass(frozen=True)
class Chapter:
    """One protocol's part of a report. No string in it is escaped."""

    numbers: Numbers
    tables: tuple[Table, ...]
    remarks: tuple[str, ...]  # what the numbers can and cannot say
    failures: tuple[tuple[str, str], ...]  # case id, what became of it and why
    made_with: tuple[str, ...]  # one line for each set-up

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
        brief: only accuracy, `sam_sharpness`, gains, failures and provenance.
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
    made: list[Table | None] = [*main_tables(numbers, brief)]
    if not brief:
        if section.base_of:
            made.append(significance_table(numbers))
        made += [
            equal_compute_table(numbers),
            time_to_accuracy_table(numbers, target),
            ranking_table(numbers),
        ]
        if other is not None:
            made += counterpart_tables(numbers, other)
    return Chapter(
        numbers,
        tuple(table for table in made if table is not None),
        () if brief else tuple(_remarks(numbers)),
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


def _remarks(numbers: Numbers) -> Iterable[str]:
    """Yield what the numbers can and cannot say, in plain words."""
    gains = numbers.pair_gains
    n = usual_pairs(gains)
    if n == 1:
        yield (
            "One seed: no interval and no test. A difference here may be the seed's as well as "
            "the optimizer's."
        )
    elif n > 1:
        reach = float(stats.t.ppf(0.975, n - 1)) / n**0.5
        yield (
            f"n = {n}: a mean difference is told from zero (at 5 %, before correction) only where "
            f"it exceeds {reach:.2f} standard deviations of the differences."
        )
    if 1 < n < 6:
        yield (
            f"The t-test takes the differences to be normal, which {n} values cannot show, and "
            f"without that no test of {n} pairs can reach 5 %: the signed-rank test's smallest "
            f"p-value is {2.0 ** (1 - n):g}. Read bold as worth more seeds, not as proof."
        )
    covered = {(gain.architecture, gain.row) for gain in numbers.equal_compute}
    if any((gain.architecture, gain.row) not in covered for gain in gains):
        why = (
            "At equal epochs SAM has twice its base's gradient evaluations."
            if numbers.all_sam
            else "At equal epochs rows can take different numbers of gradient evaluations."
        )
        yield (
            f"{why} Where the table of equal compute lacks a row, the gain is not a gain at equal "
            "cost."
        )
    yield from _measure_failures(numbers.section.records)


def _measure_failures(records: Iterable[Record]) -> Iterable[str]:
    """Yield a sentence for each measure that could not be taken, and for each of its reasons."""
    cases: dict[tuple[str, str], list[str]] = {}
    for record in records:
        for name, reason in record.measure_failures.items():
            cases.setdefault((name, reason), []).append(record.id)
    for (name, reason), found in cases.items():
        others = f" and {len(found) - 1} more" if len(found) > 1 else ""
        yield f"{name} could not be taken of {found[0]}{others}: {reason}"


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

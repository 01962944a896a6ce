"""Records -> tables -> text. Nothing here trains, and nothing here imports torch."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from flatbench.protocols.protocol import Protocol
from flatbench.records.record import Record
from flatbench.records.sections import Section, sections
from flatbench.report.chapters import chapters
from flatbench.report.tables import Cell, Table, tables

__all__ = [
    "FORMATS",
    "Cell",
    "Section",
    "Table",
    "chapters",
    "render",
    "sections",
    "tables",
]

FORMATS = ("markdown", "html", "latex", "csv")


def render(
    records: Iterable[Record],
    form: str = "markdown",
    protocols: Iterable[Protocol] = (),
    *,
    brief: bool = False,
    target: float | None = None,
) -> str:
    """Return the report: per protocol its tables, remarks, failures and provenance.

    Args:
        records: of any number of protocols.
        form: one of ``FORMATS``.
        protocols: for the order of rows, and the published results, of protocols that do not
            come with flatbench.
        brief: only accuracy, `sam_sharpness`, SAM − base, failures and provenance.
        target: of the time to accuracy, percent; by default set from the records, and said so.

    Raises:
        UsageError: records that cannot share a table; see `flatbench.records.sections`.
        ValueError: an unknown format.
    """
    if form not in FORMATS:
        raise ValueError(f"format {form!r} is unknown; allowed: {', '.join(FORMATS)}")
    # the module of a format is named as it is, and imported when wanted: HTML draws figures
    module = importlib.import_module(f"flatbench.report.formats.{form}")
    text: str = module.render(chapters(records, protocols, brief=brief, target=target))
    return text

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

FORMATS = ("markdown", "html", "latex")


def render(
    records: Iterable[Record],
    form: str = "markdown",
    protocols: Iterable[Protocol] = (),
    *,
    brief: bool = False,
    target: float | None = None,
) -> str:
    """Return the report: the tables, remarks, failures and provenance of each protocol.

    Args:
        records: of any number of protocols.
        form: one of ``FORMATS``.
        protocols: for the order of rows, and the published results, of protocols that do not
            come with flatbench.
        brief: only accuracy, `sam_sharpness`, gains, failures and provenance.
        target: the accuracy, in percent, of the time to accuracy. By default it is set from the
            records, and the table says so.

    Raises:
        UsageError: records that cannot share a table; see `flatbench.records.sections`.
        ValueError: an unknown format.
    """
    if form not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {form!r}")
    # The module has the format's name. It is imported only now: HTML draws figures.
    module = importlib.import_module(f"flatbench.report.formats.{form}")
    text: str = module.render(chapters(records, protocols, brief=brief, target=target))
    return text

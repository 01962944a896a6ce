"""Records -> tables -> text. Nothing here trains, and nothing here imports torch."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from flatbench.protocols.protocol import Protocol
from flatbench.records.record import Record
from flatbench.records.sections import Section, sections
from flatbench.report.chapters import chapters
from flatbench.report.tables import Cell, Table

__all__ = [
    "FORMATS",
    "Cell",
    "Section",
    "Table",
    "chapters",
    "render",
    "sections",
]

FORMATS = ("markdown", "html", "latex")


def render(
    records: Iterable[Record],
    form: str = "markdown",
    protocols: Iterable[Protocol] = (),
    *,
    brief: bool = False,
    target: float | None = None,
    figures: str | None = None,
) -> str:
    """Return the report: the answer, tables, failures and provenance of each protocol.

    Args:
        records: of any number of protocols.
        form: one of ``FORMATS``.
        protocols: for the order of rows, and the published results, of protocols that do not
            come with flatbench.
        brief: only the opening, accuracy, gains, failures and provenance.
        target: the accuracy, in percent, of the time to accuracy. By default it is set from the
            records, and the table says so.
        figures: the folder of `figures.write`, as markdown is to link it; None links none. HTML has
            its figures inside, LaTeX none.

    Raises:
        UsageError: records that cannot share a table; see `flatbench.records.sections`.
        ValueError: an unknown format.
    """
    if form not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {form!r}")
    # The module has the format's name. It is imported only now: HTML draws figures.
    module = importlib.import_module(f"flatbench.report.formats.{form}")
    made = chapters(records, protocols, brief=brief, target=target)
    text: str = module.render(made, figures) if form == "markdown" else module.render(made)
    return text

"""A report's numbers as CSV: one line a protocol, cell and measure, for other programs to read."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from flatbench.records.quantities import TEST_ACCURACY
from flatbench.report.chapters import Chapter
from flatbench.text import plain

_COLUMNS = (
    "protocol",
    "evaluation",
    "architecture",
    "optimizer",
    "measure",
    "n",
    "mean",
    "std",
    "seeds",
    "diverged",
    "failed",
)


def render(chapters: Iterable[Chapter]) -> str:
    """Return the lines; ``std`` is the sample std, empty below two seeds."""
    lines = [
        (
            _text(section.protocol),
            section.evaluation,
            _text(architecture),
            _text(row),
            _text(measure),
            cell.summary.n,
            cell.summary.mean,
            cell.summary.std,
            " ".join(map(str, sorted(cell.seeds))),
            cell.diverged,
            cell.failed,
        )
        for chapter in chapters
        for section in (chapter.numbers.section,)
        for measure in (TEST_ACCURACY, *chapter.numbers.measures)
        for (architecture, row), cell in chapter.numbers.cells(measure).items()
    ]
    return pd.DataFrame(lines, columns=list(_COLUMNS), dtype=object).to_csv(
        index=False, lineterminator="\n"
    )


def _text(name: str) -> str:
    """Return a foreign string that no spreadsheet takes for a formula."""
    text = plain(name)
    return f"'{text}" if text[:1] in "=+-@" else text

"""The tables of a report as LaTeX for a paper, which needs the package booktabs and no other."""

from __future__ import annotations

from collections.abc import Iterable

from flatbench.report.chapters import Chapter
from flatbench.report.opening import Opening
from flatbench.report.tables import Cell, Table
from flatbench.text import latex_text, plain


def render(chapters: Iterable[Chapter]) -> str:
    """Return every table as a ``table`` float, with the answer and provenance as comments."""
    lines = [r"% \usepackage{booktabs}; UTF-8 input", ""]
    for chapter in chapters:
        lines += [f"% Protocol {plain(chapter.name)}"]
        lines += [f"% {plain(line)}" for line in (*chapter.made_with, *_said(chapter.opening))]
        lines += [f"% {plain(f'{case} {why}')}" for case, why in chapter.failures]
        lines += [f"\n{_table(table)}" for table in chapter.all_tables]
    return "\n".join(lines)


def _said(opening: Opening) -> Iterable[str]:
    for answers in opening.outcome:
        yield f"{answers.title}: {answers.count}"
        yield from map(str, answers.findings)
    yield from (opening.note, *opening.flatness, *opening.warnings)


def _table(table: Table) -> str:
    rows = [[latex_text(label), *map(_cell, cells)] for label, cells in table.rows]
    head = [latex_text(name) for name in (table.corner, *table.columns)]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(table.title)}. {latex_text(table.note)}}}",
            rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
            r"\toprule",
            " & ".join(head) + r" \\",
            r"\midrule",
            *(" & ".join(row) + r" \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _cell(cell: Cell) -> str:
    text = latex_text(cell.text)
    return rf"\textbf{{{text}}}" if cell.strong else text

"""A report as GitHub's markdown."""

from __future__ import annotations

from collections.abc import Iterable

from tabulate import tabulate

from flatbench.report.chapters import Chapter
from flatbench.report.tables import Cell, Table
from flatbench.text import markdown_text


def render(chapters: Iterable[Chapter]) -> str:
    """Return chapters as markdown, in which strings from records are shown and do no more."""
    return "\n".join("\n".join(_parts(chapter)) for chapter in chapters)


def table(made: Table) -> str:
    """Return one table with its title and note."""
    header = [markdown_text(name) for name in (made.corner, *made.columns)]
    rows = [[markdown_text(label), *map(_cell, cells)] for label, cells in made.rows]
    body = tabulate(
        rows,
        header,
        tablefmt="pipe",
        disable_numparse=True,
        colalign=("left", *("right" for _ in made.columns)),
    )
    return f"### {markdown_text(made.title)}\n\n{body}\n\n{markdown_text(made.note)}\n"


def _cell(cell: Cell) -> str:
    text = markdown_text(cell.text)
    return f"**{text}**" if cell.strong else text


def _parts(chapter: Chapter) -> Iterable[str]:
    yield f"## Protocol {markdown_text(chapter.name)}\n"
    if chapter.on_validation:
        yield "Measured on the **validation** part, not on the test part.\n"
    for made in chapter.tables:
        yield table(made)
    if chapter.remarks:
        yield "### What these numbers can say\n"
        yield "".join(f"- {markdown_text(remark)}\n" for remark in chapter.remarks)
    if chapter.failures:
        yield "### Runs without a result\n"
        yield "".join(
            f"- {markdown_text(case)} {markdown_text(why)}\n" for case, why in chapter.failures
        )
    if len(chapter.made_with) < 2:
        yield f"Made with {markdown_text(''.join(chapter.made_with)) or 'what is not recorded'}.\n"
    else:
        yield "Made with more than one set-up:\n"
        yield "".join(f"- {markdown_text(line)}\n" for line in chapter.made_with)

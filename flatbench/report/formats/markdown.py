"""A report as GitHub's markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote

from tabulate import tabulate

from flatbench.report.captions import GAINS, caption, stem
from flatbench.report.chapters import Chapter
from flatbench.report.forest import forest_text
from flatbench.report.opening import Answers
from flatbench.report.tables import Cell, Table
from flatbench.text import markdown_text, plain


def render(chapters: Iterable[Chapter], figures: str | None = None) -> str:
    """Return chapters as markdown, in which strings from records are shown and do no more.

    Args:
        chapters: the report.
        figures: the folder of the figures as the report is to link them; None links none.
    """
    return "\n".join("\n".join(_parts(chapter, figures)) for chapter in chapters)


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


def _parts(chapter: Chapter, figures: str | None) -> Iterable[str]:
    yield f"## Protocol {markdown_text(chapter.name)}\n"
    if chapter.on_validation:
        yield "Measured on the **validation** part, not on the test part.\n"
    yield from _opening(chapter)
    if figures is not None:
        opened = [name for name in chapter.figures if name != GAINS]  # that one stands as text
        yield from _figures(chapter, opened, figures)
    # without its figures a fold may have nothing to show
    folds = [f for f in chapter.folds if f.tables or f.answers or figures is not None]
    titles = [t.title.partition(":")[0] for t in chapter.tables] + [f.title for f in folds]
    anchors = [f"{_slug(chapter.name)}-{i}" for i in range(len(titles))]
    if folds:
        yield "Contents:\n"
        yield "".join(
            f"- [{markdown_text(title)}](#{anchor})\n"
            for title, anchor in zip(titles, anchors, strict=True)
        )
    for made, anchor in zip(chapter.tables, anchors, strict=False):
        if folds:
            yield f'<a id="{anchor}"></a>\n'
        yield table(made)
    for fold, anchor in zip(folds, anchors[len(chapter.tables) :], strict=True):
        yield f'<a id="{anchor}"></a>\n'
        yield f"<details><summary>{markdown_text(fold.title)}</summary>\n"
        for answers in fold.answers:
            yield from _answers(answers)
        yield from map(table, fold.tables)
        if figures is not None:
            yield from _figures(chapter, fold.figures, figures)
        yield "</details>\n"
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


def _opening(chapter: Chapter) -> Iterable[str]:
    said = chapter.opening
    yield "### What was found\n"
    if not said.outcome:
        yield "No row is compared with another.\n"
    for answers in said.outcome:
        yield from _answers(answers)
    if said.note:
        yield f"{markdown_text(said.note)}\n"
    if said.flatness:
        yield "".join(f"- {markdown_text(line)}\n" for line in said.flatness)
    if said.warnings:
        yield "**What can't be said**\n"
        yield "".join(f"- {markdown_text(warning)}\n" for warning in said.warnings)
    if lines := forest_text(chapter.numbers):
        drawn = caption(chapter.numbers, GAINS)
        yield "\n".join(["```text", *map(plain, lines), "```\n"])
        yield (
            f"{markdown_text(drawn.title)}{', percentage points' if chapter.in_percent else ''}: "
            "mean by seed and 95 % interval; ● at equal epochs, ○ at equal gradients.\n"
        )


def _answers(answers: Answers) -> Iterable[str]:
    yield f"**{markdown_text(answers.title)}**: {markdown_text(answers.count)}.\n"
    yield "".join(
        f"- {markdown_text(f.about)}: {markdown_text(f.numbers)}: **{markdown_text(f.verdict)}**\n"
        for f in answers.findings
    )


def _figures(chapter: Chapter, names: Iterable[str], folder: str) -> Iterable[str]:
    for name in names:
        drawn = caption(chapter.numbers, name)
        words = markdown_text(f"{drawn.title}. {drawn.words}")
        path = f"{folder}/{stem(chapter.name, name)}.svg"
        yield f"![{markdown_text(drawn.title)}]({quote(path)})\n\n{words}\n"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "protocol"

"""A report as one HTML page that needs nothing else: no network, no other file.

jinja2 escapes every string. Should an escape be forgotten, the page's own policy still forbids
every request, and every script but the one hashed here.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from flatbench.records.quantities import Quantity, value_of
from flatbench.records.record import Record
from flatbench.report import captions, figures, style
from flatbench.report.chapters import Chapter
from flatbench.report.tables import titled
from flatbench.text import decimals, number, plain

_FOLDER = Path(__file__).parent


def render(chapters: Iterable[Chapter]) -> str:
    """Return the page."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FileSystemLoader(_FOLDER),
        finalize=lambda value: plain(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(
        chapters=[_shown(chapter) for chapter in chapters],
        style=Markup(_colours() + (_FOLDER / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _colours() -> str:
    """Return the page's paper and ink, those of the figures, in both colour schemes."""
    light = f"--paper: {style.PAPER}; --ink: {style.INK};"
    dark = f"--paper: {style.DARK[style.PAPER]}; --ink: {style.DARK[style.INK]};"
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"


def _shown(chapter: Chapter) -> dict[str, Any]:
    section = chapter.numbers.section
    return {
        "name": chapter.name,
        "on_validation": chapter.on_validation,
        "opening": chapter.opening,
        "figures": [_figure(chapter, name) for name in chapter.figures],
        "tables": chapter.tables,
        "folds": [
            {
                "title": fold.title,
                "answers": fold.answers,
                "tables": fold.tables,
                "figures": [_figure(chapter, name) for name in fold.figures],
            }
            for fold in chapter.folds
        ],
        "failures": chapter.failures,
        "made_with": chapter.made_with,
        "cases": [_case(record, section.outcome) for record in section.records],
        "outcome": titled(section).lower(),
        "form": "%.2f" if section.outcome.unit == "%" else "%.4g",
    }


def _figure(chapter: Chapter, name: str) -> dict[str, Any]:
    """Return a figure as an SVG in a data address, with what it shows in words."""
    svg = style.rendered(figures.draw(chapter.numbers, name), "svg")
    drawn = captions.caption(chapter.numbers, name)
    return {
        "title": drawn.title[0].upper() + drawn.title[1:],
        "words": drawn.words,
        "is_narrow": name == captions.GAINS,
        "source": "data:image/svg+xml;base64," + base64.b64encode(svg).decode(),
    }


def _case(record: Record, outcome: Quantity) -> dict[str, Any]:
    by_epoch = (getattr(epoch, outcome.name) for epoch in record.history)
    outcomes = [value for value in by_epoch if value is not None]
    return {
        "id": record.id.removeprefix(f"{record.protocol}/"),
        "status": record.status,
        "outcome": value_of(record, outcome.name),
        "sharpness": record.sam_sharpness,
        "seconds": record.seconds,
        "curves": [
            _curve("outcome", outcomes, 1 if outcome.unit == "%" else None),
            _curve("sharpness", [epoch.sam_sharpness for epoch in record.history], None),
        ]
        if outcomes
        else [],
    }


def _curve(name: str, values: Sequence[float], places: int | None) -> dict[str, str]:
    """Return a curve as points in a box of 60 × 16 units, which its values fill, and in words."""
    places = decimals([values[0], values[-1]], 2) if places is None else places
    low, high = min(values), max(values)
    steps = max(len(values) - 1, 1)
    points = " ".join(
        f"{60 * i / steps:.1f},{16 - 16 * (v - low) / (high - low) if high > low else 8.0:.1f}"
        for i, v in enumerate(values)
    )
    return {
        "name": name,
        "points": points,
        "words": f"{number(values[0], places)} → {number(values[-1], places)}",
    }

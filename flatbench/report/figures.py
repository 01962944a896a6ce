"""Figures from records alone: curves over epochs, and sharpness against the generalization gap.

Rows can be told apart without colour: a family of rows (a base and its SAM) has one shade, and each
of its rows a line style and a marker.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from flatbench.protocols.protocol import Protocol
from flatbench.records.quantities import (
    SAM_SHARPNESS,
    TEST_ACCURACY,
    in_training,
    quantity,
)
from flatbench.records.record import Record
from flatbench.records.sections import Section, sections
from flatbench.report import style
from flatbench.report.numbers import Numbers
from flatbench.report.ranking import correlation, tau_text
from flatbench.text import figure_text


@dataclass(frozen=True)
class _Look:
    colour: tuple[float, ...]
    line: str
    marker: str
    filled: bool


def _looks(section: Section) -> dict[str, _Look]:
    """Return how each row is drawn: shade by family, line and marker by its place in it."""
    families: dict[str, list[str]] = {}
    for row in section.optimizers:
        families.setdefault(_family(section, row), []).append(row)
    looks: dict[str, _Look] = {}
    for shade, rows in zip(style.shades(len(families)), families.values(), strict=True):
        for place, row in enumerate(rows):
            looks[row] = _Look(
                tuple(shade),
                style.LINES[place % len(style.LINES)],
                style.MARKERS[len(looks) % len(style.MARKERS)],
                row not in section.base_of,
            )
    return looks


def _family(section: Section, row: str) -> str:
    return section.base_optimizer.get(row) or section.base_of.get(row, row)


def curves(section: Section, name: str = TEST_ACCURACY) -> Figure:
    """Draw a quantity of the history, by its name, against the epoch: one panel an architecture.

    Line: mean over the runs that completed; band: ± their sample standard deviation, from two
    runs on. A run that diverged is a thin line of its own that ends in a cross.
    """
    looks = _looks(section)
    with mpl.rc_context(style.RC):
        figure, panels = _panels(section)
        for architecture, axes in zip(section.architectures, panels, strict=True):
            counts = [
                _curve(axes, section, architecture, row, name, looks[row])
                for row in section.optimizers
            ]
            axes.set_title(f"{figure_text(architecture)}, n = {_span([n for n in counts if n])}")
            axes.set_xlabel("epoch")
        heights = np.concatenate([_lines(axes) for axes in panels])
        drawn = quantity(name)
        if drawn.scale == "log" and len(heights) and heights.min() > 0:
            panels[0].set_yscale("log")  # shared by all panels
            _label(panels[0].yaxis, heights)
        unit = f" ({drawn.unit})" if drawn.unit else ""
        panels[0].set_ylabel(f"{drawn.titled(section.evaluation)}{unit}")
        _legend(figure, panels)
    return figure


def _curve(
    axes: Axes, section: Section, architecture: str, row: str, name: str, look: _Look
) -> int:
    """Draw one row's curve; return the number of runs it is the mean of."""
    runs = [r for r in section.cell(architecture, row) if r.history]
    completed = [r for r in runs if r.status == "completed"]
    if completed:
        length = min(len(r.history) for r in completed)
        values = np.array(
            [[getattr(epoch, name) for epoch in r.history[:length]] for r in completed]
        )
        epochs, mean = np.arange(1, length + 1), values.mean(0)
        axes.plot(
            epochs,
            mean,
            color=look.colour,
            linestyle=look.line,
            marker=look.marker,
            markerfacecolor=look.colour if look.filled else "white",
            markevery=max(1, length // 6),
            label=figure_text(row),
        )
        if len(completed) > 1:
            std = values.std(0, ddof=1)
            axes.fill_between(
                epochs, mean - std, mean + std, color=look.colour, alpha=0.18, linewidth=0
            )
    for run in runs:
        if run.status != "completed":
            values = np.array([getattr(epoch, name) for epoch in run.history])
            epochs = np.arange(1, len(values) + 1)
            axes.plot(epochs, values, color=look.colour, linestyle=look.line, linewidth=0.6)
            axes.plot(epochs[-1:], values[-1:], color=look.colour, marker="x", linestyle="none")
    return len(completed)


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts, default=0), max(counts, default=0)
    return str(low) if low == high else f"{low} to {high}"


def _label(axis: Axis, values: npt.ArrayLike) -> None:
    """Label a logarithmic axis sparsely and in plain numbers, whatever it spans."""
    decades = float(np.ptp(np.log10(values)))
    axis.set_major_locator(
        ticker.MaxNLocator(4)
        if decades < 1
        else ticker.LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2 else (1.0,))
    )
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def _lines(axes: Axes) -> npt.NDArray[np.float64]:
    """Return the height of every point of every line (bands apart)."""
    heights = [np.asarray(line.get_ydata(), float) for line in axes.lines]
    return np.concatenate(heights) if heights else np.empty(0)


def gap(numbers: Numbers, measure: str = SAM_SHARPNESS) -> Figure:
    """Draw a sharpness measure against the generalization gap, a point a run that completed.

    The gap is the last epoch's training accuracy less the test accuracy, in percentage points;
    the training accuracy is of the labels trained on, label noise included, so that with noise
    a gap below zero is usual. The title tells Kendall's τ as `ranking.correlation` counts it.
    """
    section, looks = numbers.section, _looks(numbers.section)
    frame = numbers.frame
    frame = frame[frame["status"] == "completed"]
    outcome = section.outcome
    sign = 1 if outcome.better == "higher" else -1
    frame = frame.assign(gap=sign * (frame[in_training(outcome)] - frame[outcome.name]))
    frame = frame[frame["gap"].notna() & frame[measure].notna()]
    with mpl.rc_context(style.RC):
        figure, panels = _panels(section)
        for architecture, axes in zip(section.architectures, panels, strict=True):
            for row in section.optimizers:
                cell = frame[(frame["architecture"] == architecture) & (frame["optimizer"] == row)]
                axes.plot(
                    cell[measure].tolist(),
                    cell["gap"].tolist(),
                    linestyle="none",
                    marker=looks[row].marker,
                    color=looks[row].colour,
                    markerfacecolor=looks[row].colour if looks[row].filled else "white",
                    markersize=4.5,
                    label=figure_text(row),
                )
            axes.set_title(figure_text(architecture))
            axes.set_xlabel(figure_text(quantity(measure).heading))
            here = frame.loc[frame["architecture"] == architecture, measure].to_numpy()
            if len(here) and here.min() > 0:
                axes.set_xscale("log")
                _label(axes.xaxis, here)
        unit = "\n(percentage points)" if outcome.unit == "%" else ""
        sides = ("training", section.evaluation)[:: 1 if sign > 0 else -1]
        kind = outcome.name.removeprefix("test_")
        panels[0].set_ylabel(f"{' − '.join(sides)} {kind}{unit}")
        found = correlation(numbers, measure, "gap")
        figure.suptitle("Kendall's τ undefined" if found is None else f"τ = {tau_text(found)}")
        _legend(figure, panels)
    return figure


def _panels(section: Section) -> tuple[Figure, list[Axes]]:
    """Return a figure of one panel an architecture, side by side; two are as wide as a page."""
    count = len(section.architectures)
    figure = Figure(figsize=(style.PAGE / 2 * min(count, 4), 2.9))
    panels = figure.subplots(1, count, sharey=True, squeeze=False)
    return figure, list(panels[0])


def _legend(figure: Figure, panels: list[Axes]) -> None:
    entries = {
        str(label): handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if entries:
        figure.legend(
            entries.values(), entries.keys(), loc="outside lower center", ncols=4, handlelength=3.2
        )


def drawn(numbers: Numbers) -> dict[str, Callable[[], Figure]]:
    """Return what there is to draw of a section, by name, not drawn yet."""
    section = numbers.section
    made: dict[str, Callable[[], Figure]] = {}
    if any(record.history for record in section.records):
        made[section.outcome.name] = lambda: curves(section, section.outcome.name)
        made[SAM_SHARPNESS] = lambda: curves(section, SAM_SHARPNESS)
    completed = numbers.frame[numbers.frame["status"] == "completed"]
    for measure in numbers.measures:
        both = completed[in_training(section.outcome)].notna() & completed[measure].notna()
        if both.sum() >= 2:
            made[f"gap-{measure}"] = lambda measure=measure: gap(numbers, measure)  # type: ignore[misc]
    return made


def write(
    records: Iterable[Record], folder: Path, protocols: Iterable[Protocol] = ()
) -> list[Path]:
    """Write every figure as PNG and SVG, and return the paths.

    The files are named by protocol and figure: ``digits-test_accuracy.png``.

    Raises:
        UsageError: records that cannot share a table; see `flatbench.records.sections`.
    """
    written = []
    for section in sections(records, protocols):
        for name, draw in drawn(Numbers(section)).items():
            stem = re.sub(r"[^A-Za-z0-9+_-]", "_", f"{section.protocol}-{name}")
            written += style.write_all(draw(), folder, stem)
    return written

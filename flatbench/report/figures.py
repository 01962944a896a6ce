"""Figures from records alone; `captions` says which there are and what they show.

A row looks alike in all of them, by its name: see `style.look`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
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
from flatbench.report import captions, style
from flatbench.report.anytime import prices, spending
from flatbench.report.forest_figure import forest
from flatbench.report.numbers import Numbers
from flatbench.report.panels import (
    focus_on_the_end,
    heights,
    legend,
    plain_log,
    side_by_side,
    whole_numbers,
)
from flatbench.report.ranking import correlation, tau_text
from flatbench.text import figure_text


def curves(section: Section, name: str = TEST_ACCURACY) -> Figure:
    """Draw a quantity of the history, by its name, against the epoch: one panel an architecture.

    Line: mean over the runs that completed; band: ± their sample standard deviation, from two
    runs on. A run that diverged is a thin line of its own that ends in a cross.
    """
    looks = style.looks(section.optimizers)
    with mpl.rc_context(style.RC):
        is_accuracy = quantity(name).scale == "log-error"
        figure, panels = side_by_side(section, sharey=not is_accuracy)
        for architecture, axes in zip(section.architectures, panels, strict=True):
            counts = [
                _curve(axes, section, architecture, row, name, looks[row])
                for row in section.optimizers
            ]
            axes.set_title(f"{figure_text(architecture)}, n = {_span([n for n in counts if n])}")
            axes.set_xlabel("epoch")
            whole_numbers(axes.xaxis)
            if is_accuracy:
                focus_on_the_end(axes)
        drawn, values = quantity(name), np.concatenate([heights(axes) for axes in panels])
        if drawn.scale == "log" and len(values) and values.min() > 0:
            panels[0].set_yscale("log")  # shared by all panels
            plain_log(panels[0].yaxis, values)
        unit = f" ({drawn.unit})" if drawn.unit else ""
        panels[0].set_ylabel(f"{drawn.titled(section.evaluation)}{unit}")
        legend(figure, panels)
    return figure


def _curve(
    axes: Axes, section: Section, architecture: str, row: str, name: str, look: style.Look
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
            markerfacecolor=look.face,
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


def gap(numbers: Numbers, measure: str = SAM_SHARPNESS) -> Figure:
    """Draw a sharpness measure against the generalization gap, a point a run that completed.

    The gap is the last epoch's training accuracy less the test accuracy, in percentage points;
    the training accuracy is of the labels trained on, label noise included, so that with noise
    a gap below zero is usual. The title tells Kendall's τ as `ranking.correlation` counts it.
    """
    section, looks = numbers.section, style.looks(numbers.section.optimizers)
    frame = numbers.frame
    frame = frame[frame["status"] == "completed"]
    outcome = section.outcome
    sign = 1 if outcome.better == "higher" else -1
    frame = frame.assign(gap=sign * (frame[in_training(outcome)] - frame[outcome.name]))
    frame = frame[frame["gap"].notna() & frame[measure].notna()]
    with mpl.rc_context(style.RC):
        figure, panels = side_by_side(section, sharey=True)
        for architecture, axes in zip(section.architectures, panels, strict=True):
            for row in section.optimizers:
                cell = frame[(frame["architecture"] == architecture) & (frame["optimizer"] == row)]
                axes.plot(
                    cell[measure].tolist(),
                    cell["gap"].tolist(),
                    linestyle="none",
                    marker=looks[row].marker,
                    color=looks[row].colour,
                    markerfacecolor=looks[row].face,
                    markersize=4.5,
                    label=figure_text(row),
                )
            axes.set_title(figure_text(architecture))
            axes.set_xlabel(figure_text(quantity(measure).heading))
            here = frame.loc[frame["architecture"] == architecture, measure].to_numpy()
            if len(here) and here.min() > 0:
                axes.set_xscale("log")
                plain_log(axes.xaxis, here)
        unit = "\n(percentage points)" if outcome.unit == "%" else ""
        sides = ("training", section.evaluation)[:: 1 if sign > 0 else -1]
        kind = outcome.name.removeprefix("test_")
        panels[0].set_ylabel(f"{' − '.join(sides)} {kind}{unit}")
        found = correlation(numbers, measure, "gap")
        figure.suptitle("Kendall's τ undefined" if found is None else f"τ = {tau_text(found)}")
        legend(figure, panels)
    return figure


def outcome(numbers: Numbers, measure: str) -> Figure:
    """Draw the outcome against a sharpness measure: small points are runs, large ones means."""
    section, looks = numbers.section, style.looks(numbers.section.optimizers)
    of = section.outcome
    runs = numbers.frame[numbers.frame["status"] == "completed"]
    runs = runs[runs[of.name].notna() & runs[measure].notna()]
    with mpl.rc_context(style.RC):
        figure, panels = side_by_side(section, sharey=False)
        for architecture, axes in zip(section.architectures, panels, strict=True):
            here = runs[runs["architecture"] == architecture]
            for row in section.optimizers:
                cell, look = here[here["optimizer"] == row], looks[row]
                each = (cell[measure].tolist(), cell[of.name].tolist())
                drawn: Any = {"linestyle": "none", "marker": look.marker, "color": look.colour}
                axes.plot(*each, **drawn, markersize=2.5, alpha=0.6)
                if len(cell):
                    middle = ([cell[measure].mean()], [cell[of.name].mean()])
                    axes.plot(
                        *middle,
                        **drawn,
                        markersize=7,
                        markerfacecolor=look.face,
                        label=figure_text(row),
                    )
            axes.set_title(figure_text(architecture))
            axes.set_xlabel(figure_text(quantity(measure).heading))
            if len(here) and here[measure].min() > 0:
                axes.set_xscale("log")
                plain_log(axes.xaxis, here[measure].to_numpy())
        unit = f" ({of.unit})" if of.unit else ""
        panels[0].set_ylabel(f"{of.titled(section.evaluation)}{unit}")
        legend(figure, panels)
    return figure


def draw(numbers: Numbers, name: str) -> Figure:
    """Return a section's figure by its name, one of `captions.names`."""
    if name == captions.GAINS:
        return forest(numbers)
    if name == captions.COST:
        return spending(numbers)
    if name == captions.PRICE:
        return prices(numbers)
    if name.startswith(captions.OUTCOME):
        return outcome(numbers, name.removeprefix(captions.OUTCOME))
    if name.startswith(captions.GAP):
        return gap(numbers, name.removeprefix(captions.GAP))
    return curves(numbers.section, name)


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
        numbers = Numbers(section)
        for name in captions.names(numbers):
            stem = captions.stem(section.protocol, name)
            written += style.write_all(draw(numbers, name), folder, stem)
    return written

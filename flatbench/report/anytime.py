"""What accuracy costs, drawn: by gradients and seconds, on the way and at the end."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flatbench.records.quantities import TEST_ACCURACY
from flatbench.records.record import Record
from flatbench.report import style
from flatbench.report.costs import cost, targets
from flatbench.report.numbers import Numbers
from flatbench.report.panels import focus_on_the_end, legend, whole_numbers, width_of
from flatbench.stats import t_interval
from flatbench.text import figure_text


def spending(numbers: Numbers) -> Figure:
    """Draw the outcome against the gradients spent, and below it when each run reached a target.

    One panel an architecture. The targets are those of `costs.time_to_accuracy_table`.
    """
    section = numbers.section
    looks = style.looks(section.optimizers)
    aims = targets(numbers) if section.outcome.name == TEST_ACCURACY else {}
    strip = 0.16 * len(section.optimizers) + 0.1
    heights = [2.1, strip] if aims else [2.1]
    with mpl.rc_context(style.RC):
        figure = Figure(figsize=(width_of(section), sum(heights) + 0.9))
        panels = figure.subplots(
            len(heights),
            len(section.architectures),
            sharex="col",
            squeeze=False,
            gridspec_kw={"height_ratios": heights},
        )
        for column, architecture in enumerate(section.architectures):
            upper, lower = panels[0, column], panels[-1, column]
            for row in section.optimizers:
                _curve(upper, numbers, section.cell(architecture, row), row, looks[row])
            upper.set_title(figure_text(architecture))
            if section.outcome.scale == "log-error":
                focus_on_the_end(upper)
            if architecture in aims:
                upper.axhline(aims[architecture], color=style.GUIDE, linestyle=":", linewidth=1)
                _strip(lower, numbers, architecture, aims[architecture], looks)
            lower.set_xlabel("gradient evaluations")
            lower.set_xlim(left=0)
            whole_numbers(lower.xaxis)
        unit = f" ({section.outcome.unit})" if section.outcome.unit else ""
        panels[0, 0].set_ylabel(f"{section.outcome.titled(section.evaluation)}{unit}")
        legend(figure, list(panels[0]))
    return figure


def prices(numbers: Numbers) -> Figure:
    """Draw every row's outcome by the gradients that it took in all, and by its seconds.

    Two panels an architecture. A line joins the rows of a base that are no variant of another row:
    what is above it is better than the base's own longer trainings.
    """
    section = numbers.section
    looks = style.looks(section.optimizers)
    with mpl.rc_context(style.RC):
        figure = Figure(figsize=(style.PAGE, 2.2 * len(section.architectures) + 0.7))
        panels = figure.subplots(len(section.architectures), 2, sharey="row", squeeze=False)
        for line, architecture in enumerate(section.architectures):
            for axes, price in zip(panels[line], ("gradient_evaluations", "seconds"), strict=True):
                _priced(axes, numbers, architecture, price, looks)
                axes.set_title(figure_text(architecture))
                axes.margins(x=0.1)
            unit = f" ({section.outcome.unit})" if section.outcome.unit else ""
            panels[line, 0].set_ylabel(f"{section.outcome.titled(section.evaluation)}{unit}")
        for axes, label in zip(panels[-1], ("gradient evaluations", "seconds"), strict=True):
            axes.set_xlabel(label)
        legend(figure, [panels[0, 0]])
    return figure


def _priced(
    axes: Axes, numbers: Numbers, architecture: str, price: str, looks: dict[str, style.Look]
) -> None:
    """Draw one architecture's rows: means over the seeds, with the outcome's 95 % t-interval."""
    section = numbers.section
    plain: dict[str | None, list[tuple[float, float]]] = {}
    means = {row: numbers.mean(architecture, row, price) for row in section.optimizers}
    for row, spent in _side_by_side({row: m for row, m in means.items() if m is not None}).items():
        values = [*section.values(architecture, row, section.outcome.name).values()]
        if not values:
            continue
        mean, look = statistics.mean(values), looks[row]
        axes.plot(
            [spent],
            [mean],
            linestyle="none",
            marker=look.marker,
            markersize=5,
            color=look.colour,
            markerfacecolor=look.face,
            label=figure_text(row),
        )
        bound = t_interval(values)
        if bound is not None:
            axes.plot([spent] * 2, [bound.low, bound.high], color=look.colour, linewidth=0.8)
        if numbers.is_plain(row):
            plain.setdefault(section.base_optimizer.get(row), []).append((spent, mean))
    for points in plain.values():
        if len(points) > 1:
            axes.plot(
                *zip(*sorted(points), strict=True), color=style.GUIDE, linewidth=0.8, zorder=0
            )


def _side_by_side(prices: dict[str, float]) -> dict[str, float]:
    """Return where rows stand: those of the same price beside each other, around it."""
    width = 0.015 * max(prices.values(), default=0.0)
    found = {}
    for row, price in prices.items():
        same = [other for other in prices if prices[other] == price]
        found[row] = price + width * (same.index(row) - (len(same) - 1) / 2)
    return found


def _curve(
    axes: Axes, numbers: Numbers, cell: Sequence[Record], row: str, look: style.Look
) -> None:
    """Draw the mean over a cell's completed runs with its 95 % interval."""
    name = numbers.section.outcome.name
    runs = [r for r in cell if r.status == "completed" and r.history]
    if not runs:
        return
    length = min(len(r.history) for r in runs)
    values = np.array([[getattr(e, name) for e in r.history[:length]] for r in runs])
    spent = np.mean(
        [np.cumsum([e.gradient_evaluations for e in r.history[:length]]) for r in runs], axis=0
    )
    step = max(1, length // 5)
    marked = range((length - 1) % step, length, step)  # the last epoch among them
    look_of: Any = {"color": look.colour, "marker": look.marker, "markerfacecolor": look.face}
    axes.plot(
        spent,
        values.mean(0),
        **look_of,
        linestyle=look.line,
        markevery=list(marked),
        label=figure_text(row),
    )
    for place in marked:
        bound = t_interval(values[:, place].tolist())
        if bound is not None:
            axes.plot([spent[place]] * 2, [bound.low, bound.high], color=look.colour, linewidth=0.8)


def _strip(
    axes: Axes, numbers: Numbers, architecture: str, aim: float, looks: dict[str, style.Look]
) -> None:
    """Draw the gradients that every run needed to reach a target, a line a row."""
    section = numbers.section
    for place, row in enumerate(section.optimizers):
        runs = [r for r in section.cell(architecture, row) if r.status == "completed"]
        reached = [spent[0] for r in runs if (spent := cost(r, aim)) is not None]
        missed = [r.gradient_evaluations for r in runs if cost(r, aim) is None]
        colour = looks[row].colour
        axes.plot(
            reached,
            [place] * len(reached),
            linestyle="none",
            marker=looks[row].marker,
            markersize=3,
            color=colour,
            alpha=0.7,
        )
        axes.plot(missed, [place] * len(missed), linestyle="none", marker="x", color=colour)
        if reached and not missed:
            axes.plot([statistics.mean(reached)], [place], marker="|", markersize=9, color=colour)
    axes.set_yticks(range(len(section.optimizers)), [figure_text(r) for r in section.optimizers])
    axes.set_ylim(len(section.optimizers) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0, labelsize=6)
    axes.set_title(f"gradients to {aim:g} %", loc="left", fontsize=7)

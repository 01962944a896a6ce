"""The gains and their intervals side by side, drawn."""

from __future__ import annotations

import matplotlib as mpl
from matplotlib.figure import Figure

from flatbench.report import style
from flatbench.report.forest import listed_gains
from flatbench.report.numbers import Numbers
from flatbench.text import figure_text


def forest(numbers: Numbers) -> Figure:
    """Draw every gain over the row of its pair, and over rows with as many gradients.

    One panel an architecture, one above the other, so that the figure is half a page wide.
    """
    section = numbers.section
    by_architecture = listed_gains(numbers)
    looks = style.looks(section.optimizers)
    lines = max(len(gains) for gains in by_architecture.values())
    with mpl.rc_context(style.RC):
        figure = Figure(
            figsize=(style.PAGE / 2, (0.19 * lines + 0.25) * len(by_architecture) + 0.35)
        )
        panels = figure.subplots(len(by_architecture), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (architecture, gains) in zip(panels, by_architecture.items(), strict=True):
            axes.axvline(0, color=style.GUIDE, linewidth=0.8, zorder=0)
            for place, (gain, is_of_equal_gradients) in enumerate(gains):
                if gain.paired is None:
                    continue
                look = looks[gain.row]
                if gain.paired.interval is not None:
                    ends = (gain.paired.interval.low, gain.paired.interval.high)
                    axes.plot(ends, (place, place), color=look.colour, linewidth=1.6)
                axes.plot(
                    gain.paired.mean,
                    place,
                    marker=look.marker,
                    markersize=5.5,
                    color=look.colour,
                    markerfacecolor=style.PAPER if is_of_equal_gradients else look.colour,
                    linestyle="none",
                )
            axes.set_yticks(
                range(len(gains)), [figure_text(f"{g.row} − {g.base}") for g, _ in gains]
            )
            axes.set_ylim(len(gains) - 0.4, -0.6)
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            axes.set_title(figure_text(architecture), loc="left")
        unit = ", points" if section.outcome.unit == "%" else ""
        figure.supxlabel(f"gain in {section.outcome.titled(section.evaluation)}{unit}", fontsize=8)
    return figure

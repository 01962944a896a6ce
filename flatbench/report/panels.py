"""What the figures of a report share: panels side by side, axes and a legend that fits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from flatbench.records.sections import Section
from flatbench.report import style

FloatArray = npt.NDArray[np.float64]


def width_of(section: Section) -> float:
    """Return how wide a figure of one panel an architecture is: two are as wide as a page.

    So is one of many rows, whose legend needs the room.
    """
    fewest = 2 if len(section.optimizers) > 6 else 1
    return style.PAGE / 2 * min(max(len(section.architectures), fewest), 4)


def side_by_side(section: Section, *, sharey: bool) -> tuple[Figure, list[Axes]]:
    """Return a figure of one panel an architecture."""
    figure = Figure(figsize=(width_of(section), 2.9))
    panels = figure.subplots(1, len(section.architectures), sharey=sharey, squeeze=False)
    return figure, list(panels[0])


def legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Add one legend for all panels below them, in as many columns as the figure has room for.

    The figure grows by what the legend has beyond one line, so that the panels keep their height.
    """
    entries = {
        str(label): handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    for columns in range(len(entries), 0, -1):
        made = figure.legend(
            entries.values(),
            entries.keys(),
            loc="outside lower center",
            ncols=columns,
            handlelength=3.2,
            columnspacing=1.6,
        )
        if columns == 1 or made.get_window_extent().width <= figure.bbox.width:
            lines = -(-len(entries) // columns)
            more = made.get_window_extent().height / figure.dpi * (1 - 1 / lines)
            figure.set_figheight(figure.get_figheight() + more)
            break
        made.remove()


def whole_numbers(axis: Axis) -> None:
    """Label an axis of epochs or counts at whole numbers alone."""
    axis.set_major_locator(ticker.MaxNLocator(6, integer=True))


def plain_log(axis: Axis, values: npt.ArrayLike) -> None:
    """Label a logarithmic axis sparsely and in plain numbers, whatever it spans."""
    decades = float(np.ptp(np.log10(values)))
    axis.set_major_locator(
        ticker.MaxNLocator(4)
        if decades < 1
        else ticker.LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2 else (1.0,))
    )
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def heights(axes: Axes) -> FloatArray:
    """Return the height of every point of every line (bands apart)."""
    found = [np.asarray(line.get_ydata(), float) for line in axes.lines]
    return np.concatenate(found) if found else np.empty(0)


def focus_on_the_end(axes: Axes) -> None:
    """Let the vertical axis span what the curves do in the last third of their way.

    All accuracies start near chance; an axis from there to the end would hide how they differ.
    """
    ends = []
    for line in axes.lines:
        if not str(line.get_label()).startswith("_"):  # a run that was lost has no label
            x, y = (np.asarray(data, float) for data in line.get_data())
            ends.append(y[x >= x[0] + (x[-1] - x[0]) * 2 / 3])
    if ends:
        low, high = (float(f(np.concatenate(ends))) for f in (np.min, np.max))
        if high > low:
            axes.set_ylim(low - 0.2 * (high - low), high + 0.2 * (high - low))

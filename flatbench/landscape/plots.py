"""Drawings of landscapes, at paper size, to be read in grey and with every kind of colour sight.

Each function takes landscapes by name and draws them side by side on one scale: a base optimizer's
beside its SAM's. Height is shade: cividis rises in lightness from end to end.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
from numpy.typing import NDArray

from flatbench.files import write_atomically
from flatbench.landscape.grid import Landscape

Scale = Literal["auto", "linear", "log"]

_STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "lines.linewidth": 1.3,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "flatbench",
}
_PAGE = 17 / 2.54  # inches: the text width of a page
_MAP = "cividis"
_LINES = ("-", "--", ":", "-.")
_MARKERS = ("o", "^", "s", "D", "v", "P")


def contour(landscapes: Mapping[str, Landscape], *, scale: Scale = "auto") -> Figure:
    """Draw two-dimensional landscapes as filled contours with labelled lines.

    Points that are not finite, or not yet evaluated, are hatched. A cross marks the model.

    Args:
        landscapes: 1 to 3 of them, by the title of their panel.
        scale: of the loss; "auto" is "log" where all losses are positive and the highest is more
            than 30 times the lowest.

    Raises:
        ValueError: no landscape, more than 3, one of one dimension, of a single row or column, or
            without a finite point.
    """
    heights = _heights(landscapes, dimensions=2)
    levels, norm = _levels(heights, scale)
    with mpl.rc_context(_STYLE):
        figure, panels = _panels(landscapes, height=0.82)
        for axes, (name, landscape) in zip(panels, landscapes.items(), strict=True):
            values = landscape.losses.T  # rows of a picture run along y
            grid = (landscape.alphas, landscape.betas, values)
            axes.set_facecolor("0.85")
            axes.patch.set_hatch("////")
            axes.patch.set_edgecolor("0.6")
            filled = axes.contourf(*grid, levels=levels, cmap=_MAP, norm=norm, extend="both")
            ink = ["white" if norm(level) < 0.55 else "black" for level in levels]
            lines = axes.contour(*grid, levels=levels, colors=ink, linewidths=0.6)
            axes.clabel(lines, fontsize=6, fmt="%.6g", inline_spacing=2)
            for ring, colour in ((3.0, "black"), (1.2, "white")):
                axes.plot(0, 0, "+", markersize=8, markeredgewidth=ring, color=colour)
            axes.set_aspect("equal")
            axes.set_title(name)
            axes.set_xlabel(landscape.labels[0])
            axes.set_ylabel(landscape.labels[1])
        bar = figure.colorbar(filled, ax=panels, label="loss", shrink=0.9, pad=0.02)
        bar.set_ticks(list(levels), labels=[f"{level:.6g}" for level in levels])
        bar.minorticks_off()
    return figure


def surface(
    landscapes: Mapping[str, Landscape],
    *,
    scale: Scale = "auto",
    elevation: float = 35.0,
    azimuth: float = -60.0,
) -> Figure:
    """Draw two-dimensional landscapes as surfaces.

    Args:
        landscapes: 1 to 3 of them, by the title of their panel.
        scale: as in `contour`.
        elevation: the viewer's height, degrees.
        azimuth: the viewer's direction, degrees.

    Raises:
        ValueError: as `contour`.
    """
    heights = _heights(landscapes, dimensions=2)
    logarithmic = _is_log(heights, scale)
    heights = np.log10(heights) if logarithmic else heights
    norm = Normalize(*_span(heights))
    decades = logarithmic and np.ptp(heights) >= 2
    # The constrained layout does not know the room that a 3-d axis's labels take.
    with mpl.rc_context(_STYLE | {"figure.constrained_layout.use": False}):
        figure, panels = _panels(landscapes, height=0.85, projection="3d")
        figure.subplots_adjust(left=0.0, right=0.93, bottom=0.1, top=0.98, wspace=0.12)
        for axes, (name, landscape) in zip(panels, landscapes.items(), strict=True):
            x, y = np.meshgrid(landscape.alphas, landscape.betas, indexing="ij")
            z = np.where(np.isfinite(landscape.losses), landscape.losses, np.nan)
            axes.plot_surface(
                x,
                y,
                np.log10(z) if logarithmic else z,
                cmap=_MAP,
                norm=norm,
                rcount=60,
                ccount=60,
                linewidth=0.15,
                edgecolor="0.2",
                antialiased=True,
            )
            axes.set_zlim(norm.vmin, norm.vmax)
            axes.view_init(elevation, azimuth)
            axes.set_box_aspect((1, 1, 0.75), zoom=0.98)
            axes.set_title(name, y=0.98)
            axes.set_xlabel(landscape.labels[0], labelpad=-3)
            axes.set_ylabel(landscape.labels[1], labelpad=-3)
            axes.set_zlabel("loss", labelpad=-3)
            axes.tick_params(labelsize=6, pad=-1)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            axes.zaxis.set_major_locator(MaxNLocator(5, integer=decades))
            if logarithmic:
                axes.zaxis.set_major_formatter(lambda power, _: f"{10.0**power:.2g}")
    return figure


def lines(
    landscapes: Mapping[str, Landscape],
    *,
    scale: Scale = "auto",
    ends: tuple[str, str] | None = None,
) -> Figure:
    """Draw one-dimensional landscapes in one pair of axes, told apart by line style and marker.

    Args:
        landscapes: at least one, by its name in the legend.
        scale: as in `contour`.
        ends: for the line between two solutions, the names of those at α = 0 and α = 1.

    Raises:
        ValueError: no landscape, or one of two dimensions or without a finite point.
    """
    heights = _heights(landscapes, dimensions=1)
    shades = mpl.colormaps[_MAP](np.linspace(0.0, 0.75, len(landscapes)))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_PAGE / 2, 0.75 * _PAGE / 2))
        axes = figure.add_subplot()
        for i, (name, landscape) in enumerate(landscapes.items()):
            axes.plot(
                landscape.alphas,
                np.where(np.isfinite(landscape.losses), landscape.losses, np.nan),
                color=shades[i],
                linestyle=_LINES[i % len(_LINES)],
                marker=_MARKERS[i % len(_MARKERS)],
                markersize=3,
                markevery=max(1, len(landscape.alphas) // 8),
                label=name,
            )
        if _is_log(heights, scale):
            axes.set_yscale("log")
        for place, end in enumerate(ends or ()):
            axes.axvline(place, color="0.5", linewidth=0.6, zorder=0)
            axes.annotate(
                end,
                (place, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                va="bottom",
            )
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel(next(iter(landscapes.values())).labels[0])
        axes.set_ylabel("loss")
        if len(landscapes) > 1:
            axes.legend()
    return figure


def write(figure: Figure, path: Path) -> None:
    """Write a figure as PNG (300 dots an inch) or SVG, by the path's suffix.

    Raises:
        ValueError: the suffix is neither.
    """
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in ("png", "svg"):
        raise ValueError(f"{path}: suffix {path.suffix!r}; allowed: .png, .svg")
    content = io.BytesIO()
    # Without the date or the library's version the same figure gives the same bytes.
    metadata: dict[str, Any] = {"Date": None} if suffix == "svg" else {"Software": None}
    with mpl.rc_context(_STYLE):
        figure.savefig(content, format=suffix, dpi=300, metadata=metadata)
    write_atomically(path, content.getvalue())


def _heights(landscapes: Mapping[str, Landscape], dimensions: int) -> NDArray[np.float64]:
    """Return all finite losses, having looked that there is something to draw."""
    most = 3 if dimensions == 2 else 12
    if not 1 <= len(landscapes) <= most:
        raise ValueError(f"landscapes: {len(landscapes)}; allowed: 1 to {most} in one figure")
    parts = []
    for name, landscape in landscapes.items():
        losses = landscape.losses
        if losses.ndim != dimensions or (dimensions == 2 and min(losses.shape) < 2):
            size = " × ".join(map(str, losses.shape))
            wanted = "a line" if dimensions == 1 else "a grid of at least 2 × 2"
            raise ValueError(f"landscape {name!r}: {size} points; allowed: {wanted}")
        finite = losses[np.isfinite(losses)]
        if finite.size == 0:
            raise ValueError(f"landscape {name!r}: no finite point; allowed: at least one")
        parts.append(finite)
    return np.concatenate(parts)


def _is_log(heights: NDArray[np.float64], scale: Scale) -> bool:
    low, high = float(heights.min()), float(heights.max())
    if scale == "auto":
        return low > 0 and high > 30 * low
    if scale == "log" and low <= 0:
        raise ValueError(f"scale: 'log', but the lowest loss is {low:g}; allowed: 'linear'")
    return scale == "log"


def _levels(heights: NDArray[np.float64], scale: Scale) -> tuple[NDArray[np.float64], Normalize]:
    """Return at most about 12 round levels within the heights' range, and the shades' norm."""
    low, high = _span(heights)
    if _is_log(heights, scale):
        decades = np.log10(high / low)
        subs = (1, 2, 5) if decades < 2.5 else (1, 3) if decades < 6 else (1,)
        steps = LogLocator(subs=subs, numticks=100)
        levels = np.asarray(steps.tick_values(low, high))
        levels = levels[(levels > low) & (levels < high)]
        if len(levels) >= 2:
            return levels, LogNorm(low, high)
        levels = np.geomspace(low, high, 6)[1:-1]
        return levels, LogNorm(low, high)
    levels = np.asarray(MaxNLocator(10).tick_values(low, high))
    return levels[(levels > low) & (levels < high)], Normalize(low, high)


def _span(heights: NDArray[np.float64]) -> tuple[float, float]:
    low, high = float(heights.min()), float(heights.max())
    if high > low:
        return low, high
    margin = 1e-3 * (abs(low) or 1.0)  # a plain: something must lie above and below it
    return low - margin, high + margin


def _panels(
    landscapes: Mapping[str, Landscape], height: float, projection: str | None = None
) -> tuple[Figure, list[Any]]:
    count = len(landscapes)
    width = _PAGE / 2 * min(count, 2)
    figure = Figure(figsize=(width, height * width / count))
    axes = [figure.add_subplot(1, count, i + 1, projection=projection) for i in range(count)]
    return figure, axes

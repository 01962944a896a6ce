"""Draw landscapes and spectra at paper size.

Each function takes results by name and draws them on one scale, so that a base optimizer can be
held against its SAM. A higher loss has a lighter shade.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
from numpy.typing import NDArray

from flatbench.landscape.grid import Landscape
from flatbench.landscape.spectrum import Spectrum
from flatbench.report import style
from flatbench.text import decimals, figure_text, number

Scale = Literal["auto", "linear", "log"]

_LIGHT = "#fcfcfc"  # white, but not the paper's: on a field of colour it stays in the dark scheme

# A filled field reaches to all four edges.
_FRAME: Any = {"axes.spines.top": True, "axes.spines.right": True}


def contour(
    landscapes: Mapping[str, Landscape], *, scale: Scale = "auto", title: str = ""
) -> Figure:
    """Draw two-dimensional landscapes as filled contours with labelled lines.

    Points that are not finite or not yet evaluated are hatched. A cross marks the model.

    Args:
        landscapes: 1 to 3 of them, by the title of their panel.
        scale: the loss's scale; "auto" is "log" where all losses are positive and the highest is
            more than 30 times the lowest.
        title: of the whole figure, as the data set's name.

    Raises:
        ValueError: no landscape, more than 3, one of one dimension, of a single row or column, or
            without a finite point.
    """
    heights = _heights(landscapes, dimensions=2)
    levels, norm = _levels(heights, scale)
    with mpl.rc_context(style.RC | _FRAME):
        figure, panels = _panels(landscapes, height=0.82)
        for axes, (name, landscape) in zip(panels, landscapes.items(), strict=True):
            values = landscape.losses.T  # rows of a picture run along y
            grid = (landscape.alphas, landscape.betas, values)
            axes.set_facecolor("0.85")
            axes.patch.set_hatch("////")
            axes.patch.set_edgecolor("0.6")
            filled = axes.contourf(
                *grid, levels=levels, cmap=style.COLOURS, norm=norm, extend="both"
            )
            ink = [_LIGHT if norm(level) < 0.55 else "black" for level in levels]
            lines = axes.contour(*grid, levels=levels, colors=ink, linewidths=0.6)
            axes.clabel(lines, fontsize=6, fmt="%.6g", inline_spacing=2)
            for ring, colour in ((3.0, "black"), (1.2, _LIGHT)):
                axes.plot(0, 0, "+", markersize=8, markeredgewidth=ring, color=colour)
            axes.set_aspect("equal")
            axes.set_title(figure_text(name))
            axes.set_xlabel(figure_text(landscape.labels[0]))
            axes.set_ylabel(figure_text(landscape.labels[1]))
            for axis in (axes.xaxis, axes.yaxis):
                _few_ticks(axis)
        _entitle(figure, title)
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
    title: str = "",
) -> Figure:
    """Draw two-dimensional landscapes as surfaces.

    Args:
        landscapes: 1 to 3 of them, by the title of their panel.
        scale: as in `contour`.
        elevation: the viewer's height, degrees.
        azimuth: the viewer's direction, degrees.
        title: as in `contour`.

    Raises:
        ValueError: as `contour`.
    """
    heights = _heights(landscapes, dimensions=2)
    logarithmic = _is_log(heights, scale)
    heights = np.log10(heights) if logarithmic else heights
    norm = Normalize(*_span(heights))
    decades = logarithmic and np.ptp(heights) >= 2
    # The constrained layout does not know the room that a 3-d axis's labels take.
    with mpl.rc_context(style.RC | {"figure.constrained_layout.use": False}):
        figure, panels = _panels(landscapes, height=0.85, projection="3d")
        figure.subplots_adjust(left=0.0, right=0.93, bottom=0.1, top=0.98, wspace=0.12)
        for axes, (name, landscape) in zip(panels, landscapes.items(), strict=True):
            x, y = np.meshgrid(landscape.alphas, landscape.betas, indexing="ij")
            z = np.where(np.isfinite(landscape.losses), landscape.losses, np.nan)
            axes.plot_surface(
                x,
                y,
                np.log10(z) if logarithmic else z,
                cmap=style.COLOURS,
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
            axes.set_title(figure_text(name), y=0.98)
            axes.set_xlabel(figure_text(landscape.labels[0]), labelpad=-3)
            axes.set_ylabel(figure_text(landscape.labels[1]), labelpad=-3)
            axes.set_zlabel("loss", labelpad=-3)
            axes.tick_params(labelsize=6, pad=-1)
            for axis in (axes.xaxis, axes.yaxis):
                _few_ticks(axis)
            axes.zaxis.set_major_locator(MaxNLocator(5, integer=decades))
            if logarithmic:
                axes.zaxis.set_major_formatter(lambda power, _: f"{10.0**power:.2g}")
        if title:  # this figure's layout is its own, and knows of no title
            figure.subplots_adjust(top=0.92)
            figure.suptitle(figure_text(title), y=0.99)
    return figure


def lines(
    landscapes: Mapping[str, Landscape],
    *,
    scale: Scale = "auto",
    ends: tuple[str, str] | None = None,
    title: str = "",
    looks: Mapping[str, style.Look] | None = None,
) -> Figure:
    """Draw one-dimensional landscapes in one pair of axes, told apart by line style and marker.

    Args:
        landscapes: 1 to 12 of them, by their names in the legend.
        scale: as in `contour`.
        ends: the names of the solutions at α = 0 and α = 1, for the line between two.
        title: as in `contour`.
        looks: how each is drawn, by its name; None: as `style.in_turn` says.

    Raises:
        ValueError: no landscape, more than 12, or one of two dimensions or without a finite point.
    """
    heights = _heights(landscapes, dimensions=1)
    looks = looks or style.in_turn(landscapes)
    with mpl.rc_context(style.RC):
        figure = Figure(figsize=(style.PAGE / 2, 0.75 * style.PAGE / 2))
        axes = figure.add_subplot()
        for name, landscape in landscapes.items():
            axes.plot(
                landscape.alphas,
                np.where(np.isfinite(landscape.losses), landscape.losses, np.nan),
                color=looks[name].colour,
                linestyle=looks[name].line,
                marker=looks[name].marker,
                markerfacecolor=looks[name].face,
                markevery=max(1, len(landscape.alphas) // 8),
                label=figure_text(name),
            )
        if _is_log(heights, scale):
            axes.set_yscale("log")
        for place, end in enumerate(ends or ()):
            axes.axvline(place, color=style.GUIDE, linewidth=0.6, zorder=0)
            axes.annotate(
                figure_text(end),
                (place, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                va="bottom",
            )
        axes.set_xlabel(figure_text(next(iter(landscapes.values())).labels[0]))
        axes.set_ylabel("loss")
        _few_ticks(axes.xaxis)
        if len(landscapes) > 1:
            axes.legend()
        _entitle(figure, title)
    return figure


def spectrum(
    spectra: Mapping[str, Spectrum],
    *,
    title: str = "",
    looks: Mapping[str, style.Look] | None = None,
) -> Figure:
    """Draw the density of the Hessian's eigenvalues on a logarithmic axis, all spectra overlaid.

    The point masses are blurred by a Gaussian, whose width is 0.5 % of the range of all spectra's
    eigenvalues. A line is the mean over the probes, and its band reaches from the lowest to the
    highest of them. A marker on the line shows λ_max, and the legend tells its value. The axis ends
    at a tenth of the height of a single eigenvalue.

    Args:
        spectra: 1 to 4 of them, by their names in the legend; all probes must have run.
        title: as in `contour`.
        looks: as in `lines`.

    Raises:
        ValueError: no spectrum, more than 4, or one that is not complete.
    """
    if not 1 <= len(spectra) <= len(style.LINES):
        raise ValueError(f"spectra must be 1 to {len(style.LINES)}, got {len(spectra)}")
    for name, found in spectra.items():
        if not found.complete:
            probes = f"{len(found.done)} probes, got {found.done.sum()}"
            raise ValueError(f"spectrum {name!r} must have run all {probes}")
    low = min(found.ends[0] for found in spectra.values())
    high = max(found.ends[1] for found in spectra.values())
    # The eigenvalues of a multiple of the identity differ by rounding alone, or not at all.
    width = 0.005 * (max(high - low, 1e-3 * max(abs(low), abs(high))) or 1.0)
    places = np.linspace(low - 6 * width, high + 6 * width, 2000)  # 9 within a width
    one = min(1 / found.dimension for found in spectra.values()) / (width * np.sqrt(2 * np.pi))
    floor = 0.1 * one
    looks = looks or style.in_turn(spectra)
    with mpl.rc_context(style.RC):
        figure = Figure(figsize=(0.75 * style.PAGE, 0.43 * style.PAGE))
        axes = figure.add_subplot()
        for name, found in spectra.items():
            colour, marker = looks[name].colour, looks[name].marker
            look: Any = {"color": colour, "marker": marker, "markersize": 5}
            look["markerfacecolor"] = looks[name].face
            most = found.ends[1]
            each = np.stack([p.density(places, width) for p in found.probe_densities()])
            # A logarithm needs more than 0; what lies below the floor is not seen.
            band = np.maximum([each.min(0), each.max(0)], 1e-3 * floor)
            axes.fill_between(places, *band, color=colour, alpha=0.22, linewidth=0)
            axes.plot(
                places,
                np.maximum(each.mean(0), 1e-3 * floor),
                linestyle=looks[name].line,
                markevery=(len(places), 1),  # the legend's entry has the marker, the line has none
                label=f"{figure_text(name)}: λₘₐₓ = {number(most, decimals([most]))}",
                **look,
            )
            # Probes that miss λ_max's eigenvector leave it below the floor, but its mark is seen.
            height = float(found.density().density(np.array([most]), width)[0])
            axes.plot(most, max(height, floor), clip_on=False, **look)
        axes.set_yscale("log")
        axes.set_ylim(bottom=floor)
        axes.set_xlim(places[0], places[-1])
        axes.set_xlabel("eigenvalue of the Hessian")
        axes.set_ylabel("density (mean and range of the probes)")
        axes.legend(loc="upper right")
        _entitle(figure, title)
    return figure


def _few_ticks(axis: Axis) -> None:
    """Label an axis of steps at a few round numbers, written no longer than they need be."""
    axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))


def _entitle(figure: Figure, title: str) -> None:
    if title:
        figure.suptitle(figure_text(title))


def _heights(landscapes: Mapping[str, Landscape], dimensions: int) -> NDArray[np.float64]:
    """Return all finite losses in one array; refuse what cannot be drawn."""
    most = 3 if dimensions == 2 else 12
    if not 1 <= len(landscapes) <= most:
        raise ValueError(f"landscapes must be 1 to {most} in one figure, got {len(landscapes)}")
    parts = []
    for name, landscape in landscapes.items():
        losses = landscape.losses
        if losses.ndim != dimensions or (dimensions == 2 and min(losses.shape) < 2):
            size = " × ".join(map(str, losses.shape))
            wanted = "a line" if dimensions == 1 else "a grid of at least 2 × 2 points"
            raise ValueError(f"landscape {name!r} must be {wanted}, got {size} points")
        finite = losses[np.isfinite(losses)]
        if finite.size == 0:
            raise ValueError(f"landscape {name!r} must have a finite point, got none")
        parts.append(finite)
    return np.concatenate(parts)


def _is_log(heights: NDArray[np.float64], scale: Scale) -> bool:
    low, high = float(heights.min()), float(heights.max())
    if scale == "auto":
        return low > 0 and high > 30 * low
    if scale == "log" and low <= 0:
        raise ValueError(f"scale must be 'linear' as the lowest loss is {low:g}, got 'log'")
    return scale == "log"


def _levels(heights: NDArray[np.float64], scale: Scale) -> tuple[NDArray[np.float64], Normalize]:
    """Return some 12 round levels within the heights' range, and the norm of the shades."""
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
    margin = 1e-3 * (abs(low) or 1.0)  # all heights are equal, but an axis needs a length
    return low - margin, high + margin


def _panels(
    landscapes: Mapping[str, Landscape], height: float, projection: str | None = None
) -> tuple[Figure, list[Any]]:
    """Return a figure and its panels, side by side; ``height`` is a share of a panel's width."""
    count = len(landscapes)
    width = style.PAGE / 2 * min(count, 2)
    figure = Figure(figsize=(width, height * width / count))
    axes = [figure.add_subplot(1, count, i + 1, projection=projection) for i in range(count)]
    return figure, axes

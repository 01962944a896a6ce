"""How every figure looks, and how it is written to a file.

A page is 17 cm wide. Lines differ in line style and marker besides their shade, so that a figure
can be read in grey and with every kind of colour sight.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flatbench.files import write_atomically

RC: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "figure.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    # The names inside an SVG are hashes, salted at random unless a salt is set.
    "svg.hashsalt": "flatbench",
}
"""Matplotlib's settings. A figure is made within ``mpl.rc_context(style.RC)``."""

PAGE: Final = 17 / 2.54
"""The text width of a page, inches."""

COLOURS: Final = "cividis"
"""The colour map. Its lightness rises from end to end, also for the colour-blind."""

LINES: Final = ("-", "--", ":", "-.")
MARKERS: Final = ("o", "^", "s", "D", "v", "P", "X", "*")

DPI: Final = 300
"""Dots an inch of a PNG."""

SUFFIXES: Final = ("png", "svg")
"""The formats that every figure is written in."""


def shades(count: int) -> NDArray[np.float64]:
    """Return colours for ``count`` lines, from dark to light: (count, 4), red to opacity.

    The light end of the map is left out: it is too pale on white paper.
    """
    colours: NDArray[np.float64] = mpl.colormaps[COLOURS](np.linspace(0.0, 0.68, count))
    return colours


def rendered(figure: Figure, suffix: str) -> bytes:
    """Return a figure as PNG or SVG: the same figure gives the same bytes.

    Args:
        figure: made with `RC`.
        suffix: one of `SUFFIXES`.

    Raises:
        ValueError: the suffix is none of them.
    """
    if suffix not in SUFFIXES:
        raise ValueError(f"suffix must be one of {', '.join(SUFFIXES)}, got {suffix!r}")
    content = io.BytesIO()
    # The date and the library's version would differ from one writing to the next.
    metadata: dict[str, Any] = {"Date": None} if suffix == "svg" else {"Software": None}
    with mpl.rc_context(RC):
        figure.savefig(content, format=suffix, dpi=DPI, metadata=metadata)
    return content.getvalue()


def write(figure: Figure, path: Path) -> None:
    """Write a figure in the format that the path's suffix names, in whole or not at all.

    Raises:
        ValueError: the suffix is neither .png nor .svg.
    """
    write_atomically(path, rendered(figure, path.suffix.lower().removeprefix(".")))


def write_all(figure: Figure, folder: Path, stem: str) -> list[Path]:
    """Write a figure in every format as ``folder``/``stem``.SUFFIX, and return the paths."""
    # The stem may hold dots of its own, so it is not cut at the last one.
    paths = [folder / f"{stem}.{suffix}" for suffix in SUFFIXES]
    for path in paths:
        write(figure, path)
    return paths

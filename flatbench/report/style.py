"""How every figure looks, and how it is written to a file.

A page is 17 cm wide. A row of a protocol has its colour, line style and marker by its name, so that
it looks alike in every figure. The colours can be told apart with every kind of colour sight and
stand out from white and from dark paper; line style and marker serve those who print in grey.

An SVG follows the reader's colour scheme, in a page as by itself: its ink and its paper, not the
colours of the rows, have a second value for the dark scheme. A PNG is always on white.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from flatbench.files import write_atomically

INK: Final = "#1f2328"
PAPER: Final = "#ffffff"
DARK: Final = {INK: "#e6e9ee", PAPER: "#161a20"}
"""What ink and paper become in an SVG where the reader's colour scheme is dark."""

GUIDE: Final = "#808890"
"""The colour of lines that only guide the eye, on white as on dark."""

RC: Any = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "patch.edgecolor"), INK),
    **dict.fromkeys(("axes.facecolor", "figure.facecolor"), PAPER),
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
"""The colour map of fields. Its lightness rises from end to end, also for the colour-blind."""

LINES: Final = ("-", "--", ":", "-.")
MARKERS: Final = ("o", "^", "s", "D", "v", "P", "X", "*")


@dataclass(frozen=True)
class Look:
    """How a row is drawn."""

    colour: str
    line: str
    marker: str
    filled: bool = True

    @property
    def face(self) -> str:
        """The colour inside the marker."""
        return self.colour if self.filled else PAPER


# The least distance of two of these colours is 27 in CIELAB, for normal sight and for each of the
# three kinds of missing cones; their contrast with either paper is at least 3:1.
LOOKS: Final = {
    "sgd": Look("#6d61f3", "-", "o"),
    "sgd+sam": Look("#3d9e6d", "--", "^"),
    "sgd-2x": Look("#b679db", ":", "o", filled=False),
    "adam": Look("#db7900", "-", "s"),
    "adam+sam": Look("#ce0c31", "--", "D"),
    "adam-2x": Look("#9e4986", ":", "s", filled=False),
}
OTHERS: Final = ("#7955c2", "#556d61", "#31793d", "#ce6db6", "#869292")


def look(row: str) -> Look:
    """Return how a row is drawn, by its name alone."""
    if row in LOOKS:
        return LOOKS[row]
    number = zlib.crc32(row.encode("utf-8", "surrogatepass"))
    places = (number % len(OTHERS), (number >> 8) % len(MARKERS), (number >> 16) % len(LINES))
    return Look(OTHERS[places[0]], LINES[places[2]], MARKERS[places[1]], number >> 24 & 1 == 0)


def looks(rows: Iterable[str]) -> dict[str, Look]:
    """Return how the rows of a figure are drawn; two names that would look alike are told apart.

    Of the two, the one that comes later in the alphabet gets the next marker.
    """
    found: dict[str, Look] = {}
    for row in sorted(rows, key=lambda name: (name not in LOOKS, name)):
        wanted = look(row)
        for place in range(len(MARKERS)):
            marker = MARKERS[(MARKERS.index(wanted.marker) + place) % len(MARKERS)]
            made = Look(wanted.colour, wanted.line, marker, wanted.filled)
            if made not in found.values():
                break
        found[row] = made
    return found


def in_turn(names: Iterable[str]) -> dict[str, Look]:
    """Return how lines are drawn that are no rows: colours, line styles and markers take turns."""
    colours = [*(found.colour for found in LOOKS.values()), *OTHERS]
    return {
        name: Look(colours[i % len(colours)], LINES[i % len(LINES)], MARKERS[i % len(MARKERS)])
        for i, name in enumerate(names)
    }


DPI: Final = 300
"""Dots an inch of a PNG."""

SUFFIXES: Final = ("png", "svg")
"""The formats that every figure is written in."""


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
    # A figure that was made without the constrained layout would be given it as it is drawn.
    with mpl.rc_context(RC | {"figure.constrained_layout.use": False}):
        figure.savefig(content, format=suffix, dpi=DPI, metadata=metadata)
    return content.getvalue().replace(b"</style>", _SCHEME + b"</style>", 1)


# An attribute's own style stays for programs that know no style sheets.
_SCHEME = "".join(
    [
        "@media (prefers-color-scheme: dark) {",
        *(
            f'[style*="{side}: {light}"] {{ {side}: {dark} !important }}'
            for light, dark in DARK.items()
            for side in ("fill", "stroke")
        ),
        "}",
    ]
).encode()


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

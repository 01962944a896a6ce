"""Draw the loss around finished cases, and keep the values that are drawn as .npz files.

`draw` draws slices of the loss, `draw_spectra` the spectra of the Hessian.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from flatbench.errors import UsageError
from flatbench.landscape import plots
from flatbench.landscape.directions import (
    Directions,
    Kind,
    hessian_directions,
    line_direction,
    random_directions,
)
from flatbench.landscape.grid import Landscape, loss_landscape
from flatbench.landscape.solutions import Solution, solution
from flatbench.landscape.spectrum import hessian_spectrum
from flatbench.protocols.cases import Case
from flatbench.records.store import Store
from flatbench.report import style

MOST_POINTS = 10**6
MOST_SPAN = 1e6
MOST_CASES = 3  # side by side on a page
MOST_SPECTRA = len(style.LINES)  # overlaid, each with a line style of its own


@dataclass(frozen=True)
class View:
    """A slice of the loss.

    ``span`` is the largest step along an axis. Along random directions its unit is the length of
    the weights themselves, along eigenvectors it is a distance. A line between two solutions goes
    from −span to 1 + span, and its unit is their distance.
    """

    kind: Kind = "random"
    dimensions: Literal[1, 2] = 2
    points: int = 21  # along an axis
    span: float = 1.0
    seed: int = 0

    def axis(self) -> NDArray[np.float64]:
        """Return the steps along an axis, (points,)."""
        last = 1 + self.span if self.kind == "line" else self.span
        return np.linspace(-self.span, last, self.points)


def draw(
    cases: Sequence[Case],
    view: View,
    store: Store,
    output: Path,
    *,
    where: torch.device,
    data_dir: Path | None = None,
) -> list[Path]:
    """Evaluate and draw the landscapes of finished cases; return the files written.

    The values of each case, or of a line, are kept in a .npz file, from which an interrupted run
    goes on. The pictures show all cases together and are PNG and SVG.

    Raises:
        UsageError: a case has no weights, the view does not fit the cases, the Hessian is not
            finite, or a .npz that is there already is of other weights, examples or another view.
    """
    _check(cases, view)
    solutions = [solution(case, store, where, data_dir) for case in cases]
    suffix = f"{view.kind}-{view.dimensions}d"
    together = _together(cases, store)
    # A line has one landscape, from the first solution to the second.
    if view.kind == "line":
        wanted = {together: solutions[0]}
    else:
        wanted = {store.record(s.case).stem: s for s in solutions}
    files: list[Path] = []
    landscapes: dict[str, Landscape] = {}
    for name, centre in wanted.items():
        files.append(output / f"{name}-{suffix}.npz")
        with _evaluation(centre.case.id, "points") as on_point:
            landscapes[_title(centre.case)] = loss_landscape(
                centre.surface,
                _directions(centre, solutions[-1], view),
                view.axis(),
                view.axis() if view.dimensions == 2 else None,
                path=files[-1],
                on_point=on_point,
            )
    for kind, figure in _figures(landscapes, cases, view).items():
        files += style.write_all(figure, output, f"{together}-{suffix}-{kind}")
    return files


def draw_spectra(
    cases: Sequence[Case],
    seed: int,
    store: Store,
    output: Path,
    *,
    where: torch.device,
    data_dir: Path | None = None,
) -> list[Path]:
    """Estimate and draw the spectra of finished cases' Hessians; return the files written.

    The probes of each case are kept in a .npz file, from which an interrupted run goes on. The
    picture shows all cases together and is PNG and SVG.

    Raises:
        UsageError: a case has no weights, there are too many cases, a Hessian is not finite, or a
            .npz that is there already is of other weights, examples or another seed.
    """
    _check_distinct(cases)
    if not 1 <= len(cases) <= MOST_SPECTRA:
        raise UsageError(
            f"--directions spectrum: cases must be 1 to {MOST_SPECTRA}, got {len(cases)}"
        )
    _check_seed(seed)
    files: list[Path] = []
    spectra = {}
    for centre in [solution(case, store, where, data_dir) for case in cases]:
        case = centre.case
        # The record's measures were taken by this rule, and λ_max is one of them.
        surface = replace(centre.surface, batchnorm=case.protocol.sharpness.batchnorm)
        files.append(output / f"{store.record(case).stem}-spectrum.npz")
        with _evaluation(case.id, "probes") as on_probe:
            spectra[_title(case)] = hessian_spectrum(
                surface, seed=seed, path=files[-1], on_probe=on_probe
            )
    stem = f"{_together(cases, store)}-spectrum"
    figure = plots.spectrum(spectra, title=_heading(cases), looks=_looks(cases))
    return files + style.write_all(figure, output, stem)


def _together(cases: Sequence[Case], store: Store) -> str:
    """Return the name of a figure that shows all these cases."""
    return "--".join(store.record(case).stem for case in cases)


def _check_distinct(cases: Sequence[Case]) -> None:
    if len({case.id for case in cases}) < len(cases):
        raise UsageError("landscape: a case is given more than once")


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise UsageError(f"--seed must be a whole number of at least 0, got {seed}")


def _check(cases: Sequence[Case], view: View) -> None:
    _check_distinct(cases)
    if view.kind == "line":
        if len(cases) != 2 or len({(c.protocol.name, c.architecture) for c in cases}) != 1:
            raise UsageError(
                "--directions line: cases must be two of one protocol and architecture, "
                f"got {', '.join(case.id for case in cases)}"
            )
        if view.dimensions != 1:
            raise UsageError(
                f"--dimensions must be 1 with --directions line, got {view.dimensions}"
            )
    elif not 1 <= len(cases) <= MOST_CASES:
        raise UsageError(f"landscape: cases must be 1 to {MOST_CASES}, got {len(cases)}")
    if view.points < 2:
        raise UsageError(f"--points must be a whole number of at least 2, got {view.points}")
    if view.points**view.dimensions > MOST_POINTS:
        raise UsageError(
            f"--points must be at most {MOST_POINTS:,} in all, got {view.points:,}"
            f"{' along each axis' if view.dimensions > 1 else ''}"
        )
    if not 0 < view.span <= MOST_SPAN:
        raise UsageError(
            f"--span must be a number above 0, at most {MOST_SPAN:,.0f}, got {view.span}"
        )
    _check_seed(view.seed)


def _title(case: Case) -> str:
    return f"{case.architecture}, {case.optimizer}, seed {case.seed}"


def _heading(cases: Sequence[Case]) -> str:
    """Return what a figure is of: the data sets' names, and whose loss it is."""
    names = dict.fromkeys(case.protocol.data.name for case in cases)
    return f"{', '.join(names)}: loss of training examples"


def _looks(cases: Sequence[Case]) -> dict[str, style.Look] | None:
    """Return each row's own look; None where a row is there more than once."""
    rows = [case.optimizer for case in cases]
    if len(set(rows)) < len(rows):
        return None
    found = style.looks(rows)
    return {_title(case): found[case.optimizer] for case in cases}


def _directions(centre: Solution, end: Solution, view: View) -> Directions:
    if view.kind == "line":
        return line_direction(centre.surface.model, end.surface.model.state_dict())
    if view.kind == "random":
        return random_directions(centre.surface.model, count=view.dimensions, seed=view.seed)
    return hessian_directions(centre.surface, count=view.dimensions, seed=view.seed)


def _figures(
    landscapes: dict[str, Landscape], cases: Sequence[Case], view: View
) -> dict[str, Figure]:
    title = _heading(cases)
    if view.kind == "line":
        one, other = (f"{case.optimizer}, seed {case.seed}" for case in cases)
        title = f"{cases[0].architecture}, {title}"
        return {"lines": plots.lines(landscapes, ends=(one, other), title=title)}
    if view.dimensions == 1:
        return {"lines": plots.lines(landscapes, title=title, looks=_looks(cases))}
    return {
        "contour": plots.contour(landscapes, title=title),
        "surface": plots.surface(landscapes, title=title),
    }


@contextlib.contextmanager
def _evaluation(name: str, unit: str) -> Iterator[Callable[[int, int], None] | None]:
    """Show progress on a terminal's last line, and name the case in an arithmetic error."""
    terminal = sys.stderr.isatty()

    def show(done: int, total: int) -> None:
        print(f"\r{name}: {done}/{total} {unit}\x1b[K", end="", file=sys.stderr, flush=True)

    try:
        yield show if terminal else None
    except ArithmeticError as error:
        raise UsageError(f"{name}: {error}") from None
    finally:
        if terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

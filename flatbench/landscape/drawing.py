"""From finished cases to pictures: slices of their loss, kept as .npz and drawn side by side."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
from flatbench.protocols.cases import Case
from flatbench.records.store import Store

MOST_CASES = 3  # side by side on a page


@dataclass(frozen=True)
class View:
    """Which slice is wanted.

    ``span`` is the largest step along an axis: of random directions in lengths of the weights
    themselves, of eigenvectors a distance. A line between two solutions goes from −span to
    1 + span, in lengths of their distance.
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

    The values go into one .npz a case (one for a line), from which a run that was interrupted goes
    on; the pictures of all the cases together are PNG and SVG.

    Raises:
        UsageError: a case has no weights, the view does not fit the cases, or a .npz that is there
            already is of other weights, examples or another view.
    """
    _check(cases, view)
    solutions = [solution(case, store, where, data_dir) for case in cases]
    suffix = f"{view.kind}-{view.dimensions}d"
    together = "--".join(store.record(case).stem for case in cases)
    # a line has one landscape, from the first solution to the second
    if view.kind == "line":
        wanted = {together: solutions[0]}
    else:
        wanted = {store.record(s.case).stem: s for s in solutions}
    files: list[Path] = []
    landscapes: dict[str, Landscape] = {}
    for name, centre in wanted.items():
        files.append(output / f"{name}-{suffix}.npz")
        with _progress(centre.case.id) as on_point:
            landscapes[_title(centre.case)] = loss_landscape(
                centre.surface,
                _directions(centre, solutions[-1], view),
                view.axis(),
                view.axis() if view.dimensions == 2 else None,
                path=files[-1],
                on_point=on_point,
            )
    for kind, figure in _figures(landscapes, cases, view).items():
        for form in ("png", "svg"):
            files.append(output / f"{together}-{suffix}-{kind}.{form}")
            plots.write(figure, files[-1])
    return files


def _check(cases: Sequence[Case], view: View) -> None:
    if len({case.id for case in cases}) < len(cases):
        raise UsageError("landscape: a case is given more than once")
    if view.kind == "line":
        if len(cases) != 2 or len({(c.protocol.name, c.architecture) for c in cases}) != 1:
            raise UsageError(
                "--directions = 'line': allowed are two cases of one protocol and architecture"
            )
        if view.dimensions != 1:
            raise UsageError("--dimensions = 2: allowed is 1 with --directions line")
    elif not 1 <= len(cases) <= MOST_CASES:
        raise UsageError(f"landscape: {len(cases)} cases; allowed are 1 to {MOST_CASES}")
    if view.points < 2:
        raise UsageError(f"--points = {view.points}: allowed is a whole number of at least 2")
    if not 0 < view.span < float("inf"):
        raise UsageError(f"--span = {view.span}: allowed is a finite number above 0")
    if view.seed < 0:
        raise UsageError(f"--seed = {view.seed}: allowed is a whole number of at least 0")


def _title(case: Case) -> str:
    return f"{case.architecture} {case.optimizer} seed {case.seed}"


def _directions(centre: Solution, end: Solution, view: View) -> Directions:
    if view.kind == "line":
        return line_direction(centre.surface.model, end.surface.model.state_dict())
    if view.kind == "random":
        return random_directions(centre.surface.model, count=view.dimensions, seed=view.seed)
    return hessian_directions(centre.surface, count=view.dimensions, seed=view.seed)


def _figures(
    landscapes: dict[str, Landscape], cases: Sequence[Case], view: View
) -> dict[str, Figure]:
    if view.kind == "line":
        return {"lines": plots.lines(landscapes, ends=(cases[0].optimizer, cases[1].optimizer))}
    if view.dimensions == 1:
        return {"lines": plots.lines(landscapes)}
    return {"contour": plots.contour(landscapes), "surface": plots.surface(landscapes)}


@contextlib.contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None] | None]:
    """Show the points done on a terminal's last line."""
    if not sys.stderr.isatty():
        yield None
        return
    try:
        yield lambda done, total: print(
            f"\r{name}: {done}/{total} points\x1b[K", end="", file=sys.stderr, flush=True
        )
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)

"""The loss on a grid of points along one or two directions, and the file that keeps it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from flatbench.errors import UsageError
from flatbench.landscape import archive
from flatbench.landscape.directions import Directions, Kind
from flatbench.sharpness import LossSurface

FORMAT: Final = "flatbench landscape 1"

Statistics = Literal["eval", "train", "recompute"]


@dataclass(frozen=True, eq=False)
class Landscape:
    """The loss at w + α·v₁, or at w + α·v₁ + β·v₂.

    Attributes:
        losses: (A,) or (A, B) float64: row i is at ``alphas[i]``, column j at ``betas[j]``. It is
            nan where the point has not been evaluated, and where the loss itself is nan.
        done: of the same shape; whether the point has been evaluated.
        alphas: (A,), the steps along the first direction.
        betas: (B,), the steps along the second; empty where there is one direction.
        labels: what each axis shows.
        kind: how the directions were made.
        seed: the directions' seed; None for a line.
        batchnorm: where BatchNorm's statistics came from, see `loss_landscape`.
        weights: a digest of the model's parameters and buffers.
        examples: a digest of inputs and targets.
        source: a digest of what else made the directions.
    """

    losses: NDArray[np.float64]
    done: NDArray[np.bool_]
    alphas: NDArray[np.float64]
    betas: NDArray[np.float64]
    labels: tuple[str, ...]
    kind: Kind
    seed: int | None
    batchnorm: str
    weights: str
    examples: str
    source: str

    @property
    def complete(self) -> bool:
        """Whether every point has been evaluated."""
        return bool(self.done.all())


def loss_landscape(
    surface: LossSurface,
    directions: Directions,
    alphas: ArrayLike,
    betas: ArrayLike | None = None,
    *,
    batchnorm: Statistics | None = None,
    path: Path | None = None,
    save_every: float = 30.0,
    on_point: Callable[[int, int], None] | None = None,
) -> Landscape:
    """Evaluate the loss on a grid around the surface's ``center`` (Li et al. 2018).

    Points are evaluated one after another. `torch.func.vmap` over points was measured to be slower
    for a ResNet18 on a CPU, where it turns convolutions into grouped ones.

    BatchNorm's statistics are not parameters. They need a rule away from w:

    - "eval" takes the model's running statistics at every point, as the reference implementation
      does. On a line it mixes those of the two ends in the proportion of α; beyond an end it takes
      the end's.
    - "train" takes each batch's own.
    - "recompute" makes them afresh at every point over these examples, see
      `LossSurface.recomputed_buffers`. It is usual between two solutions (Izmailov et al. 2018),
      since mixed statistics fit the activations of neither end.

    Cost: 1/3 gradient evaluation a point; 2/3 with "recompute" where the model has a BatchNorm.

    Args:
        surface: the loss. Its ``batch_size`` changes the result except with "eval". Its model must
            be as it was when the surface was made, and is left so.
        directions: directions of the surface's model.
        alphas: (A,) steps along the first direction, ascending.
        betas: (B,) steps along the second; None: one direction only.
        batchnorm: a rule from above; None: "recompute" on a line, else the surface's own rule.
        path: a .npz file to keep the values in. Where it exists, only the points it lacks are
            evaluated. It is written every ``save_every`` seconds, at the end and on an exception.
        save_every: seconds.
        on_point: called after each point with the number of points done and of all.

    Raises:
        ValueError: an argument is out of range.
        UsageError: the file is not a landscape, or is one of another grid, model, examples, seed,
            kind or BatchNorm rule; or it cannot be written.
    """
    rule = batchnorm or ("recompute" if directions.kind == "line" else surface.batchnorm)
    if rule not in get_args(Statistics):
        rules = ", ".join(map(repr, get_args(Statistics)))
        raise ValueError(f"batchnorm must be one of {rules}, got {batchnorm!r}")
    first, second = _axis("alphas", alphas), np.empty(0)
    shape: tuple[int, ...] = first.shape
    if betas is not None:
        second = _axis("betas", betas)
        shape += second.shape
    if len(directions.vectors) < len(shape):
        raise ValueError(
            f"directions must be at least {len(shape)} for this grid, got {len(directions.vectors)}"
        )
    landscape = Landscape(
        losses=np.full(shape, np.nan),
        done=np.zeros(shape, dtype=bool),
        alphas=first,
        betas=second,
        labels=directions.labels[: len(shape)],
        kind=directions.kind,
        seed=directions.seed,
        batchnorm=rule if rule == "eval" else f"{rule}, batches of {surface.batch_size}",
        source=directions.source,
        **archive.origin(surface),
    )
    if path is not None and path.exists():
        landscape = _resumed(path, landscape)

    surface = replace(surface, batchnorm="train" if rule == "train" else "eval")
    if directions.vectors.shape[1] != surface.dimension:
        raise ValueError(
            f"directions must have the model's {surface.dimension} parameters, "
            f"got {directions.vectors.shape[1]}"
        )
    vectors = directions.vectors[: len(shape)].to(surface.center)
    saved, written = int(landscape.done.sum()), time.monotonic()
    try:
        for index in zip(*np.nonzero(~landscape.done), strict=True):
            steps = [axis[i] for axis, i in zip((first, second), index, strict=False)]
            w = surface.center + surface.center.new_tensor(steps) @ vectors
            buffers = _buffers(surface, directions, rule, w, steps[0])
            landscape.losses[index] = surface.value(w, buffers)
            landscape.done[index] = True
            if path is not None and time.monotonic() - written >= save_every:
                save(landscape, path)
                saved, written = int(landscape.done.sum()), time.monotonic()
            if on_point is not None:
                on_point(int(landscape.done.sum()), landscape.done.size)
    finally:
        if path is not None and int(landscape.done.sum()) > saved:
            save(landscape, path)
    return landscape


def _buffers(
    surface: LossSurface, directions: Directions, rule: Statistics, w: Tensor, alpha: float
) -> dict[str, Tensor] | None:
    """Return the buffers to evaluate with; None stands for the model's own."""
    if rule == "recompute":
        return surface.recomputed_buffers(w)
    if rule == "train" or directions.end_buffers is None:
        return None
    share = float(np.clip(alpha, 0.0, 1.0))  # beyond the ends a variance could turn negative
    return surface.buffers | {
        name: start.lerp(directions.end_buffers[name].to(start), share)
        for name, start in surface.buffers.items()
        if start.is_floating_point() and name in directions.end_buffers
    }


def _axis(name: str, points: ArrayLike) -> NDArray[np.float64]:
    axis = np.array(points, dtype=np.float64)
    if (
        axis.ndim != 1
        or axis.size == 0
        or not np.isfinite(axis).all()
        or (np.diff(axis) <= 0).any()
    ):
        got = np.array2string(axis, threshold=8, separator=", ")
        raise ValueError(f"{name} must be finite numbers in ascending order, got {got}")
    return axis


def _resumed(path: Path, wanted: Landscape) -> Landscape:
    """Return the file's landscape, which must be of the grid, model and data that is wanted."""
    found = load(path)
    names = ("kind", "seed", "alphas", "betas", "batchnorm", "weights", "examples", "source")
    archive.require_same(path, found, wanted, names)
    return found


def save(landscape: Landscape, path: Path) -> None:
    """Write a landscape to a .npz file in which each attribute is an array of its name.

    ``seed`` is empty where there is none.

    Raises:
        UsageError: the file cannot be written.
    """
    arrays: dict[str, Any] = {
        field.name: np.asarray(getattr(landscape, field.name)) for field in fields(landscape)
    }
    arrays["seed"] = np.array([] if landscape.seed is None else [landscape.seed], dtype=np.int64)
    archive.write(path, FORMAT, arrays)


def load(path: Path) -> Landscape:
    """Read the file that `save` wrote.

    Raises:
        UsageError: the file cannot be read or is not a landscape.
    """
    arrays = archive.read(path, FORMAT, [field.name for field in fields(Landscape)])
    alphas, betas, losses, done = (arrays[n] for n in ("alphas", "betas", "losses", "done"))
    shape = alphas.shape + (betas.shape if betas.size else ())
    if losses.shape != shape or done.shape != shape or done.dtype != bool:
        raise UsageError(
            f"{path}: losses and done must have the shape {shape} and done must be bool, "
            f"got {losses.shape}, {done.shape} and {done.dtype}"
        )
    seed = arrays["seed"]
    return Landscape(
        losses=losses,
        done=done,
        alphas=alphas,
        betas=betas,
        labels=tuple(map(str, arrays["labels"])),
        kind=str(arrays["kind"]),  # type: ignore[arg-type]
        seed=int(seed[0]) if seed.size else None,
        batchnorm=str(arrays["batchnorm"]),
        weights=str(arrays["weights"]),
        examples=str(arrays["examples"]),
        source=str(arrays["source"]),
    )

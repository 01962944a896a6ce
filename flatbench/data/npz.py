"""A data set in one .npz file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatbench import npz
from flatbench.data.arrays import Given, examples
from flatbench.data.dataset import Examples
from flatbench.errors import UsageError

# The names of the training and the test arrays, as most such files have them; the second as
# Keras' mnist.npz. A file of the third has no test part.
LAYOUTS = (
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("x_train", "y_train", "x_test", "y_test"),
    ("images", "labels"),
)


def read(path: Path) -> tuple[Examples, Examples | None]:
    """Return the training part, and the test part of a file that has one.

    Raises:
        UsageError: the file is not there or damaged, or its arrays are not what they must be.
    """
    if not path.is_file():
        raise UsageError(f"data.source.npz: there is no file {path}")
    arrays = npz.read(path, lambda found: _layout(path, found))
    parts = [
        Given(arrays[inputs], _flat(arrays[targets]), f"{path}: {inputs}", f"{path}: {targets}")
        for inputs, targets in zip(list(arrays)[::2], list(arrays)[1::2], strict=True)
    ]
    test = parts[1] if len(parts) > 1 else None
    return examples(parts[0], test, class_labels=False)


def _flat(targets: NDArray[Any]) -> NDArray[Any]:
    """Return class labels [N, 1] as [N]: Keras keeps CIFAR's so."""
    is_column = targets.ndim == 2 and targets.shape[1] == 1
    return targets[:, 0] if is_column and np.issubdtype(targets.dtype, np.integer) else targets


def _layout(path: Path, found: Sequence[str]) -> tuple[str, ...]:
    for names in LAYOUTS:
        if set(names) <= set(found):
            return names
    layouts = "; or ".join(", ".join(names) for names in LAYOUTS)
    raise UsageError(f"{path}: must hold {layouts}; got {', '.join(found) or 'no array'}")

"""Arrays of .npz files, which anybody may have made or damaged; a data set in one."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatbench.components import in_one_line
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

Choose = Callable[[Sequence[str]], Iterable[str]]


def arrays(path: Path, choose: Choose = tuple) -> dict[str, NDArray[Any]]:
    """Return arrays of a file by their names.

    Python objects are code, and are not read.

    Args:
        path: the file.
        choose: takes the names that the file has, and returns those of the arrays to read.

    Raises:
        UsageError: the file is not there or damaged, or one of the arrays cannot be read.
    """
    if not path.is_file():
        raise UsageError(f"{path}: cannot be read: No such file")
    if not zipfile.is_zipfile(path):
        raise UsageError(f"{path}: is not an .npz file, or a truncated one")
    name = ""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {}
            for name in choose(file.files):
                found[name] = file[name]
    except UsageError:
        raise
    # a damaged archive raises whatever its reader, zlib or a header's parser stumbles over
    except Exception as error:
        place = f"{path}: {name}" if name else f"{path}"
        raise UsageError(f"{place}: cannot be read: {in_one_line(error)}") from error
    return found


def read(path: Path) -> tuple[Examples, Examples | None]:
    """Return the training part, and the test part of a file that has one.

    Raises:
        UsageError: the file is not there or damaged, or its arrays are not what they must be.
    """
    if not path.is_file():
        raise UsageError(f"data.source.npz: there is no file {path}")
    found = arrays(path, lambda names: _layout(path, names))
    parts = [
        Given(found[inputs], _flat(found[targets]), f"{path}: {inputs}", f"{path}: {targets}")
        for inputs, targets in zip(list(found)[::2], list(found)[1::2], strict=True)
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

"""Reading .npz files, which anybody may have made or damaged."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatbench.components import in_one_line
from flatbench.errors import UsageError

Choose = Callable[[Sequence[str]], Iterable[str]]


def read(path: Path, choose: Choose = tuple) -> dict[str, NDArray[Any]]:
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
            arrays = {}
            for name in choose(file.files):
                arrays[name] = file[name]
    except UsageError:
        raise
    # a damaged archive raises whatever its reader, zlib or a header's parser stumbles over
    except Exception as error:
        place = f"{path}: {name}" if name else f"{path}"
        raise UsageError(f"{place}: cannot be read: {in_one_line(error)}") from error
    return arrays

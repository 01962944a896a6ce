"""Pictures as PIL opens them, stacked into one array."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flatbench.errors import UsageError

GREY = ("1", "L", "LA")
COLOUR = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


def stacked(pictures: Iterable[tuple[str, object]]) -> NDArray[np.uint8]:
    """Return pictures as uint8 [N, H, W, C], each given with the name that an error calls it.

    C is 1 if all are grey, and 3 if one has colours. An alpha channel is left out.

    Raises:
        UsageError: one is no picture of 8 bits, or has another size than the first.
    """
    arrays: list[NDArray[np.uint8]] = []
    first = ""
    for name, picture in pictures:
        array = _pixels(picture, name)
        first = first or name
        if arrays and array.shape[:2] != arrays[0].shape[:2]:
            raise UsageError(
                f"{name}: must be {_size(arrays[0])} pixels, as {first} is, got {_size(array)}"
            )
        arrays.append(array)
    if not arrays:
        return np.empty((0, 1, 1, 1), np.uint8)
    colours = max((array.shape[2] for array in arrays), default=1)
    return np.stack([np.broadcast_to(a, (*a.shape[:2], colours)) for a in arrays])


def _pixels(picture: object, name: str) -> NDArray[np.uint8]:
    if not isinstance(picture, Image.Image):
        raise UsageError(f"{name}: must be a PIL image, got {type(picture).__name__}")
    if picture.mode not in (*GREY, *COLOUR):
        raise UsageError(f"{name}: must be grey or coloured with 8 bits, got mode {picture.mode}")
    wanted = "L" if picture.mode in GREY else "RGB"
    array: NDArray[Any] = np.asarray(picture.convert(wanted))
    return array[..., None] if array.ndim == 2 else array


def _size(array: NDArray[Any]) -> str:
    height, width = array.shape[:2]
    return f"{width}×{height}"

"""Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747), from files in MNIST's format.

MNIST's own files have the same names and, of most of them, the same shapes. So what is read is
checked to be Fashion-MNIST.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flatbench.data.dataset import Examples
from flatbench.errors import UsageError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package
FIRST_FILE = "train-images-idx3-ubyte.gz"
CLASSES = 10  # each with as many images as the others

# Shape and SHA-256 of each file as published, unpacked: compressed anew, it is the same data.
PUBLISHED: dict[str, tuple[tuple[int, ...], str]] = {
    FIRST_FILE: (
        (60_000, 28, 28),
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    "train-labels-idx1-ubyte.gz": (
        (60_000,),
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    "t10k-images-idx3-ubyte.gz": (
        (10_000, 28, 28),
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    "t10k-labels-idx1-ubyte.gz": (
        (10_000,),
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}


def find(root: Path) -> Path | None:
    """Return the folder in which Fashion-MNIST's files would be read, or None."""
    folders = (root, root / "fashion-mnist", root / "FashionMNIST" / "raw", DEBIAN)
    return next((folder for folder in folders if (folder / FIRST_FILE).exists()), None)


def read(root: Path) -> tuple[Examples, Examples]:
    """Return 60,000 and 10,000 images of 28×28.

    Raises:
        UsageError: the files are not there, are damaged, or are not Fashion-MNIST's.
    """
    folder = find(root)
    if folder is None:
        raise UsageError(
            f"data set fashion-mnist: no {FIRST_FILE} in {root} or {DEBIAN}; install "
            "Debian's package dataset-fashion-mnist, or pass the files' folder as --data-dir, or "
            f"download it: flatbench download fashion-mnist --data-dir {root}"
        )
    return _part(folder, "train"), _part(folder, "t10k")


def _part(folder: Path, part: str) -> Examples:
    images = _published(folder, f"{part}-images-idx3-ubyte.gz")
    labels = _published(folder, f"{part}-labels-idx1-ubyte.gz")
    return images[..., None], labels.astype(np.int64)


def _published(folder: Path, name: str) -> NDArray[np.uint8]:
    """Read one file and check that it is Fashion-MNIST's.

    The checksum alone would do; shape and counts say what is wrong in words.
    """
    shape, checksum = PUBLISHED[name]
    path = folder / name
    content = _unpacked(path)
    array = _idx(path, content, len(shape))
    if array.shape != shape:
        raise UsageError(
            f"{path}: is not Fashion-MNIST's: it must hold {_sizes(shape)}, got "
            f"{_sizes(array.shape)}"
        )
    if len(shape) == 1:
        _check_counts(path, array)
    found = hashlib.sha256(content).hexdigest()
    if found != checksum:
        raise UsageError(
            f"{path}: is not Fashion-MNIST's, or an altered copy: its content's SHA-256 must be "
            f"{checksum[:12]}…, got {found[:12]}…"
        )
    return array


def _sizes(shape: tuple[int, ...]) -> str:
    if len(shape) == 1:
        return f"{shape[0]} labels"
    return f"{shape[0]} images of {'x'.join(map(str, shape[1:]))}"


def _check_counts(path: Path, labels: NDArray[np.uint8]) -> None:
    each = len(labels) // CLASSES
    counts = np.bincount(labels, minlength=CLASSES)
    if len(counts) > CLASSES:
        raise UsageError(
            f"{path}: is not Fashion-MNIST's: labels must be 0 to {CLASSES - 1}, got "
            f"{len(counts) - 1}"
        )
    for label, count in enumerate(counts):
        if count != each:
            raise UsageError(
                f"{path}: is not Fashion-MNIST's: it must hold label {label} {each} times, got it "
                f"{count} times"
            )


def _unpacked(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None


def _idx(path: Path, content: bytes, dimensions: int) -> NDArray[np.uint8]:
    """Return the array in a file of unsigned bytes in MNIST's idx format."""
    header = 4 + 4 * dimensions
    shape: tuple[int, ...] = ()
    if content[:4] == bytes([0, 0, 8, dimensions]) and len(content) > header:
        shape = struct.unpack(f">{dimensions}I", content[4:header])
    if not shape or len(content) - header != math.prod(shape):
        raise UsageError(
            f"{path}: is not a whole idx file of unsigned bytes in {dimensions} dimension(s)"
        )
    # a copy: torch wants memory that it may write to
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape).copy()

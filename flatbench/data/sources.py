"""Reading data sets, splitting them, and holding them as whole tensors on the device.

Images stay uint8 in [N, H, W, C] and become normalised float32 a batch at a time, with the mean
and standard deviation of the training part.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from flatbench.errors import UsageError
from flatbench.protocols import protocol

# The splits are the same for every case and every run, so their seed is no one's to choose.
SPLIT_SEED = 0

DOWNLOADS = {
    "fashion-mnist": torchvision.datasets.FashionMNIST,
    "cifar10": torchvision.datasets.CIFAR10,
    "cifar100": torchvision.datasets.CIFAR100,
}
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package
_FIRST_FILE = "train-images-idx3-ubyte.gz"  # of Fashion-MNIST's four

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """Images [N, H, W, C], uint8, and labels [N], int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DataSet:
    """The parts of a data set and the statistics its images are normalised with."""

    train: Part
    validation: Part
    test: Part
    classes: int
    mean: Tensor  # [C], of the training part's pixels, in uint8's units
    std: Tensor  # [C]
    digest: str  # 12 hex digits over images and labels, as they were read

    @property
    def channels(self) -> int:
        """Number of colours."""
        return self.train.images.shape[3]

    def normalise(self, images: Tensor) -> Tensor:
        """[N, H, W, C] uint8 -> [N, C, H, W] float32 in channels_last memory."""
        return ((images.float() - self.mean) / self.std).permute(0, 3, 1, 2)


def load(
    settings: protocol.Data, device: torch.device | str = "cpu", data_dir: Path | None = None
) -> DataSet:
    """Read a data set, split it and put it on a device.

    The validation part is a fixed, stratified fraction of the training images. ``data_dir`` is
    where torchvision keeps its data sets (default: ``FLATBENCH_DATA``, else ``data``).

    Raises:
        UsageError: the data set is not there; the message says what to do.
    """
    root = data_dir or Path(os.environ.get("FLATBENCH_DATA", "data"))
    if settings.name == "digits":
        train, test = _digits()
    elif settings.name == "fashion-mnist":
        train, test = _fashion_mnist(root)
    else:
        train, test = _cifar(settings.name, root)
    classes = int(train[1].max()) + 1
    digest = _digest(*train, *test)
    held_out = train[0][:0], train[1][:0]
    if settings.validation > 0:
        wish = f"data.validation = {settings.validation}"
        train, held_out = _split(train, settings.validation, wish)
    if settings.train_examples is not None and settings.train_examples < len(train[1]):
        wish = f"data.train_examples = {settings.train_examples}"
        train, _ = _split(train, len(train[1]) - settings.train_examples, wish)
    pixels = train[0].reshape(-1, train[0].shape[3])

    def on_device(part: tuple[Images, Labels]) -> Part:
        return Part(torch.from_numpy(part[0]).to(device), torch.from_numpy(part[1]).to(device))

    return DataSet(
        train=on_device(train),
        validation=on_device(held_out),
        test=on_device(test),
        classes=classes,
        mean=torch.from_numpy(pixels.mean(axis=0)).float().to(device),
        std=torch.from_numpy(pixels.std(axis=0)).float().to(device),
        digest=digest,
    )


def _digest(*arrays: NDArray[Any]) -> str:
    content = hashlib.sha256()
    for array in arrays:
        content.update(f"{array.dtype} {array.shape}".encode())
        content.update(np.ascontiguousarray(array).data)
    return content.hexdigest()[:12]


def _split(
    part: tuple[Images, Labels], taking: float, wish: str
) -> tuple[tuple[Images, Labels], tuple[Images, Labels]]:
    """Return a part less a fixed, stratified fraction (or number) of it, and what was taken.

    Raises:
        UsageError: one of the two would be smaller than the number of classes.
    """
    try:
        rest, taken = train_test_split(
            np.arange(len(part[1])), test_size=taking, random_state=SPLIT_SEED, stratify=part[1]
        )
    except ValueError:
        raise UsageError(
            f"{wish} must split the {len(part[1])} training images into two parts of at least "
            f"{len(np.unique(part[1]))} images, one of each class"
        ) from None
    rest, taken = np.sort(rest), np.sort(taken)
    return (part[0][rest], part[1][rest]), (part[0][taken], part[1][taken])


def _digits() -> tuple[tuple[Images, Labels], tuple[Images, Labels]]:
    """scikit-learn's 1,797 digits (8×8, 17 grey levels); a fixed fifth of them is the test part."""
    bunch = load_digits()
    images = bunch.images[..., None].astype(np.uint8)
    return _split((images, bunch.target.astype(np.int64)), 0.2, "a fifth")


def download(name: str, root: Path) -> None:
    """Fetch a data set into ``root`` with torchvision, which shows progress and checks MD5.

    Raises:
        UsageError: the set cannot be fetched, or what came is not what torchvision expects.
    """
    try:
        for train in (True, False):
            DOWNLOADS[name](root, train=train, download=True)
    except (RuntimeError, OSError) as error:
        line = " ".join(str(error).split())
        raise UsageError(f"data set {name}: cannot be downloaded to {root}: {line}") from None


def folder_of(name: str, root: Path) -> Path | None:
    """Return the folder in which a downloaded data set's files would be read, or None.

    Nothing is read here: the files may be damaged.
    """
    if name != "fashion-mnist":
        folder: Path = root / DOWNLOADS[name].base_folder
        return folder if folder.is_dir() else None
    folders = (root, root / "fashion-mnist", root / "FashionMNIST" / "raw", _DEBIAN)
    return next((folder for folder in folders if (folder / _FIRST_FILE).exists()), None)


def _fashion_mnist(root: Path) -> tuple[tuple[Images, Labels], tuple[Images, Labels]]:
    """60,000 and 10,000 images of 28×28 (Xiao et al. 2017, arXiv:1708.07747)."""
    folder = folder_of("fashion-mnist", root)
    if folder is not None:
        return _idx_pair(folder, "train"), _idx_pair(folder, "t10k")
    raise UsageError(
        f"data set fashion-mnist: no {_FIRST_FILE} in {root} or {_DEBIAN}; install "
        "Debian's package dataset-fashion-mnist, or pass the files' folder as --data-dir, or "
        f"download it: flatbench download fashion-mnist --data-dir {root}"
    )


def _idx_pair(folder: Path, part: str) -> tuple[Images, Labels]:
    images = _idx(folder / f"{part}-images-idx3-ubyte.gz", dimensions=3)
    path = folder / f"{part}-labels-idx1-ubyte.gz"
    labels = _idx(path, dimensions=1)
    if len(labels) != len(images):
        raise UsageError(f"{path}: holds {len(labels)} labels for {len(images)} images")
    return images[..., None], labels.astype(np.int64)


def _idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read one file of unsigned bytes in MNIST's idx format."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None
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


def _cifar(name: str, root: Path) -> tuple[tuple[Images, Labels], tuple[Images, Labels]]:
    """50,000 and 10,000 images of 32×32×3 (Krizhevsky 2009), by torchvision's reader."""
    try:
        parts = [DOWNLOADS[name](root, train=train) for train in (True, False)]
    except RuntimeError:  # torchvision: not found, or its checksum is wrong
        raise UsageError(
            f"data set {name}: not found (or its checksum is wrong) in {root}; download it there "
            f"with: flatbench download {name} --data-dir {root}"
        ) from None
    train, test = ((part.data, np.array(part.targets, dtype=np.int64)) for part in parts)
    return train, test

"""Loading: what was read is split, and put on a device with its statistics and its digest."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flatbench.data import cifar, digits, fashion, own
from flatbench.data.dataset import DataSet, Examples, Part, are_class_labels
from flatbench.data.splits import TEST_FRACTION, split
from flatbench.errors import UsageError
from flatbench.protocols import protocol

BLOCK = 2**20  # rows whose deviations from the mean are held at once


def load_for(
    settings: protocol.Protocol,
    device: torch.device | str = "cpu",
    data_dir: Path | None = None,
) -> DataSet:
    """Load a protocol's data set, and check that it can be trained on as the protocol says.

    Raises:
        UsageError: as of `load`; or the protocol's loss or batch size does not fit the data.
    """
    dataset = load(settings.data, device, data_dir, settings.folder)
    training, name = settings.training, f"protocol {settings.name}"
    if dataset.classes is None and training.loss == protocol.LOSS:
        labels = dataset.train.labels
        shape = ", ".join(["N", *map(str, labels.shape[1:])])
        raise UsageError(
            f"{name}: training.loss must be one of your own: cross-entropy is of class labels, "
            f"and {settings.data.name} has targets [{shape}] of {_name(labels.dtype)}"
        )
    if dataset.classes is None and settings.sharpness.normalised:
        raise UsageError(
            f"{name}: sharpness.normalised must be left out where the targets are no class "
            f"labels: there are no logits, got {', '.join(settings.sharpness.normalised)}"
        )
    # of the sets that come with flatbench, a small part is what the protocol asks for by a number
    if settings.data.source is not None and len(dataset.train) < training.batch_size:
        raise UsageError(
            f"{name}: training.batch_size must be at most {len(dataset.train)}, the number of "
            f"training examples of {settings.data.name}, got {training.batch_size}"
        )
    return dataset


def load(
    settings: protocol.Data,
    device: torch.device | str = "cpu",
    data_dir: Path | None = None,
    folder: Path | None = None,
) -> DataSet:
    """Read a data set, split it and put it on a device.

    The test part of a data set that has none is a fixed fraction of its examples, and the
    validation part one of the training examples, both stratified where there are class labels.

    Args:
        settings: which data set, and what of it.
        device: where to.
        data_dir: where torchvision keeps its data sets (default: ``FLATBENCH_DATA``, else
            ``data``).
        folder: what a source's path is relative to: the protocol file's folder.

    Raises:
        UsageError: the data set is not there, and the message says what to do; or it is not
            what it must be.
    """
    root = data_dir or Path(os.environ.get("FLATBENCH_DATA", "data"))
    train, test = _with_test_part(settings, *_read(settings, root, folder))
    classes = int(train[1].max()) + 1 if are_class_labels(train[1]) else None
    _check_wishes(settings, train, classes)
    digest = _digest(*train, *test)
    held_out = train[0][:0], train[1][:0]
    if settings.validation > 0:
        wish = f"data.validation = {settings.validation}"
        train, held_out = split(train, settings.validation, wish)
    if settings.train_examples is not None and settings.train_examples < len(train[1]):
        wish = f"data.train_examples = {settings.train_examples}"
        train, _ = split(train, len(train[1]) - settings.train_examples, wish)
    mean, std = _statistics(train[0])

    def on_device(part: Examples) -> Part:
        return Part(_tensor(part[0]).to(device), _tensor(part[1]).to(device))

    return DataSet(
        train=on_device(train),
        validation=on_device(held_out),
        test=on_device(test),
        classes=classes,
        mean=mean.to(device),
        std=std.to(device),
        digest=digest,
    )


def _read(
    settings: protocol.Data, root: Path, folder: Path | None
) -> tuple[Examples, Examples | None]:
    if settings.source is not None:
        return own.read(settings.source, root, folder)
    if settings.name == "digits":
        return digits.read(), None
    if settings.name == "fashion-mnist":
        return fashion.read(root)
    return cifar.read(settings.name, root)


def _with_test_part(
    settings: protocol.Data, train: Examples, test: Examples | None
) -> tuple[Examples, Examples]:
    if test is None:
        fraction = TEST_FRACTION if settings.test is None else settings.test
        return split(train, fraction, f"data.test = {fraction}")
    if settings.test is not None:
        raise UsageError(
            f"data.test must be left out: {settings.name} has a test part of its own, got "
            f"{settings.test}"
        )
    return train, test


def _check_wishes(settings: protocol.Data, train: Examples, classes: int | None) -> None:
    """Check that what a protocol wants done can be done to these inputs and targets."""
    inputs, _ = train
    if settings.augmentation != "none" and inputs.ndim != 4:
        shape = ", ".join(["N", *map(str, inputs.shape[1:])])
        raise UsageError(
            f'data.augmentation must be "none" where the inputs are no images, got '
            f'"{settings.augmentation}" with inputs [{shape}]'
        )
    if settings.label_noise > 0 and classes is None:
        raise UsageError(
            "data.label_noise must be 0 where the targets are no class labels, got "
            f"{settings.label_noise}"
        )


def _digest(*arrays: NDArray[Any]) -> str:
    content = hashlib.sha256()
    for array in arrays:
        content.update(f"{array.dtype} {array.shape}".encode())
        content.update(np.ascontiguousarray(array).data)
    return content.hexdigest()[:12]


def _statistics(inputs: NDArray[Any]) -> tuple[Tensor, Tensor]:
    """Return the mean and std [C] of images' channels or a table's columns; of others 0 and 1."""
    if inputs.ndim not in (2, 4) or inputs.dtype == np.int64:
        return torch.tensor(0.0), torch.tensor(1.0)
    columns = inputs.reshape(-1, inputs.shape[-1])
    # In float64 whatever the inputs are: numpy would sum float32 in float32.
    mean = columns.mean(axis=0, dtype=np.float64)
    # By blocks: numpy's std holds all of the differences at once, 8 bytes for one of uint8.
    blocks = range(0, len(columns), BLOCK)
    squares = sum(((columns[i : i + BLOCK] - mean) ** 2).sum(axis=0) for i in blocks)
    std = np.sqrt(squares / len(columns))
    # A constant column has a std of 0, or what rounding leaves of it: dividing by it makes noise.
    std = np.where(std > 1e-6 * np.abs(mean), std, 1.0)
    return torch.from_numpy(mean).float(), torch.from_numpy(std).float()


def _tensor(array: NDArray[Any]) -> Tensor:
    """Return an array as a tensor; floats become float32, which is what is trained in."""
    if np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float32, copy=False)
    return torch.from_numpy(np.require(array, requirements=("C", "W")))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""What a source of one's own gave becomes examples, or one line that says what is wrong with it.

Inputs may be

- images: uint8 or floats [N, H, W, C], or uint8 [N, H, W] of grey ones;
- tables and other floats [N, ...];
- tokens: whole numbers [N, T].

Targets may be class labels, whole numbers [N] from 0 to k - 1; or whole numbers [N, ...] and
floats [N, ...] for a loss of one's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flatbench.data.dataset import Examples, are_class_labels
from flatbench.errors import UsageError


@dataclass(frozen=True)
class Given:
    """A part as a source gave it, with the names that errors call its two halves."""

    inputs: object  # an array, a tensor, or what numpy makes an array of
    targets: object
    inputs_are: str  # as "mine.npz: train_images"
    targets_are: str


def examples(
    train: Given, test: Given | None, *, class_labels: bool
) -> tuple[Examples, Examples | None]:
    """Return the training part and the test part, if there is one, checked and in one form.

    Args:
        train: the training part.
        test: the test part, or None.
        class_labels: whether the targets must be class labels.

    Raises:
        UsageError: the parts are not what examples must be, or do not fit each other.
    """
    part = _part(train, class_labels)
    if are_class_labels(part[1]):
        _check_classes(part[1], train.targets_are)
    if test is None:
        return part, None
    tested = _part(test, class_labels)
    _check_alike(part[0], tested[0], train.inputs_are, test.inputs_are)
    _check_alike(part[1], tested[1], train.targets_are, test.targets_are)
    if are_class_labels(part[1]):
        unknown = tested[1][~np.isin(tested[1], part[1])]
        if len(unknown):
            raise UsageError(
                f"{test.targets_are}: must be labels that {train.targets_are} has, 0 to "
                f"{part[1].max()}, got {unknown[0]}"
            )
    return part, tested


def _part(given: Given, class_labels: bool) -> Examples:
    inputs = _inputs(given.inputs, given.inputs_are)
    targets = _targets(given.targets, given.targets_are, class_labels)
    if len(inputs) != len(targets):
        raise UsageError(
            f"{given.targets_are}: must be as many as {given.inputs_are}, {len(inputs)}, got "
            f"{len(targets)}"
        )
    return inputs, targets


def _inputs(value: object, name: str) -> NDArray[Any]:
    array = _array(value, name)
    if array.ndim < 2:
        raise UsageError(f"{name}: must have a shape [N, ...], got {_shape(array)}")
    if array.size == 0:
        raise UsageError(f"{name}: holds nothing: its shape is {_shape(array)}")
    if array.dtype == np.uint8:
        array = array[..., None] if array.ndim == 3 else array
        if array.ndim != 4:
            raise UsageError(
                f"{name}: must be images [N, H, W] or [N, H, W, C] where it is uint8, got "
                f"{_shape(array)}; a table must be floats, and tokens int64"
            )
    elif np.issubdtype(array.dtype, np.integer):
        if array.ndim != 2:
            raise UsageError(
                f"{name}: must be tokens [N, T] where it is {array.dtype}, got {_shape(array)}; "
                "images must be uint8 or floats"
            )
        array = array.astype(np.int64)
    if array.ndim == 4 and array.shape[1] in (1, 3) and array.shape[2] == array.shape[3] > 4:
        raise UsageError(
            f"{name}: must be images [N, H, W, C], got {_shape(array)}, which looks like "
            "[N, C, H, W]"
        )
    return np.ascontiguousarray(array)


def _targets(value: object, name: str, class_labels: bool) -> NDArray[Any]:
    array = _array(value, name)
    if array.ndim < 1:
        raise UsageError(f"{name}: must have a shape [N] or [N, ...], got {_shape(array)}")
    if len(array) == 0:
        raise UsageError(f"{name}: holds nothing: its shape is {_shape(array)}")
    is_float = np.issubdtype(array.dtype, np.floating)
    if class_labels and (is_float or array.ndim != 1):
        raise UsageError(
            f"{name}: must be class labels, whole numbers [N], got {array.dtype} {_shape(array)}"
        )
    return np.ascontiguousarray(array if is_float else array.astype(np.int64))


def _array(value: object, name: str) -> NDArray[Any]:
    """Return an array of whole numbers, or of floats that are all finite."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    try:
        array: NDArray[Any] = np.asarray(value)
    except ValueError:  # lists of unequal lengths
        raise UsageError(f"{name}: must be an array or a tensor, got {_type(value)}") from None
    if array.dtype == bool:
        return array.astype(np.int64)
    if np.issubdtype(array.dtype, np.integer):
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    if not np.issubdtype(array.dtype, np.floating):
        got = f"an array of {array.dtype}" if isinstance(value, np.ndarray) else _type(value)
        raise UsageError(f"{name}: must be an array of whole numbers or floats, got {got}")
    # torch knows neither another byte order nor more than 64 bits
    native = array.dtype.newbyteorder("=") if array.itemsize <= 8 else np.dtype(np.float64)
    array = array.astype(native, copy=False)
    with np.errstate(over="ignore"):
        is_finite = np.isfinite(array.astype(np.float32, copy=False))  # what is trained on
    if not is_finite.all():
        place = tuple(int(i) for i in np.argwhere(~is_finite)[0])
        raise UsageError(f"{name}: must be finite in float32, got {array[place]} at {list(place)}")
    return array


def _check_classes(labels: NDArray[Any], name: str) -> None:
    found = np.unique(labels)
    if found[0] < 0:
        raise UsageError(f"{name}: must be labels from 0 to k − 1, got {found[0]}")
    if len(found) <= found[-1]:
        missing = next(i for i, label in enumerate(found) if label != i)
        raise UsageError(
            f"{name}: must be labels from 0 to k − 1 with an example of each, got {found[-1]} and "
            f"no {missing}"
        )
    if len(found) == 1:
        raise UsageError(f"{name}: must be of two classes at least, got label 0 alone")


def _check_alike(train: NDArray[Any], test: NDArray[Any], train_is: str, test_is: str) -> None:
    if (train.shape[1:], train.dtype) != (test.shape[1:], test.dtype):
        raise UsageError(
            f"{test_is}: must be like {train_is}, {train.dtype} {_shape(train)}, got {test.dtype} "
            f"{_shape(test)}"
        )


def _shape(array: NDArray[Any]) -> str:
    return str(list(array.shape))


def _type(value: object) -> str:
    return type(value).__name__

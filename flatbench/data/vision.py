"""A data set by a class of torchvision.datasets."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torchvision

from flatbench import components
from flatbench.components import Component, in_one_line
from flatbench.data.arrays import Given, examples
from flatbench.data.dataset import Examples
from flatbench.data.pictures import stacked
from flatbench.errors import UsageError

OURS = ("root", "train", "download")
TESTS = ("test", "val")  # what a class calls its test part; the first that it knows


def read(
    name: str, options: Mapping[str, Any], root: Path, where: str
) -> tuple[Examples, Examples | None]:
    """Return the training part of what lies in ``root``, and the test part of a class that has one.

    Raises:
        UsageError: there is no such class, it does not take the options, its files are not there,
            or what it gives are no images of one size with class labels.
    """
    parts = opened(name, options, root, where)
    try:
        items = [[part[i] for i in range(len(part))] for part in parts]
    except Exception as error:
        raise UsageError(f"{where}: {name} in {root}: {in_one_line(error)}") from error
    title = f"torchvision's {name}"
    names = [title] if len(parts) == 1 else [f"{title}, train", f"{title}, test"]
    images = stacked(
        (f"{of}[{i}]", picture)
        for of, part in zip(names, items, strict=True)
        for i, (picture, *_) in enumerate(part)
    )
    given, start = [], 0
    for of, part in zip(names, items, strict=True):
        labels = [target for _, target, *_ in part]
        pixels = images[start : start + len(part)]
        given.append(Given(pixels, labels, f"{of}: images", f"{of}: targets"))
        start += len(part)
    return examples(given[0], given[1] if len(given) > 1 else None, class_labels=True)


def find(name: str, where: str) -> Component:
    """Return a class of torchvision.datasets that keeps its files in a root folder.

    Raises:
        UsageError: there is none of that name.
    """
    found = getattr(torchvision.datasets, name, None)
    if not inspect.isclass(found) or "root" not in inspect.signature(found).parameters:
        raise UsageError(
            f"{where} must be a class of torchvision.datasets that takes root, as KMNIST, got "
            f"{name!r}"
        )
    return Component(f"torchvision's {name}", found, None)


def opened(
    name: str, options: Mapping[str, Any], root: Path, where: str, *, download: bool = False
) -> list[Any]:
    """Return torchvision's training and test part, or the whole of a class that has no parts.

    A class takes ``train``, true or false; or ``split``, where an option of that name says which
    is the training part. With ``download`` the files are fetched first.

    Raises:
        UsageError: as of `read`.
    """
    component = find(name, where)
    for option in OURS:
        if option in options:
            raise UsageError(f"{where}: options must not hold {option}, which flatbench sets")
    known = inspect.signature(component.target).parameters
    # EMNIST and QMNIST hand what they are given to MNIST
    is_mnist = issubclass(component.target, torchvision.datasets.MNIST)
    takes_train, takes_download = ("train" in known or is_mnist, "download" in known or is_mnist)
    if download and not takes_download:
        raise UsageError(f"{where}: torchvision does not download {name}")
    fetch = {"download": True} if download else {}

    def part(**which: Any) -> Any:
        values = components.arguments(
            component, {**options, **which, **fetch}, f"{where}: options", given={"root": root}
        )
        return component.target(**values)

    try:
        if takes_train:
            return [part(train=True), part(train=False)]
        if "split" not in known:
            return [part()]
        train = part(split=options.get("split", "train"))
        return [train, _test_part(part)]
    except UsageError:
        raise
    except (RuntimeError, OSError) as error:
        if download:
            raise
        how = "torchvision does not download it"
        if takes_download:
            how = f"download it there with: {command(name, options, root)}"
        raise UsageError(
            f"{where}: {name} is not found (or its checksum is wrong) in {root}: "
            f"{in_one_line(error)}; {how}"
        ) from None
    except Exception as error:
        raise UsageError(f"{where}: {name} in {root}: {in_one_line(error)}") from error


def _test_part(part: Any) -> Any:
    for name in TESTS[:-1]:
        try:
            return part(split=name)
        except ValueError:  # torchvision: no such split
            continue
    return part(split=TESTS[-1])


def command(name: str, options: Mapping[str, Any], root: Path) -> str:
    """Return the command that downloads a data set."""
    given = "".join(f" --option {key}={value}" for key, value in options.items())
    return f"flatbench download {name} --data-dir {root}{given}"

"""A data set as a folder of image files, laid out as torchvision's ImageFolder takes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from flatbench.components import in_one_line
from flatbench.data.arrays import Given, examples
from flatbench.data.dataset import Examples
from flatbench.data.pictures import stacked
from flatbench.errors import UsageError

TESTS = ("test", "val")  # the first that is there


def read(path: Path) -> tuple[Examples, Examples | None]:
    """Return the training part, and the test part of a folder that has one.

    Either ``train/CLASS/*.png`` and ``test/CLASS/*.png`` (or ``val/``), or ``CLASS/*.png`` alone.
    The classes are numbered in their names' order, and each one's images stand in theirs.

    Raises:
        UsageError: the folder is not there, is laid out otherwise, or an image cannot be read.
    """
    if not path.is_dir():
        raise UsageError(f"data.source.folder: there is no folder {path}")
    train, test = _parts(path)
    classes = _classes(train)
    if test is not None and _classes(test) != classes:
        (name, *_) = sorted(set(classes) ^ set(_classes(test)))
        lacks = test if name in classes else train
        raise UsageError(
            f"{lacks}: must have the class folders that {train if lacks is test else test} has: "
            f"there is no {name!r}"
        )
    folders = [train] if test is None else [train, test]
    files = [_files(part, classes) for part in folders]
    # stacked together: both parts have the size of the first image, and as many channels
    images = stacked(_opened(file) for part in files for file, _ in part)
    first = len(files[0])
    given = [
        Given(pixels, [label for _, label in part], f"{folder}: images", f"{folder}: classes")
        for folder, pixels, part in zip(folders, np.split(images, [first]), files, strict=False)
    ]
    return examples(given[0], given[1] if test else None, class_labels=True)


def _parts(path: Path) -> tuple[Path, Path | None]:
    train = path / "train"
    test = next((path / name for name in TESTS if (path / name).is_dir()), None)
    if train.is_dir() and test is not None:
        return train, test
    if train.is_dir() or test is not None:
        there = train if test is None else test
        missing = " or ".join(TESTS) if test is None else "train"
        raise UsageError(f"{path}: must hold {missing} beside {there.name}, or class folders alone")
    return path, None


def _classes(part: Path) -> list[str]:
    found = [p.name for p in part.iterdir() if p.is_dir() and not p.name.startswith(".")]
    if not found:
        raise UsageError(f"{part}: must hold a folder for each class, and holds none")
    return sorted(found)


def _files(part: Path, classes: list[str]) -> list[tuple[Path, int]]:
    """Return every image's path and class; what is no image by its name is left out."""
    found = []
    for label, name in enumerate(classes):
        files = sorted(
            file
            for file in (part / name).rglob("*")
            if file.suffix.lower() in IMG_EXTENSIONS
            and not file.name.startswith(".")
            and file.is_file()
        )
        if not files:
            raise UsageError(f"{part / name}: must hold images, and holds none")
        found += [(file, label) for file in files]
    return found


def _opened(file: Path) -> tuple[str, Image.Image]:
    """Return an image's name and what PIL makes of it, read to the end."""
    try:
        with Image.open(file) as image:
            image.load()
            return str(file), image
    except Exception as error:
        raise UsageError(f"{file}: cannot be read as an image: {in_one_line(error)}") from error

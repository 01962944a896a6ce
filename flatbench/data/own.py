"""Data sets of the user's own: a protocol's ``data.source``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flatbench import components
from flatbench.data import folder as folders
from flatbench.data import npz, vision
from flatbench.data.arrays import Given, examples
from flatbench.data.dataset import Examples
from flatbench.errors import UsageError
from flatbench.protocols.protocol import Source

WHERE = "data.source"


def read(source: Source, root: Path, folder: Path | None) -> tuple[Examples, Examples | None]:
    """Return the training part, and the test part of a source that has one.

    Args:
        source: where the data set comes from.
        root: the folder of data sets, which torchvision's classes and functions are given.
        folder: what paths and file references are relative to: the protocol file's folder.

    Raises:
        UsageError: nothing is there, or it is not what a data set must be.
    """
    path = (folder or Path()) / source.what
    if source.kind == "npz":
        return npz.read(path)
    if source.kind == "folder":
        return folders.read(path)
    options = components.resolved(source.options, folder, f"{WHERE}.options")
    if source.kind == "torchvision":
        return vision.read(source.what, options, root, f"{WHERE}.torchvision")
    return _called(source.what, options, root, folder)


def _called(
    reference: str, options: Mapping[str, Any], root: Path, folder: Path | None
) -> tuple[Examples, Examples | None]:
    """Return what a function gives: (train, test), or a dict of them, each (inputs, targets)."""
    where = f"{WHERE}.function"
    component = components.find(reference, folder, {}, where)
    given = {"data_dir": root}
    values = components.arguments(component, options, f"{WHERE}.options", given=given)
    found = components.called(component, where, **values)
    if isinstance(found, Mapping) and set(found) == {"train", "test"}:
        found = (found["train"], found["test"])
    if not _is_pair(found) or not all(_is_pair(part) for part in found):
        raise UsageError(
            f"{where}: {reference}: must return (train, test) or a dict of them, each "
            f"(inputs, targets), got {_form(found)}"
        )
    train, test = (
        Given(part[0], part[1], f"{reference}: {name} inputs", f"{reference}: {name} targets")
        for name, part in zip(("train", "test"), found, strict=True)
    )
    return examples(train, test, class_labels=False)


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2


def _form(value: object) -> str:
    """Return a value's type, with those of what it holds."""
    if isinstance(value, Mapping):
        return f"a dict with {', '.join(map(repr, value)) or 'no key'}"
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        inner = ", ".join(
            f"{type(x).__name__} of {len(x)}" if isinstance(x, Sequence) else type(x).__name__
            for x in value[:4]
        )
        return f"a {type(value).__name__} of {len(value)}: {inner}"
    return type(value).__name__

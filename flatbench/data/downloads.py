"""Fetching data sets with torchvision, and finding what was fetched."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torchvision

from flatbench.data import cifar, fashion, vision
from flatbench.errors import UsageError

DOWNLOADS = {"fashion-mnist": torchvision.datasets.FashionMNIST, **cifar.READERS}


def download(name: str, root: Path, options: Mapping[str, Any] | None = None) -> None:
    """Fetch a data set into ``root`` with torchvision, which shows progress and checks MD5.

    Args:
        name: one of `DOWNLOADS`, or a class of torchvision.datasets.
        root: where to.
        options: what a class takes beside, as EMNIST's ``split``.

    Raises:
        UsageError: there is no such data set, it cannot be fetched, or what came is not what
            torchvision expects.
    """
    if name in DOWNLOADS and options:
        raise UsageError(f"data set {name}: takes no options, got {', '.join(options)}")
    if name not in DOWNLOADS and not inspect.isclass(getattr(torchvision.datasets, name, None)):
        raise UsageError(
            f"data set must be one of {', '.join(DOWNLOADS)}, or a class of torchvision.datasets, "
            f"as KMNIST, got {name!r}"
        )
    try:
        if name in DOWNLOADS:
            for train in (True, False):
                DOWNLOADS[name](root, train=train, download=True)
        else:
            vision.opened(name, options or {}, root, f"data set {name}", download=True)
    except (RuntimeError, OSError) as error:
        line = " ".join(str(error).split())
        raise UsageError(f"data set {name}: cannot be downloaded to {root}: {line}") from None


def folder_of(name: str, root: Path) -> Path | None:
    """Return the folder in which a downloaded data set's files would be read, or None.

    Nothing is read here: the files may be damaged.
    """
    if name == "fashion-mnist":
        return fashion.find(root)
    folder: Path = root / DOWNLOADS[name].base_folder
    return folder if folder.is_dir() else None

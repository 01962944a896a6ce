"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), by torchvision's reader, which checks MD5 sums."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torchvision

from flatbench.data.dataset import Examples
from flatbench.errors import UsageError

READERS = {
    "cifar10": torchvision.datasets.CIFAR10,
    "cifar100": torchvision.datasets.CIFAR100,
}


def read(name: str, root: Path) -> tuple[Examples, Examples]:
    """Return 50,000 and 10,000 images of 32×32×3.

    Raises:
        UsageError: the files are not there, or their checksums are wrong.
    """
    try:
        parts = [READERS[name](root, train=train) for train in (True, False)]
    except RuntimeError:  # torchvision: not found, or its checksum is wrong
        raise UsageError(
            f"data set {name}: not found (or its checksum is wrong) in {root}; download it there "
            f"with: flatbench download {name} --data-dir {root}"
        ) from None
    train, test = ((part.data, np.array(part.targets, dtype=np.int64)) for part in parts)
    return train, test

"""The architectures, one module each; adding a file here adds an architecture.

Each module offers ``build(width, in_channels, classes) -> nn.Module``. The registry is the
folder's listing, so that naming the architectures costs no import of torch.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

ARCHITECTURES: tuple[str, ...] = tuple(
    sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")
)


def build(name: str, *, width: int = 64, in_channels: int = 3, classes: int = 10) -> nn.Module:
    """Return a freshly initialised network for images of 8×8 to 32×32 pixels.

    ``width`` is the number of channels of the first stage; 64 is the published network. The
    weights come from torch's default initialisers and global random generator.

    Raises:
        ValueError: the name is not one of ``ARCHITECTURES``.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {name!r}")
    module = importlib.import_module(f"{__name__}.{name}")
    network: nn.Module = module.build(width, in_channels, classes)
    return network

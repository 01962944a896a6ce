"""The weights of a network that somebody has trained: reading them, and whether they fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from flatbench.errors import UsageError


def load_into(model: nn.Module, path: Path, where: torch.device) -> None:
    """Load weights into a network.

    Args:
        model: the network.
        path: a .safetensors, or else a state_dict that `torch.save` wrote. Python objects in it are
            code, and are not read.
        where: the device.

    Raises:
        UsageError: the file is not there or damaged, or its tensors are not the network's.
    """
    found = _read(path, where)
    wanted = model.state_dict()
    for name, tensor in wanted.items():
        if name not in found:
            longer = next((other for other in found if other.endswith(f".{name}")), None)
            hint = "" if longer is None else f"; it has {longer}"
            raise UsageError(f"{path}: {name} is missing, which the network has{hint}")
        if found[name].shape != tensor.shape:
            raise UsageError(
                f"{path}: {name} must be of shape {list(tensor.shape)}, "
                f"got {list(found[name].shape)}"
            )
    for name in found:
        if name not in wanted:
            raise UsageError(f"{path}: {name} is no part of the network")
    model.load_state_dict(found)


def _read(path: Path, where: torch.device) -> dict[str, Tensor]:
    if not path.is_file():
        raise UsageError(f"--weights: there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path, str(where))
        else:
            found = torch.load(path, map_location=where, weights_only=True)
    except Exception:  # noqa: BLE001 - a damaged pickle may raise anything
        raise UsageError(
            f"{path}: must be a .safetensors, or a state_dict that torch.save wrote; a network "
            "that was pickled whole is not read"
        ) from None
    must_hold = f"{path}: must hold a table of tensors, as state_dict() gives it"
    if not isinstance(found, Mapping) or not found:
        got = "an empty one" if isinstance(found, Mapping) else type(found).__name__
        raise UsageError(f"{must_hold}, got {got}")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            inner = [key for key, part in found.items() if isinstance(part, Mapping)]
            hint = f"; save its {inner[0]!r} alone" if inner else ""
            raise UsageError(f"{must_hold}, got {type(value).__name__} as its {name!r}{hint}")
    return dict(found)

"""Keep results in .npz files, written in whole; refuse damaged ones and those of another model."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatbench.data import npz
from flatbench.errors import UsageError
from flatbench.files import write_atomically
from flatbench.sharpness import LossSurface


def write(path: Path, form: str, arrays: Mapping[str, Any]) -> None:
    """Write named arrays and the name of their format; `numpy.load` reads them, too.

    The file is written in whole or not at all.
    """
    content = io.BytesIO()
    np.savez(content, format=np.array(form), **arrays)
    write_atomically(path, content.getvalue())


def read(path: Path, form: str, names: Iterable[str]) -> dict[str, Any]:
    """Return the arrays of a file that `write` wrote.

    Raises:
        UsageError: the file cannot be read, has another format or lacks one of ``names``.
    """
    arrays = npz.arrays(path)
    stated = str(arrays.get("format"))
    if stated != form:
        raise UsageError(f"{path}: format must be {form!r}, got {stated!r}")
    for name in names:
        if name not in arrays:
            raise UsageError(f"{path}: must have an array named {name!r}, got none")
    return arrays


def require_same(path: Path, found: object, wanted: object, names: Iterable[str]) -> None:
    """Check that what a file holds has the attributes of what is wanted.

    Raises:
        UsageError: one of the attributes ``names`` differs.
    """
    for name in names:
        there, here = getattr(found, name), getattr(wanted, name)
        if not np.array_equal(there, here):
            raise UsageError(
                f"{path}: {name} must be {_brief(here)} to go on with this file, "
                f"got {_brief(there)}"
            )


def _brief(value: Any) -> str:
    if isinstance(value, np.ndarray):
        ends = f" from {value[0]:g} to {value[-1]:g}" if value.size else ""
        return f"{value.size} points{ends}"
    text = repr(value)
    return text if len(text) <= 24 else f"{text[:12]}…"


def origin(surface: LossSurface) -> dict[str, str]:
    """Return digests of what a surface's loss is made of: ``weights`` and ``examples``.

    The weights are the model's parameters and buffers, the examples its inputs and targets.
    """
    return {
        "weights": digest(sorted(surface.model.state_dict().items())),
        "examples": digest([("inputs", surface.inputs), ("targets", surface.targets)]),
    }


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the SHA-256 of the tensors' names, types, shapes and contents."""
    state = hashlib.sha256()
    for name, tensor in tensors:
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        state.update(flat.view(torch.uint8).numpy().tobytes())
    return state.hexdigest()

"""Checkpoints that survive a kill at any moment, during their own writing included.

A file is the SHA-256 of what follows, then what torch.save wrote. The one before is kept under
``.previous``: at every instant one of the two is whole, also where two processes save one case: a
new run's worker, and one that has outlived its run.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flatbench.files import left_beside, written_beside

_DIGEST = hashlib.sha256().digest_size


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a state of tensors and plain values; the file before it becomes the previous one."""
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    with written_beside(path, hashlib.sha256(content).digest() + content) as fresh:
        # gone: there is none yet, or another process has just made it the previous one
        with contextlib.suppress(FileNotFoundError):
            os.replace(path, _previous(path))
        os.replace(fresh, path)


# What reading nonsense raises, in torch's reader and in those who use what it has read.
NONSENSE = (
    *(AttributeError, EOFError, LookupError, RuntimeError, TypeError, ValueError),
    pickle.UnpicklingError,
)


def states(path: Path, key: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the states whose ``state["key"]`` is the key with their files, the newest first.

    A file that is damaged, or holds something else, is reported as a warning that names it.
    """
    for candidate in (path, _previous(path)):
        try:
            content = candidate.read_bytes()
        except FileNotFoundError:
            continue
        state = _state(content) if _is_whole(content) else None
        if state is None:
            refuse(candidate, "the checkpoint is damaged")
        elif state["key"] == key:
            yield candidate, state


def refuse(path: Path, why: str) -> None:
    """Warn that a checkpoint is not used."""
    warnings.warn(f"{path}: {why}; not used", stacklevel=2)


def _state(content: bytes) -> dict[str, Any] | None:
    import torch

    try:
        # the random generators' states are CPU tensors wherever the generators live
        state = torch.load(io.BytesIO(content[_DIGEST:]), "cpu", weights_only=True)
    except NONSENSE:
        return None
    return state if isinstance(state, dict) and "key" in state else None


def whole(path: Path) -> bytes | None:
    """Return the newest whole checkpoint's file, as `save` wrote it, or None."""
    for candidate in (path, _previous(path)):
        if candidate.exists() and _is_whole(content := candidate.read_bytes()):
            return content
    return None


def _is_whole(content: bytes) -> bool:
    return hashlib.sha256(content[_DIGEST:]).digest() == content[:_DIGEST]


def remove(path: Path) -> None:
    """Remove a checkpoint, the one before it, and those that a kill left half-written."""
    for file in (path, _previous(path), *left_beside(path)):
        file.unlink(missing_ok=True)


def _previous(path: Path) -> Path:
    return path.with_name(f"{path.name}.previous")

"""Atomic writing: a file is either whole or as it was, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def write_json(path: Path, table: Mapping[str, Any]) -> None:
    """Write a table as JSON, atomically."""
    text = json.dumps(table, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file by way of a temporary one beside it: write, fsync, rename, fsync folder."""
    with written_beside(path, content) as temporary:
        os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def written_beside(path: Path, content: bytes) -> Iterator[Path]:
    """Write a file beside a path, to be renamed in this block; no other writer has its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path))
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide a shared result
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def left_beside(path: Path) -> list[Path]:
    """Return the temporary files of a path that killed processes have left."""
    return list(path.parent.glob(f"{glob.escape(_prefix(path))}*"))


def _prefix(path: Path) -> str:
    return f".{path.name}."

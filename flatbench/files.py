"""Atomic writing: a file is either whole or as it was, whatever happens meanwhile."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json(path: Path, table: Mapping[str, Any]) -> None:
    """Write a table as JSON, atomically."""
    text = json.dumps(table, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file by way of a temporary one beside it: write, fsync, rename, fsync folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide a shared result
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

"""Files: read whole and bounded, written whole or not at all, whatever happens meanwhile.

Where the system refuses, an `OSError` goes up to the command line, which makes one line of it.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import gzip
import hashlib
import io
import json
import os
import secrets
import stat
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from flatbench.errors import UsageError

TEXT: Final = 16 * 2**20
"""Bytes that a protocol, or another file that people write, may have."""

RECORDS: Final = 4 * 2**30
"""Bytes that a file of records may have, unpacked: 100,000 records take a tenth of it."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def said(error: OSError) -> str:
    """Return in one line what the system says of a file: "results: Permission denied"."""
    what = error.strerror or str(error)
    named = [os.fsdecode(name) for name in (error.filename, error.filename2) if name is not None]
    return f"{named[-1]}: {what}" if named else what


def read(path: Path, most: int = TEXT) -> bytes:
    """Return a file's content; of one whose name ends in .gz, unpacked.

    A pipe or a device, which may have no end, is refused.

    Args:
        path: the file.
        most: bytes that it may have; more are not read.

    Raises:
        UsageError: it cannot be read, is no regular file, no whole gzip file, or too long.
    """
    try:
        # without O_NONBLOCK a pipe would be waited for
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(handle, "rb") as file:
            kind = stat.S_IFMT(os.fstat(handle).st_mode)
            if kind != stat.S_IFREG:
                raise UsageError(f"{path}: must be a file, got {_KINDS.get(kind, 'another thing')}")
            content = file.read(most + 1)
        if path.suffix == ".gz":
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
                content = packed.read(most + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: is not a whole gzip file: {error}") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(content) > most:
        raise UsageError(f"{path}: must have at most {most:,} bytes")
    return content


def write_json(path: Path, table: Mapping[str, Any]) -> None:
    """Write a table as JSON, atomically."""
    text = json.dumps(table, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file by way of a temporary one beside it: write, fsync, rename, fsync folder.

    A symbolic link stays one, and what it leads to is replaced. What is no file (a pipe, a
    terminal, /dev/null) is written to as it is.

    Raises:
        OSError: the system refuses; what was there is as it was.
    """
    path = _target(path)
    if _is_special(path):
        with _named(path), path.open("wb") as stream:
            stream.write(content)
        return
    with written_beside(path, content) as temporary:
        os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def check_writable(path: Path) -> None:
    """Raise now what writing a file would raise at the end of long work. It leaves nothing.

    Raises:
        OSError: the file, or the folder that it goes to, cannot be written.
    """
    path = _target(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if _is_special(path):
        return
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        with written_beside(path, b"\n"):
            return
    finally:
        with contextlib.suppress(OSError):  # not there, or not empty
            for folder in made:
                folder.rmdir()


def _target(path: Path) -> Path:
    return path.resolve() if path.is_symlink() else path


def _is_special(path: Path) -> bool:
    return path.exists() and not path.is_file() and not path.is_dir()


@contextlib.contextmanager
def written_beside(path: Path, content: bytes) -> Iterator[Path]:
    """Write a file beside a path, to be renamed in this block; no other writer has its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_prefix(path)}{secrets.token_hex(4)}")
    try:
        with _named(path):
            # a new file has the mode that the umask leaves, one that was there keeps its own
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            with os.fdopen(handle, "wb") as file:
                with contextlib.suppress(FileNotFoundError):
                    os.chmod(temporary, stat.S_IMODE(path.stat().st_mode))
                file.write(content)
                file.flush()
                os.fsync(handle)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Have errors name the file that was asked for: a full disk names none."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def left_beside(path: Path) -> list[Path]:
    """Return the temporary files of a path that killed processes have left."""
    return list(path.parent.glob(f"{glob.escape(_prefix(path))}*"))


def _prefix(path: Path) -> str:
    # a name may be so long that no file could be named after it
    name = os.fsencode(path.name)
    return f".{path.name if len(name) <= 200 else hashlib.sha256(name).hexdigest()}."

"""The folder that keeps records, checkpoints and weights."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from flatbench.errors import UsageError
from flatbench.files import check_writable
from flatbench.protocols.cases import Case
from flatbench.records.reading import read_one
from flatbench.records.record import Record

LOCK = ".lock"


@dataclass(frozen=True)
class Store:
    """The folder that takes records, checkpoints and weights, one file of each for each case."""

    results: Path
    resume: bool = False  # take a record that is there already instead of training again
    keep_weights: bool = False

    def record(self, case: Case) -> Path:
        """Return where a case's record is kept."""
        return self._path(case, "records", "json")

    def weights(self, case: Case) -> Path:
        """Return where a case's final weights are kept, beside its record."""
        return self._path(case, "records", "safetensors")

    def checkpoint(self, case: Case) -> Path:
        """Return where a case under way keeps its checkpoint."""
        return self._path(case, "checkpoints", "pt")

    def _path(self, case: Case, folder: str, suffix: str) -> Path:
        name = f"{case.architecture}-{case.optimizer}-seed{case.seed}.{suffix}"
        return self.results / case.protocol.name / folder / name

    def finished(self, case: Case, key: str) -> Record | None:
        """Return the record of an earlier run that this one would repeat bit for bit, or None.

        A failed case is tried again; a diverged one would diverge again.
        """
        path = self.record(case)
        if not self.resume or not path.exists():
            return None
        record = read_one(path)
        if record.provenance.get("key") != key or record.status == "failed":
            return None
        wants_weights = self.keep_weights and record.status == "completed"
        return record if not wants_weights or self._has_weights(case, key) else None

    def _has_weights(self, case: Case, key: str) -> bool:
        """Return whether there are a run's weights, or some that no version with keys wrote."""
        path = self.weights(case)
        return path.exists() and key_of_weights(path) in (None, key)

    @contextlib.contextmanager
    def held(self, cases: Iterable[Case]) -> Iterator[None]:
        """Keep other runs out of the folders of these cases' protocols, in this block.

        Two runs in one folder would train the same cases and write over each other's reports. The
        lock is the operating system's (flock), so it ends with the process, however that ends; and
        NFS passes it on to other machines. Its file, ``.lock``, names who holds it, and may be
        removed by hand where the server keeps the lock of a machine that has vanished. A file
        system that has no locks is warned of, and on Windows there is no lock.

        Raises:
            UsageError: another run holds one of the folders, or it cannot be written to.
        """
        folders = {self.results / case.protocol.name for case in cases}
        with contextlib.ExitStack() as stack:
            for folder in sorted(folders):
                stack.enter_context(_held(folder))
            yield


def key_of_weights(path: Path) -> str | None:
    """Return the key of the run that weights are of; None where they have none, or are not there.

    The first versions wrote weights without a key. What such weights are of is unknown.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            key: str | None = (file.metadata() or {}).get("key")
            return key
    except (OSError, SafetensorError):
        return None


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    with _writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = _locked(folder / LOCK)
    try:
        for inner in (folder / "records", folder / "checkpoints"):
            with _writing_to(inner):  # said now, and not after the training
                check_writable(inner / "probe")
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)  # before the lock ends: it may be the next one's
        os.close(handle)
        with contextlib.suppress(OSError):  # not empty
            for parent in made:
                parent.rmdir()


@contextlib.contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written to: {error.strerror}") from None


def _locked(path: Path) -> int:
    """Lock a file and return its handle."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(handle, path)
            # Whoever held it may have removed the file, and a third have locked the one after it.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), path.stat()):
                    os.ftruncate(handle, 0)
                    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int, path: Path) -> None:
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        who = path.read_text(encoding="utf-8", errors="replace") or "another process"
        raise UsageError(
            f"{path.parent}: {who} trains into this folder; wait for its end, or give other "
            "--results (reports take several folders)"
        ) from None
    except OSError as error:
        warnings.warn(
            f"{path}: cannot be locked, nothing keeps a second run off: {error.strerror}",
            RuntimeWarning,
            stacklevel=2,
        )

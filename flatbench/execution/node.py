"""What a node of a cluster does with a case; it runs in a process of Ray's."""

from __future__ import annotations

import hashlib
import importlib
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from flatbench.execution import work
from flatbench.execution.engine import Job
from flatbench.files import write_atomically
from flatbench.protocols.cases import Case
from flatbench.training import checkpoint

STREAM_SHARE = 0.01  # of the time, at most, for sending checkpoints; writing them takes as much


def source_hash() -> str:
    """Return what identifies this process's flatbench."""
    from flatbench.records import provenance

    return provenance.source_hash()


@dataclass(frozen=True)
class About:
    """What a node is told beside case and job.

    Attributes:
        device: to train on.
        source_hash: of the driver's flatbench.
        mark: a file that is seen from here where the folder of the results is shared.
    """

    device: str
    source_hash: str
    mark: Path | None


def machine(device: str) -> tuple[str, ...]:
    """Return what a run's bits depend on here."""
    import torch

    from flatbench.records import provenance

    return provenance.machine(torch.device(device))


def messages(
    case: Case,
    job: Job,
    about: About,
    files: Mapping[str, bytes] | None,
    kept: bytes | None,
) -> Iterator[tuple[Literal["begun", "epoch", "checkpoint", "weights", "record"], Any]]:
    """Train a case on a node, and yield what there is to tell the driver."""
    ray: Any = importlib.import_module("ray")
    yield "begun", ray.get_runtime_context().get_node_id()
    if source_hash() != about.source_hash:
        reason = (
            f"flatbench on {ray.util.get_node_ip_address()} must have the driver's sources "
            f"{about.source_hash}, got {source_hash()}"
        )
        yield "record", work.failed(case, reason)
        return
    if files is not None:
        case = replace(case, protocol=replace(case.protocol, folder=_unpacked(files)))
    with tempfile.TemporaryDirectory(prefix="flatbench-") as scratch:
        is_shared = about.mark is not None and about.mark.exists()
        ours = _own_files(job, Path(scratch), is_shared)
        if kept is not None and ours.checkpoint is not None:
            write_atomically(ours.checkpoint, kept)
        sent = None if is_shared or ours.checkpoint is None else _Sent(ours.checkpoint)
        trained = work.attempt(case, ours, about.device)
        while True:
            try:
                epoch = next(trained)
            except StopIteration as end:
                if ours.weights is not None and ours.weights.exists():
                    yield "weights", ours.weights.read_bytes()
                yield "record", end.value
                return
            yield "epoch", epoch
            if sent is not None and (content := sent.due()) is not None:
                begun = time.perf_counter()
                yield "checkpoint", content
                sent.cost(time.perf_counter() - begun)


_folders: dict[str, tempfile.TemporaryDirectory[str]] = {}  # by what they hold


def _unpacked(files: Mapping[str, bytes]) -> Path:
    """Return a folder with these files, which is there as long as this process is."""
    content = hashlib.sha256()
    for name, data in sorted(files.items()):
        content.update(f"{name}\n{len(data)}\n".encode() + data)
    key = content.hexdigest()
    if key not in _folders:
        _folders[key] = tempfile.TemporaryDirectory(prefix="flatbench-")
        for name, data in files.items():
            path = Path(_folders[key].name, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return Path(_folders[key].name)


def _own_files(job: Job, scratch: Path, is_shared: bool) -> Job:
    """Return the job with files of this attempt's alone.

    An attempt that was given up, on a machine that is cut off and works on, cannot reach another's.
    """
    kept = job.checkpoint
    if kept is not None:
        kept = kept.with_name(f"{kept.name}.attempt{job.number}") if is_shared else scratch / "pt"
    return replace(job, checkpoint=kept, weights=scratch / "weights" if job.weights else None)


class _Sent:
    """Tells when a checkpoint is worth its sending."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version = self._written()
        self._next = 0.0

    def _written(self) -> int:
        return self._path.stat().st_mtime_ns if self._path.exists() else 0

    def due(self) -> bytes | None:
        """Return a checkpoint that was written since the last one sent, if it is time for it."""
        if time.monotonic() < self._next or self._written() == self._version:
            return None
        self._version = self._written()
        return checkpoint.whole(self._path)

    def cost(self, seconds: float) -> None:
        """Note what a sending took, so that the next one keeps the share."""
        self._next = time.monotonic() + seconds / STREAM_SHARE

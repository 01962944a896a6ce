"""A Ray cluster: a task for each case, on whatever machine of it has room.

    submit ─> the watching thread ─> a task on a node
                      └<── its messages: epochs, checkpoints, the record ──┘

Ray schedules, carries messages and notices what has died. It does not retry: `run` does, from the
newest checkpoint. Each attempt has a stream of its own, which is dropped with the attempt: what a
machine that was given up still sends reaches nobody.
"""

from __future__ import annotations

import glob
import importlib
import os
import queue
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatbench import components
from flatbench.errors import UsageError
from flatbench.execution import node
from flatbench.execution.engine import Job, Machines, OnEpoch, WorkerDied
from flatbench.files import write_atomically
from flatbench.protocols.cases import Case
from flatbench.records.record import Record
from flatbench.training import checkpoint

if TYPE_CHECKING:
    from flatbench.execution.run import Machine

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before Ray is imported

LOOK = 0.05  # seconds between two looks at what has come


@dataclass
class _Attempt:
    case: Case
    job: Job
    on_epoch: OnEpoch
    future: Future[Record]
    node: str = ""  # the id of the node that has begun it


class Ray:
    """The engine of a cluster: one that is there, or one on this machine that ends with the run.

    Raises:
        UsageError: Ray is not installed, no cluster is at the address, it has no GPU where one was
            demanded, or a file that a protocol refers to lies outside the protocol's folder.
    """

    def __init__(self, machine: Machine, workers: int, cases: Sequence[Case]) -> None:
        files = _needed(cases)
        self._ray = _connected(machine, workers)
        self._files = {folder: self._ray.put(content) for folder, content in files.items()}
        self._device, self._resources = _resources(self._ray, machine)
        self._limit = machine.workers
        self._remote = self._ray.remote(node.messages).options(
            num_returns="streaming", max_retries=0, **self._resources
        )
        self._waiting: queue.SimpleQueue[_Attempt] = queue.SimpleQueue()
        self._running: dict[Any, _Attempt] = {}  # by the stream of its messages
        self._kinds: dict[str, str] = {}  # the kind of GPU that a case was begun with
        self._marks: dict[Path, Path] = {}
        self._fault: BaseException | None = None  # of the watching thread
        self._closing = threading.Event()
        self._watcher = ThreadPoolExecutor(1, "flatbench-ray")
        self._watcher.submit(self._watch)

    def machines(self) -> Machines:
        """Return what each node is that takes cases, by a task on each."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

        gpus = self._resources["num_gpus"]
        remote = self._ray.remote(node.machine)
        asked = [
            remote.options(
                num_cpus=0, num_gpus=gpus, scheduling_strategy=On(one["NodeID"], soft=False)
            ).remote(self._device)
            for one in self._ray.nodes()
            if one["Alive"] and one["Resources"].get("GPU" if gpus else "CPU")
        ]
        return tuple(dict.fromkeys(self._ray.get(asked)))

    def submit(self, case: Case, job: Job, on_epoch: OnEpoch) -> Future[Record]:
        """Hand a case to the cluster; see `Engine.submit`."""
        future: Future[Record] = Future()
        if self._closing.is_set():
            future.cancel()
        else:
            self._waiting.put(_Attempt(case, job, on_epoch, future))
            if self._fault is not None:  # nobody watches any more
                self._give_up(self._fault)
        return future

    def close(self) -> None:
        """Cancel what runs and leave the cluster; one of our own ends."""
        self._closing.set()
        self._watcher.shutdown()
        for stream in self._running:
            self._ray.cancel(stream, force=True)
        for attempt in (*self._running.values(), *_drained(self._waiting)):
            attempt.future.cancel()
        self._ray.shutdown()
        for mark in self._marks.values():
            mark.unlink(missing_ok=True)

    def _watch(self) -> None:
        """Begin what waits and read what comes, until the engine is closed."""
        try:
            while not self._closing.is_set():
                while len(self._running) < (self._limit or float("inf")):
                    if self._waiting.empty():
                        break
                    self._begin(self._waiting.get())
                if self._running:
                    streams, count = list(self._running), len(self._running)
                    ready, _ = self._ray.wait(streams, num_returns=count, timeout=LOOK)
                    for stream in ready:
                        self._read(stream)
                else:
                    self._closing.wait(LOOK)
        except BaseException as error:
            self._fault = error
            self._give_up(error)
            raise

    def _give_up(self, error: BaseException) -> None:
        """Tell whoever waits for a case, who would wait for ever."""
        while self._running:
            self._running.popitem()[1].future.set_exception(error)
        for attempt in _drained(self._waiting):
            attempt.future.set_exception(error)

    def _begin(self, attempt: _Attempt) -> None:
        case, job = attempt.case, attempt.job
        task, kept = self._remote, None
        if job.checkpoint is not None:
            _take_over(job.checkpoint)
            if job.resume and (content := checkpoint.whole(job.checkpoint)) is not None:
                kept = self._ray.put(content)
                # It is of use on the kind of device that wrote it alone.
                kind = self._kinds.get(case.id)
                if kind is not None and f"accelerator_type:{kind}" in self._ray.cluster_resources():
                    task = task.options(accelerator_type=kind)
        about = node.About(self._device, node.source_hash(), self._mark(job))
        files = self._files.get(case.protocol.folder)
        self._running[task.remote(case, job, about, files, kept)] = attempt

    def _mark(self, job: Job) -> Path | None:
        """Return a file by which a node sees that it shares the folder of the results."""
        if job.checkpoint is None:
            return None
        folder = job.checkpoint.parent
        if folder not in self._marks:
            folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=folder, prefix=".shared-")
            os.close(handle)
            self._marks[folder] = Path(name).resolve()
        return self._marks[folder]

    def _read(self, stream: Any) -> None:
        """Take one message of an attempt's."""
        from ray.exceptions import NodeDiedError, RayError, RayTaskError

        attempt = self._running[stream]
        try:
            kind, content = self._ray.get(next(stream))
        except StopIteration:
            self._end(stream, WorkerDied("it ended without a record"))
        except RayTaskError as error:  # a fault of ours: what a case raises is in its record
            self._end(stream, error)
        except RayError as error:
            line = str(error).strip().partition("\n")[0] or "no more is known"
            is_lost = isinstance(error, NodeDiedError) or not self._is_alive(attempt.node)
            self._end(stream, WorkerDied(f"{type(error).__name__}: {line}", is_lost))
        else:
            self._take(stream, attempt, kind, content)

    def _take(self, stream: Any, attempt: _Attempt, kind: str, content: Any) -> None:
        job = attempt.job
        if kind == "begun":
            attempt.node = content
            if (gpu := self._gpu_of(content)) is not None:
                self._kinds[attempt.case.id] = gpu
        elif kind == "epoch":
            attempt.on_epoch(*content)
        elif kind == "checkpoint" and job.checkpoint is not None:
            write_atomically(job.checkpoint, content)
        elif kind == "weights" and job.weights is not None:
            write_atomically(job.weights, content)
        elif kind == "record":
            self._end(stream, content)

    def _end(self, stream: Any, result: Record | Exception) -> None:
        attempt = self._running.pop(stream)
        if attempt.job.checkpoint is not None:
            _take_over(attempt.job.checkpoint)
        if isinstance(result, Exception):
            attempt.future.set_exception(result)
        else:
            attempt.future.set_result(result)

    def _is_alive(self, node_id: str) -> bool:
        return not node_id or any(n["NodeID"] == node_id and n["Alive"] for n in self._ray.nodes())

    def _gpu_of(self, node_id: str) -> str | None:
        """Return the kind of a node's GPU, as Ray names it."""
        nodes = [n["Resources"] for n in self._ray.nodes() if n["NodeID"] == node_id]
        resources: dict[str, float] = nodes[0] if nodes else {}
        kinds = [k.partition(":")[2] for k in resources if k.startswith("accelerator_type:")]
        return kinds[0] if kinds and self._resources["num_gpus"] else None


def _drained(waiting: queue.SimpleQueue[_Attempt]) -> Iterator[_Attempt]:
    while not waiting.empty():
        yield waiting.get()


# --- the driver's side, before anything runs


def _connected(machine: Machine, workers: int) -> Any:
    """Return the module `ray`, connected to the cluster."""
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise UsageError("--engine ray needs Ray: pip install flatbench[ray]") from None
    if machine.address is not None and machine.address.startswith("ray://"):
        raise UsageError(
            f"--address must be auto or HOST:PORT, got {machine.address}: Ray Client carries no "
            "streams; run flatbench on a machine of the cluster, as by ray job submit"
        )
    options: dict[str, Any] = {"address": machine.address}
    if machine.address is None:
        options = {"address": "local", "num_cpus": workers, "include_dashboard": False}
    try:
        ray.init(logging_level="ERROR", **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if machine.address is None:
            raise
        raise UsageError(
            f"--address must be that of a Ray cluster that runs, got {machine.address!r}"
        ) from error
    return ray


def _resources(ray: Any, machine: Machine) -> tuple[str, dict[str, float]]:
    """Return the device that a case is trained on, and what its task asks of a node."""
    gpus = ray.cluster_resources().get("GPU", 0)
    if machine.device not in ("auto", "cpu", "cuda"):
        ray.shutdown()
        raise UsageError(
            f"--device must be cpu, cuda or auto with --engine ray, got {machine.device!r}"
        )
    if machine.device == "cuda" and not gpus and machine.address is None:
        ray.shutdown()
        raise UsageError("--device = 'cuda': Ray finds no GPU on this machine")
    # A cluster that grows may have no GPU yet.
    if machine.device == "cpu" or (machine.device == "auto" and not gpus):
        return "cpu", {"num_cpus": 1, "num_gpus": 0}
    return "cuda", {"num_cpus": 1, "num_gpus": 1 / machine.workers_per_gpu}


def _needed(cases: Sequence[Case]) -> dict[Path, dict[str, bytes]]:
    """Return the files that protocols refer to, by folder and by their place in it.

    They travel by themselves. Ray could carry whole folders, but what else lies beside a protocol
    may be large, what a .gitignore names would be left out, and Ray deletes a copy as soon as one
    of the nodes that share a machine has ended.
    """
    found: dict[Path, dict[str, bytes]] = {}
    for case in cases:
        root, source = case.protocol.folder, case.protocol.data.source
        needed = {f for reference in case.references() for f in components.files(reference, root)}
        if source is not None and source.kind in ("npz", "folder"):
            needed.add((root / source.what).resolve())
        for path in needed:
            if not path.is_relative_to(root):
                raise UsageError(
                    f"protocol {case.protocol.name!r}: with --engine ray a file must lie in the "
                    f"protocol's folder {root}, got {path}"
                )
            for file in path.rglob("*") if path.is_dir() else [path]:
                inside = file.relative_to(root).as_posix()
                if file.is_file() and inside not in found.setdefault(root, {}):
                    found[root][inside] = file.read_bytes()
    return found


def _attempts_of(kept: Path) -> list[Path]:
    return sorted(
        kept.parent.glob(f"{glob.escape(kept.name)}.attempt*"), key=lambda f: f.stat().st_mtime
    )


def _take_over(kept: Path) -> None:
    """Make the newest checkpoint that attempts have left in a shared folder the case's own."""
    for file in _attempts_of(kept):
        if (content := checkpoint.whole(file)) is not None:
            write_atomically(kept, content)
        checkpoint.remove(file)

"""Worker processes on this machine, each training one case at a time.

A worker is a spawned process with one torch thread, so a record does not depend on how many workers
there were. Each has a pool of its own (pebble's, of one process): a worker that is killed while it
holds the lock of a pool's pipe would take the others with it.

    submit ─> feeder thread ─> the pool of a free device ─> worker process
                    └<── the mail, a file: epochs, then the record ──┘

What comes back is a file, and not the pool's pipe, since a worker may be killed in the middle of a
message: half a record in a pipe is what the next reader would begin with.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import pickle
import queue
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pebble import ProcessExpired, ProcessPool

from flatbench import process
from flatbench.execution import work
from flatbench.execution.engine import Job, Machines, OnEpoch, WorkerDied
from flatbench.protocols.cases import Case
from flatbench.records.record import Epoch, Record

if TYPE_CHECKING:
    from pebble import ProcessFuture

LOOK = 0.2  # seconds between two looks into the mail


class Local:
    """The engine of this machine: a worker for each of these devices, which may be alike."""

    def __init__(self, devices: Sequence[str]) -> None:
        self._devices = tuple(devices)
        self._mail = tempfile.TemporaryDirectory(prefix="flatbench-", ignore_cleanup_errors=True)
        self._free: queue.SimpleQueue[_Place] = queue.SimpleQueue()
        for device in devices:
            self._free.put(_Place(device))
        self._closing = threading.Event()
        self._feeders = ThreadPoolExecutor(len(devices), "flatbench-feeder")

    def machines(self) -> Machines:
        """Return what this machine is, with its first device."""
        import torch

        from flatbench.records import provenance

        return (provenance.machine(torch.device(self._devices[0])),)

    def submit(self, case: Case, job: Job, on_epoch: OnEpoch) -> Future[Record]:
        """Queue a case for the next free device; see `Engine.submit`."""
        try:
            return self._feeders.submit(self._train, case, job, on_epoch)
        except RuntimeError:  # the executor is shut down
            closed: Future[Record] = Future()
            closed.cancel()
            return closed

    def close(self) -> None:
        """End every worker, within seconds."""
        self._closing.set()
        self._feeders.shutdown(cancel_futures=True)
        while not self._free.empty():
            self._free.get().end()
        self._mail.cleanup()

    def _train(self, case: Case, job: Job, on_epoch: OnEpoch) -> Record:
        place = self._free.get()  # there are as many threads as places, so that one is free
        handle, name = tempfile.mkstemp(dir=self._mail.name)
        try:
            with os.fdopen(handle, "rb") as mail:
                task, record = place.begin(case, job, Path(name)), None
                while not concurrent.futures.wait([task], timeout=LOOK).done:
                    # the record comes a moment before the pool says that the task is over
                    record = _deliver(mail, on_epoch) or record
                    if self._closing.is_set():
                        place.end()  # here, so that the workers of several threads end at once
                        raise CancelledError
                return record or _result(task, mail, on_epoch)
        finally:
            os.unlink(name)
            self._free.put(place)


class _Place:
    """One worker's: its device, and the pool that replaces its process where it dies."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._pool: ProcessPool | None = None

    def begin(self, case: Case, job: Job, mail: Path) -> ProcessFuture[None]:
        if self._pool is not None and not self._pool.active:  # its worker died between two cases
            self.end()
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPool(1, initializer=_begin_worker, context=spawn)
        return self._pool.schedule(_work, args=(case, job, self._device, mail))

    def end(self) -> None:
        if self._pool is not None:
            self._pool.stop()  # type: ignore[no-untyped-call]
            self._pool.join()
            self._pool = None


def _result(task: ProcessFuture[None], mail: BinaryIO, on_epoch: OnEpoch) -> Record:
    try:
        task.result()
    except ProcessExpired as death:
        raise WorkerDied(_cause(death.exitcode)) from None
    except BrokenProcessPool:
        raise WorkerDied("before it took the case") from None
    record = _deliver(mail, on_epoch)
    if record is None:  # the pool's task is over: the worker has written all it had to write
        raise WorkerDied("without a record")
    return record


def _deliver(mail: BinaryIO, on_epoch: OnEpoch) -> Record | None:
    """Hand over what has come whole, and return the record if it was among that."""
    for message in _messages(mail):
        if isinstance(message, Record):
            return message
        on_epoch(*message)
    return None


def _messages(mail: BinaryIO) -> Iterator[tuple[int, Epoch] | Record]:
    while True:
        start = mail.tell()
        try:
            yield pickle.load(mail)
        except (EOFError, pickle.UnpicklingError):  # not there, or not whole yet
            mail.seek(start)
            return


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        names = {s.value: s.name for s in signal.Signals}  # real-time signals have none
        name = names.get(-exitcode, f"signal {-exitcode}")
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"
    return f"exit code {exitcode}"


def _work(case: Case, job: Job, device: str, mail: Path) -> None:
    """Train a case in a worker process; everything that there is to tell goes into the mail."""
    from flatbench.training import trainer

    with mail.open("ab") as out:

        def tell(number: int, epoch: Epoch) -> None:
            pickle.dump((number, epoch), out)
            out.flush()

        pickle.dump(trainer.drive(work.attempt(case, job, device), tell), out)


def _begin_worker() -> None:
    """Make this process one that nothing but its parent ends."""
    process.open_streams()  # what a network prints must not end it where nobody reads
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the parent's to handle, as Ctrl-C is
    _end_with_parent()


def _end_with_parent() -> None:
    """End this process as soon as its parent is gone, by a thread that waits for nothing else.

    No library does this: a pool's worker looks for its parent between two cases, which is minutes.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="flatbench-parent", daemon=True).start()

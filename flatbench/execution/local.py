"""Where cases run: worker processes on this machine, each training one case at a time.

A worker is a spawned process with one torch thread, so a record does not depend on how many
workers there were. A thread of the parent feeds each worker:

    queue of cases ─> feeder thread <─pipe─> worker process
                           └─> the store, then the case's future

A case goes down the pipe; epochs come up it while it trains, and its record at the end. If the
worker dies, its case is recorded as failed, and a new worker takes the next. The record is written
before the future is set, so whoever has waited for it finds it on the disk. Only the parent writes
records, only the worker writes checkpoints and weights.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from flatbench.errors import UsageError
from flatbench.execution.progress import Progress, Run
from flatbench.files import write_json
from flatbench.protocols.cases import Case
from flatbench.records.record import Record, of_case
from flatbench.records.store import Store
from flatbench.training import checkpoint


@dataclass(frozen=True)
class _Job:
    """What a worker needs beside the cases."""

    device: str
    data_dir: Path | None
    store: Store | None


def cores() -> int:
    """Return the number of processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it; others count them all
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def places(device: str) -> list[str]:
    """Return the devices that "cpu", "cuda" (every GPU), "cuda:N" or "auto" stands for.

    Raises:
        UsageError: no such device on this machine.
    """
    import torch  # not on the way to --help

    from flatbench.training.devices import find

    found = str(find(device))
    if found == "cuda":
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return [found]


@contextlib.contextmanager
def start(
    cases: Sequence[Case],
    *,
    device: str = "auto",
    workers: int | None = None,
    data_dir: Path | None = None,
    store: Store | None = None,
) -> Iterator[Run]:
    """Train cases in the background; leaving the block ends the workers, finished or not.

    ``workers`` defaults to the number of processors, or of GPUs on CUDA. Each record goes into the
    store as soon as it is there. A case that raises or whose worker dies gives a record with
    status "failed", never an exception.

    Raises:
        UsageError: the device or the data set is not there, a network does not fit the data, an
            optimizer cannot be built as its row says, fewer than one worker is asked for, or a
            record to be reused is not valid.
    """
    import torch

    from flatbench import data
    from flatbench.training import identity, setup

    devices = places(device)
    # Rather one error now than one in every case. The cases of a grid share their protocol.
    loaded = {
        id(protocol): data.load_for(protocol, data_dir=data_dir)
        for protocol in {id(case.protocol): case.protocol for case in cases}.values()
    }
    for case in {(id(case.protocol), case.architecture): case for case in cases}.values():
        setup.check_model(case, loaded[id(case.protocol)])
    if workers is None:
        workers = cores() if devices == ["cpu"] else len(devices)
    if workers < 1:
        raise UsageError(f"--workers must be a whole number of at least 1, got {workers}")

    setup.check(cases, loaded)
    progress = Progress(cases)
    run = Run({case.id: Future() for case in cases}, progress)
    waiting: queue.SimpleQueue[Case] = queue.SimpleQueue()
    for case in cases:
        found = identity.sources(case)
        key = identity.key(case, loaded[id(case.protocol)], torch.device(devices[0]), found)
        record = store.finished(case, key) if store else None
        if record is None:
            waiting.put(case)
        else:
            progress.reused.add(case.id)
            progress.finished.add(case.id)
            run.futures[case.id].set_result(record)
    stop = threading.Event()
    feeders = [
        threading.Thread(
            target=_feed,
            args=(
                waiting,
                run,
                _Job(devices[slot % len(devices)], data_dir, store),
                stop,
            ),
            daemon=True,
        )
        for slot in range(min(workers, len(cases)))
    ]
    for feeder in feeders:
        feeder.start()
    try:
        yield run
    finally:
        stop.set()
        for feeder in feeders:
            feeder.join()


def _feed(
    waiting: queue.SimpleQueue[Case],
    run: Run,
    job: _Job,
    stop: threading.Event,
) -> None:
    """Hand cases to one worker process until there are none, replacing the worker if it dies."""
    worker: tuple[BaseProcess, Connection] | None = None
    store = job.store
    while not stop.is_set():
        try:
            case = waiting.get_nowait()
        except queue.Empty:  # nothing is put there after the start: it stays empty
            break
        future = run.futures[case.id]
        try:
            if worker is None or not worker[0].is_alive():
                worker = _spawn(job)
            record = _supervise(*worker, case, run.progress, stop)
            if record is None:  # stopped
                break
            # A failed case keeps its checkpoint, from which --resume tries it again.
            if store is not None:
                write_json(store.record(case), record.to_json())
                if record.status != "failed":
                    checkpoint.remove(store.checkpoint(case))
        except OSError as error:  # no process, no pipe, no room on the disk: whoever waits hears it
            future.set_exception(error)
            continue
        run.progress.finished.add(case.id)
        future.set_result(record)
    if worker is not None:
        process, connection = worker
        connection.close()  # ends an idle worker
        if stop.is_set():
            process.terminate()
        process.join()


def _spawn(job: _Job) -> tuple[BaseProcess, Connection]:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_work, args=(theirs, job), daemon=True)
    process.start()
    theirs.close()  # or the pipe would stay open after the worker's death, and nobody notice it
    return process, ours


def _supervise(
    process: BaseProcess,
    connection: Connection,
    case: Case,
    progress: Progress,
    stop: threading.Event,
) -> Record | None:
    """Return the case's record, whatever becomes of its worker; None if told to stop."""
    try:
        connection.send(case)
        while not stop.is_set():
            if not connection.poll(0.2):  # seconds until a stop is noticed
                continue
            message = connection.recv()
            if isinstance(message, Record):
                return message
            number, epoch = message
            progress.epochs_done[case.id] = number
            progress.latest = case, number, epoch
        return None
    except (EOFError, ConnectionError):
        process.join()
        return failed(case, f"its worker process died: {_cause(process.exitcode)}")


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        names = {s.value: s.name for s in signal.Signals}  # real-time signals have none
        name = names.get(-exitcode, f"signal {-exitcode}")
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"
    return f"exit code {exitcode}"


def failed(case: Case, reason: str) -> Record:
    """Return the record of a case that came to no end of its own."""
    return of_case(case, {}, status="failed", reason=reason)


def _work(connection: Connection, job: _Job) -> None:
    """Be a worker: train the cases that come, until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    import torch

    from flatbench.training import trainer
    from flatbench.training.devices import set_up_worker

    set_up_worker(torch.device(job.device))
    store = job.store
    while True:
        try:
            case = connection.recv()
        except EOFError:
            return
        try:
            record = trainer.train(
                case,
                device_name=job.device,
                data_dir=job.data_dir,
                on_epoch=lambda number, epoch: connection.send((number, epoch)),
                checkpoints=store.checkpoint(case) if store else None,
                resume=store is not None and store.resume,
                weights=store.weights(case) if store and store.keep_weights else None,
            )
        except UsageError as error:
            record = failed(case, str(error))
        except BrokenPipeError:
            return  # the parent is gone; nobody is left to tell
        except Exception as error:  # noqa: BLE001 - whatever it was, it fails this case alone
            traceback.print_exc()
            line = " ".join(str(error).split())
            record = failed(case, f"{type(error).__name__}: {line}")
        connection.send(record)

"""Cases under way: what is reused, what is tried again, and what is written where.

    cases ─> what the store has already ─> an engine ─> the store, then the case's future

The record is written before the future is set, so whoever has waited for it finds it on the disk.
Only this process writes records. Only the newest attempt's future is listened to, so that an
attempt that was given up cannot replace a newer record.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flatbench.errors import UsageError
from flatbench.execution.engine import Engine, Job, Machines, WorkerDied
from flatbench.execution.progress import Progress, Run
from flatbench.execution.work import failed
from flatbench.files import write_json
from flatbench.protocols.cases import Case
from flatbench.records.record import Epoch, Record
from flatbench.records.store import Store
from flatbench.training import checkpoint

if TYPE_CHECKING:
    from flatbench.data import DataSet

# So often in a row a case's worker may die without an epoch more than the time before: a case that
# kills its worker is given up. The loss of a whole machine does not count.
DEATHS = 3


@dataclass(frozen=True)
class Machine:
    """Where cases are trained.

    Attributes:
        device: "cpu", "cuda", "cuda:N" or "auto".
        workers: processes at once; None means one a core, or as many as the GPUs take.
        workers_per_gpu: how many share one.
        data_dir: the folder of the data sets; None means the default.
        engine: "local", this machine, or "ray", a cluster.
        address: of the cluster; None means one on this machine, which ends with the run.
    """

    device: str = "auto"
    workers: int | None = None
    workers_per_gpu: int = 1
    data_dir: Path | None = None
    engine: Literal["local", "ray"] = "local"
    address: str | None = None


def machine_of(option: Callable[[str], Any]) -> Machine:
    """Return the machine that options name; ``option`` returns the value of one by its name."""
    return Machine(**{field.name: option(field.name) for field in fields(Machine)})


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
def start(cases: Sequence[Case], machine: Machine, store: Store | None = None) -> Iterator[Run]:
    """Train cases in the background; leaving the block ends the workers, finished or not.

    Each record goes into the store as soon as it is there. A case that raises, or whose worker dies
    again and again, gives a record with status "failed", never an exception.

    Raises:
        UsageError: the device, the engine or the data set is not there, a network does not fit the
            data, an optimizer cannot be built as its row says, fewer than one worker is asked for,
            or a record to be reused is not valid.
    """
    from flatbench import data
    from flatbench.training import setup

    for name in ("workers", "workers_per_gpu"):
        asked = getattr(machine, name)
        if asked is not None and asked < 1:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} must be a whole number of at least 1, got {asked}")
    if machine.address is not None and machine.engine != "ray":
        raise UsageError(f"--address must come with --engine ray, got {machine.address!r} alone")
    devices = places(machine.device) if machine.engine == "local" else []
    # Rather one error now than one in every case. The cases of a grid share their protocol.
    loaded = {
        id(protocol): data.load_for(protocol, data_dir=machine.data_dir)
        for protocol in {id(case.protocol): case.protocol for case in cases}.values()
    }
    for case in {(id(case.protocol), case.architecture): case for case in cases}.values():
        setup.check_model(case, loaded[id(case.protocol)])
    setup.check(cases, loaded)
    run = Run({case.id: Future() for case in cases}, Progress(cases))
    engine = _engine(machine, devices, cases)
    machines = functools.cache(engine.machines)  # asking a cluster is a task on each of its nodes
    try:
        for case in cases:
            record = None
            if store is not None and store.resume and store.record(case).exists():
                record = _reusable(case, loaded[id(case.protocol)], machines, store)
            if record is None:
                _begin(run, engine, case, _job(case, machine, store), store)
            else:
                run.progress.reused.add(case.id)
                run.progress.finished.add(case.id)
                run.futures[case.id].set_result(record)
        yield run
    finally:
        engine.close()


def _engine(machine: Machine, devices: Sequence[str], cases: Sequence[Case]) -> Engine:
    if machine.engine == "ray":
        from flatbench.execution.ray import Ray

        return Ray(machine, machine.workers or cores(), cases)
    from flatbench.execution.local import Local

    slots = list(devices) * (1 if list(devices) == ["cpu"] else machine.workers_per_gpu)
    workers = machine.workers or (cores() if slots == ["cpu"] else len(slots))
    return Local([slots[i % len(slots)] for i in range(max(1, min(workers, len(cases))))])


def _job(case: Case, machine: Machine, store: Store | None) -> Job:
    if store is None:
        return Job(data_dir=machine.data_dir)
    weights = store.weights(case) if store.keep_weights else None
    return Job(1, machine.data_dir, store.checkpoint(case), store.resume, weights)


def _reusable(
    case: Case, dataset: DataSet, machines: Callable[[], Machines], store: Store
) -> Record | None:
    """Return the store's record of a case, if a machine of the engine's would make the same."""
    from flatbench.training import identity

    found = identity.sources(case)
    keys = {identity.key(case, dataset, kind, found) for kind in machines()}
    return next((r for key in keys if (r := store.finished(case, key)) is not None), None)


def _begin(
    run: Run, engine: Engine, case: Case, job: Job, store: Store | None, deaths: int = 0
) -> None:
    """Hand a case to the engine; what comes of it is seen to where it ends."""
    reached = run.progress.epochs_done.get(case.id, 0)
    is_first = True

    def on_epoch(number: int, epoch: Epoch) -> None:
        nonlocal is_first
        if is_first and job.number > 1:
            goes_on = f"goes on after epoch {number - 1}" if number > 1 else "starts anew"
            run.progress.notes.append(f"{case.id}: attempt {job.number} {goes_on}")
        is_first = False
        run.progress.epochs_done[case.id] = number
        run.progress.latest = case, number, epoch

    settle = partial(_settle, run, engine, case, job, store, deaths, reached)
    engine.submit(case, job, on_epoch).add_done_callback(settle)


def _settle(
    run: Run,
    engine: Engine,
    case: Case,
    job: Job,
    store: Store | None,
    deaths: int,
    reached: int,
    ended: Future[Record],
) -> None:
    """Keep an attempt's record and set the case's future, or try again where the worker died."""
    future = run.futures[case.id]
    try:
        record = ended.result()
    except CancelledError:  # the run was left
        return
    except WorkerDied as death:
        further = run.progress.epochs_done.get(case.id, 0) > reached
        deaths = (1 if further else deaths + 1) - death.is_lost
        if deaths < DEATHS:
            run.progress.notes.append(
                f"{case.id}: its worker process died: {death}; it is tried again"
            )
            again = replace(job, number=job.number + 1, resume=job.checkpoint is not None)
            _begin(run, engine, case, again, store, deaths)
            return
        times = f" {deaths} times" if deaths > 1 else ""
        record = failed(case, f"its worker process died{times}: {death}")
    except BaseException as error:  # noqa: BLE001 - a callback's error is heard by nobody
        future.set_exception(error)
        return
    try:
        if store is not None:
            record = _keep(case, record, store)
    except OSError as error:  # no room on the disk: whoever waits hears it
        future.set_exception(error)
        return
    run.progress.finished.add(case.id)
    future.set_result(record)


def _keep(case: Case, record: Record, store: Store) -> Record:
    """Write a record; where it holds what no file can, write that it failed, and why."""
    try:
        write_json(store.record(case), record.to_json())
    except ValueError as error:  # not finite, or no text
        record = failed(case, f"its record cannot be written: {error}")
        write_json(store.record(case), record.to_json())
    # A failed case keeps its checkpoint, from which another run goes on.
    if record.status != "failed":
        checkpoint.remove(store.checkpoint(case))
    return record

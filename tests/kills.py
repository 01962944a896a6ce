"""Workers killed at random moments, twenty for each engine: nothing is lost.

    tox -e faults

Slow, and so beside the other tests. It prints how many were killed.
"""

import os
import random
import signal
import time

import pytest

from flatbench import execution
from flatbench.execution import Machine
from flatbench.execution import run as running
from flatbench.protocols.cases import grid
from flatbench.records.reading import read_one
from flatbench.records.store import Store
from tests import faults, tiny

KILLS = 20
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - else everything else goes first


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    training = {"epochs": faults.EPOCHS, "batch_size": 64}
    folder = tmp_path_factory.mktemp("cases")
    return grid(tiny.protocol(folder, tiny.table(training=training, seeds=[0, 1, 2])))


@pytest.fixture(scope="module")
def undisturbed(cases, tmp_path_factory):
    return faults.finished(cases, Store(tmp_path_factory.mktemp("undisturbed")))


def is_over(run):
    return all(future.done() for future in run.futures.values())


def epochs(run):
    return sum(run.progress.epochs_done.values())


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_twenty_kills(cases, undisturbed, tmp_path, engine, monkeypatch):
    """The grid is trained again and again until so many workers were killed in the middle of it."""
    if engine == "ray":
        pytest.importorskip("ray")
    monkeypatch.setattr(running, "DEATHS", KILLS + 1)  # a worker may be killed as it starts
    chance, killed, grids, resumed = random.Random(0), 0, 0, 0
    words = ["ray::messages"] if engine == "ray" else ["spawn_main"]
    while killed < KILLS:
        grids += 1
        store = Store(tmp_path / str(grids))
        with execution.start(cases, Machine("cpu", workers=2, engine=engine), store) as run:
            while not is_over(run):
                if killed % 2:  # let it make some way first, however slow the machine is today
                    way = epochs(run)
                    faults.wait_until(
                        lambda run=run, way=way: epochs(run) > way or is_over(run), "it goes on"
                    )
                time.sleep(chance.uniform(0, 1))
                workers = faults.processes(*words)
                if engine == "local":
                    workers = sorted(set(workers) & set(faults.children(os.getpid())))
                if workers and killed < KILLS:
                    os.kill(chance.choice(workers), signal.SIGKILL)
                    killed += 1
        assert faults.kept(store, cases) == undisturbed
        records = [read_one(store.record(case)) for case in cases]
        resumed += sum(bool(record.provenance["resumed_after"]) for record in records)
    assert resumed  # not every kill came before the first checkpoint
    said = f"{killed} workers killed in {grids} grids of {len(cases)} cases"
    print(f"\n{engine}: {said}; {resumed} cases went on from a checkpoint, none lost")

"""What befalls a run on this machine: each ends as if nothing had happened, bit for bit.

tests/on_ray.py has the same of a cluster.
"""

import io
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
from concurrent.futures import Future
from dataclasses import replace

import pytest

from flatbench import execution
from flatbench.execution import Machine, local
from flatbench.execution import run as running
from flatbench.execution.engine import Job, WorkerDied
from flatbench.execution.progress import Progress, Run
from flatbench.execution.work import failed
from flatbench.records.reading import read_one
from flatbench.records.store import Store
from tests import faults, synthetic
from tests.faults import PATIENCE, kept, wait_until

MACHINE = Machine("cpu", workers=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cases")


@pytest.fixture(scope="module")
def cases(folder):
    return faults.cases_in(folder)


@pytest.fixture(scope="module")
def undisturbed(cases, folder):
    store = Store(folder / "undisturbed")
    found = faults.finished(cases, store)
    assert found[cases[-1].id]["reason"] == "ArithmeticError: on purpose"
    return found


def kill(run, case, epochs):
    """Kill the worker once a case has come so far."""
    wait_until(lambda: run.progress.epochs_done.get(case.id, 0) >= epochs, f"epoch {epochs}")
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGKILL)


def test_a_killed_worker_costs_nothing(cases, undisturbed, tmp_path):
    """It is killed in the middle of a case, and again as it starts anew."""
    store = Store(tmp_path)
    with execution.start(cases, MACHINE, store) as run:
        kill(run, cases[0], 3)
        wait_until(lambda: run.progress.notes, "the death is noticed")
        wait_until(multiprocessing.active_children, "there is another worker")
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        for case in cases:
            run.futures[case.id].result(timeout=PATIENCE)
        notes = list(run.progress.notes)
    died = f"{cases[0].id}: its worker process died: "
    assert notes[0] == f"{died}killed by SIGKILL (out of memory?); it is tried again"
    # The second kill is another attempt's, or meets a worker that has no case yet.
    goes_on = rf"{re.escape(cases[0].id)}: attempt [23] goes on after epoch \d+"
    assert any(re.fullmatch(goes_on, note) for note in notes), notes
    assert kept(store, cases) == undisturbed


class Fake:
    """An engine whose attempts end as a list says."""

    def __init__(self, *ends):
        self.ends, self.jobs, self.on_epoch = list(ends), [], None

    def submit(self, case, job, on_epoch):
        self.jobs.append(job)
        epochs, end = self.ends.pop(0)
        for number in range(1, epochs + 1):
            on_epoch(number, EPOCH)
        future = Future()
        if isinstance(end, BaseException):
            future.set_exception(end)
        else:
            future.set_result(end)
        return future

    def close(self):
        self.ends.clear()


EPOCH = synthetic.grid(seeds=[0], epochs=1)[0].history[0]


def outcome(case, *ends, store=None):
    """Return what a case comes to where its attempts end so, the notes, and the engine."""
    run, engine = Run({case.id: Future()}, Progress([case])), Fake(*ends)
    job = Job(checkpoint=store.checkpoint(case) if store else None)
    running._begin(run, engine, case, job, store)
    return run.futures[case.id], list(run.progress.notes), engine


DIED = WorkerDied("killed by SIGKILL")


def test_a_case_that_kills_its_worker_is_given_up(cases):
    future, notes, engine = outcome(cases[0], (0, DIED), (0, DIED), (0, DIED))
    record = future.result(timeout=0)
    assert (record.status, record.reason) == (
        "failed",
        "its worker process died 3 times: killed by SIGKILL",
    )
    assert len(notes) == 2
    assert [job.number for job in engine.jobs] == [1, 2, 3]


def test_as_long_as_it_comes_further_it_is_tried_again(cases):
    ends = [(1, DIED), (0, DIED), (2, DIED), (0, DIED), (3, DIED), (0, synthetic.record())]
    assert outcome(cases[0], *ends)[0].result(timeout=0) == synthetic.record()


def test_the_loss_of_a_machine_is_not_the_cases_fault(cases):
    lost = [(0, WorkerDied("its node is gone", is_lost=True))] * 10
    future, notes, _ = outcome(cases[0], *lost, (1, synthetic.record()))
    assert future.result(timeout=0) == synthetic.record()
    assert notes[-1] == f"{cases[0].id}: attempt 11 starts anew"


def test_another_attempt_goes_on_from_the_checkpoint(cases, tmp_path):
    done = (0, synthetic.record())
    _, _, engine = outcome(cases[0], (1, DIED), done, store=Store(tmp_path))
    assert [job.resume for job in engine.jobs] == [False, True]
    _, _, engine = outcome(cases[0], (1, DIED), done)
    assert [job.resume for job in engine.jobs] == [False, False]


def test_what_the_engine_raises_reaches_whoever_waits(cases):
    future, _, _ = outcome(cases[0], (0, OSError("no process can be started")))
    with pytest.raises(OSError, match="no process"):
        future.result(timeout=0)


def test_no_room_on_the_disk_reaches_whoever_waits(cases, tmp_path):
    (tmp_path / "tiny").write_text("a file where the folder should be")
    future, _, _ = outcome(cases[0], (0, synthetic.record()), store=Store(tmp_path))
    with pytest.raises(OSError, match="tiny"):
        future.result(timeout=0)


def test_a_record_that_no_file_can_take_is_a_failed_one(cases, tmp_path):
    """JSON has no NaN; and a reason may name a file whose bytes are no text."""
    store = Store(tmp_path)
    nan = replace(synthetic.record(), sharpness_history={"ascent_sharpness": (float("nan"),)})
    record = outcome(cases[0], (0, nan), store=store)[0].result(timeout=0)
    assert record.status == "failed"
    assert record.reason.startswith("its record cannot be written: ")
    assert read_one(store.record(cases[0])) == record
    stray = failed(cases[0], "there is no folder /data/\udcff\nhere")
    assert stray.reason == r"there is no folder /data/\udcff here"
    assert outcome(cases[0], (0, stray), store=store)[0].result(timeout=0) == stray
    assert read_one(store.record(cases[0])) == stray


def test_half_a_message_is_left_for_later():
    """A worker may be killed, or be looked at, in the middle of writing."""
    record, seen = synthetic.record(), []

    def on_epoch(number, epoch):
        seen.append((number, epoch))

    first = len(pickle.dumps((1, EPOCH)))
    whole = pickle.dumps((1, EPOCH)) + pickle.dumps(record)
    for cut in range(0, len(whole), 97):
        mail, rest = io.BytesIO(whole[:cut]), io.BytesIO(whole)
        seen.clear()
        assert local._deliver(mail, on_epoch) is None
        assert len(seen) == (cut >= first)
        rest.seek(mail.tell())
        assert local._deliver(rest, on_epoch) == record
        assert seen == [(1, EPOCH)]


def command(folder, results):
    return [
        *(sys.executable, "-m", "flatbench", "run", "--protocol", str(folder / "tiny.toml")),
        *("--device", "cpu", "--workers", "2", "--results", str(results)),
    ]


def test_a_killed_run_goes_on_where_it_was(cases, folder, undisturbed, tmp_path):
    """Its workers end with it; what finished is kept, and the rest goes on from checkpoints."""
    first = subprocess.Popen(command(folder, tmp_path), stdout=subprocess.DEVNULL)
    store = Store(tmp_path)
    wait_until(lambda: store.checkpoint(cases[0]).exists(), "a checkpoint is there")
    workers = faults.children(first.pid)
    assert len(workers) >= 2
    first.kill()
    first.wait()
    wait_until(lambda: not set(workers) & set(faults.processes()), "the workers have ended")
    assert not store.record(cases[0]).exists()
    again = subprocess.run(
        command(folder, tmp_path), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert again.returncode == 1, again.stderr  # one case raises
    assert read_one(store.record(cases[0])).provenance["resumed_after"]
    assert kept(store, cases) == undisturbed


def test_a_worker_that_dies_between_two_cases_is_replaced(cases, tmp_path):
    engine = local.Local(["cpu"])
    try:
        for _ in range(2):
            future = engine.submit(cases[2], Job(), lambda *_: None)
            assert future.result(timeout=PATIENCE).reason == "ArithmeticError: on purpose"
            (worker,) = multiprocessing.active_children()
            os.kill(worker.pid, signal.SIGKILL)
            place = engine._free.get()
            wait_until(lambda place=place: not place._pool.active, "the death is noticed")
            engine._free.put(place)
    finally:
        engine.close()
    assert multiprocessing.active_children() == []
    assert engine.submit(cases[2], Job(), lambda *_: None).cancelled()


def test_workers_share_devices_as_asked(monkeypatch):
    made = []
    monkeypatch.setattr(local, "Local", made.append)
    monkeypatch.setattr(running, "cores", lambda: 3)
    case = object()

    def devices(workers, per_gpu, places, cases=9):
        running._engine(Machine(workers=workers, workers_per_gpu=per_gpu), places, [case] * cases)
        return made.pop()

    assert devices(None, 1, ["cpu"]) == ["cpu"] * 3
    assert devices(None, 1, ["cpu"], cases=2) == ["cpu"] * 2
    assert devices(2, 4, ["cpu"]) == ["cpu"] * 2
    assert devices(None, 1, ["cuda:0", "cuda:1"]) == ["cuda:0", "cuda:1"]
    assert devices(None, 2, ["cuda:0", "cuda:1"]) == ["cuda:0", "cuda:1"] * 2
    assert devices(3, 2, ["cuda:0", "cuda:1"]) == ["cuda:0", "cuda:1", "cuda:0"]

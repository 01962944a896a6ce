"""Worker processes: the same records however many; deaths, errors and early ends stay contained."""

import io
import itertools
import multiprocessing
import os
import pickle
import signal
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from flatbench import execution
from flatbench.errors import UsageError
from flatbench.execution import Machine, local
from flatbench.execution import run as running
from flatbench.execution.engine import Job
from flatbench.execution.progress import Progress, Run, follow
from flatbench.files import write_json
from flatbench.protocols.cases import Case, grid
from flatbench.records.reading import read
from flatbench.records.record import Epoch, Record
from flatbench.records.store import Store
from tests import synthetic, tiny
from tests.faults import PATIENCE, wait_until


def gone(pid):
    """Whether a process, which may be nobody's child any more, runs no longer."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] == "Z"  # dead, and not yet reaped
    except OSError:
        return False


def endless(folder, name):
    """A case that does not end while a test runs."""
    training = {"epochs": 1_000_000, "batch_size": 64}
    whole = tiny.table(training=training, optimizers={"sgd": tiny.SGD})
    return grid(tiny.protocol(folder, whole, name))[0]


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and keeps what was written to it."""

    def isatty(self):
        return True


class Slow:
    """A place whose pool says late that the task is over: the record is long there."""

    def begin(self, case, job, mail):
        record = synthetic.record(seed=case.seed)
        with mail.open("ab") as out:
            pickle.dump(record, out)
        task = Future()
        threading.Timer(3 * local.LOOK, task.set_result, [None]).start()
        return task

    def end(self):
        """There is no process."""


def test_a_record_that_comes_before_the_pool_says_so_is_kept(tmp_path):
    (case, *_) = grid(tiny.protocol(tmp_path))
    engine = local.Local(["cpu"])
    engine._free.get()
    engine._free.put(Slow())
    try:
        found = engine.submit(case, Job(), lambda *_: None).result(timeout=PATIENCE)
    finally:
        engine.close()
    assert found == synthetic.record(seed=case.seed)


# --- two workers


@dataclass
class Two:
    cases: list[Case]
    store: Store
    records: list[Record]
    children: int
    left: list[object]
    screen: str
    piped: str


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Four cases by as many workers as there are cores, on a machine with two."""
    folder = tmp_path_factory.mktemp("two")
    cases = grid(tiny.protocol(folder, tiny.table(seeds=[0, 1])))
    store = Store(folder / "results", keep_weights=True)
    screen, pipe = Terminal(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "cores", lambda: 2)
        patch.setenv("COLUMNS", "200")
        with execution.start(cases, Machine("cpu"), store) as run:
            wait_until(lambda: len(multiprocessing.active_children()) > 1, "two workers are there")
            records = [follow(run, cases[0], screen)]
            records += [follow(run, case, pipe) for case in cases[1:-1]]
            children = len(multiprocessing.active_children())
            records.append(follow(run, cases[-1], pipe))
    left = multiprocessing.active_children()
    return Two(cases, store, records, children, left, screen.getvalue(), pipe.getvalue())


def test_as_many_workers_as_cores_and_none_is_left(two):
    assert two.children == 2
    assert two.left == []


def test_each_record_is_that_of_its_case(two):
    assert [record.id for record in two.records] == [case.id for case in two.cases]
    assert [record.status for record in two.records] == ["completed"] * 4
    assert len({record.train_loss for record in two.records}) == 4


def test_workers_are_deterministic_with_one_thread(two):
    for record in two.records:
        assert record.provenance["threads"] == 1
        assert record.provenance["deterministic"] is True


def test_records_and_weights_lie_in_the_store(two):
    for case, record in zip(two.cases, two.records, strict=True):
        assert two.store.record(case) == (
            two.store.results / f"tiny/records/resnet18-{case.optimizer}-seed{case.seed}.json"
        )
        assert read(two.store.record(case)) == [record]
        assert two.store.weights(case).exists()
        assert not two.store.checkpoint(case).exists()  # a finished case needs none


def test_a_terminal_sees_the_line_and_anything_else_nothing(two):
    assert "\r0/4 cases · " in two.screen
    assert two.screen.endswith("\r\x1b[K")  # and is wiped at the end
    assert "\n" not in two.screen
    assert two.piped == ""


def test_resuming_a_finished_run_starts_no_worker(two, monkeypatch):
    """Also: what the machines are is asked once for all cases; a cluster runs tasks for it."""
    asked, machines = [], local.Local.machines
    monkeypatch.setattr(local.Local, "machines", lambda self: asked.append(self) or machines(self))
    store = Store(two.store.results, resume=True)
    with execution.start(two.cases, Machine("cpu", workers=2), store) as run:
        assert [run.futures[case.id].result(timeout=0) for case in two.cases] == two.records
        assert multiprocessing.active_children() == []
        assert run.progress.line() == "4/4 cases · time left unknown"
    assert len(asked) == 1


# --- one worker, and everything that can go wrong


def forty(folder):
    """A data set whose images, 40x40, are larger than a VGG takes."""
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 40), dtype=np.uint8)
    labels = np.arange(50) % 10
    path = folder / "forty.npz"
    np.savez(path, x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    return path


@dataclass
class Trouble:
    store: Store
    cases: dict[str, Case]
    records: dict[str, Record] = field(default_factory=dict)
    on_disk: dict[str, list[str]] = field(default_factory=dict)  # files there as a case ended
    stopped: multiprocessing.process.BaseProcess | None = None
    unfinished: bool = False
    epochs_after_leaving: int = 0
    threads_left: int = 0


# The check before the training has two images, and a batch has more.
SMALL_BATCHES = """
from torch import nn

class Net(nn.Linear):
    def __init__(self, classes):
        super().__init__(1600, classes)

    def forward(self, x):
        return super().forward(x.flatten(0 if len(x) > 2 else 1))
"""


@pytest.fixture(scope="module")
def trouble(tmp_path_factory):
    """One worker takes these cases in turn; it is killed twice, and the block left at the last."""
    folder = tmp_path_factory.mktemp("trouble")
    data = forty(folder)
    (folder / "small.py").write_text(SMALL_BATCHES)
    small = {"name": "small", "build": "./small.py:Net"}
    whole = tiny.table(
        data={"name": "forty", "source": {"npz": data.name}},
        training={"epochs": 1, "batch_size": 25},
        model={"width": 4, "architectures": [small, "resnet18"]},
        optimizers={"sgd": tiny.SGD},
    )
    too_large, vanished = grid(tiny.protocol(folder, whole, "forty"))
    sgd, sam = grid(tiny.protocol(folder))
    cases = {
        "killed": endless(folder, "killed"),
        "too large": too_large,
        "sgd": sgd,
        "signalled": endless(folder, "signalled"),
        "vanished": vanished,
        "sam": sam,
        "left": endless(folder, "left"),
    }
    made = Trouble(Store(folder / "results"), cases)
    threads = threading.active_count()

    def await_epoch(name):
        epochs = run.progress.epochs_done
        wait_until(lambda: epochs.get(cases[name].id, 0) > 0, f"{name} is under way")
        (worker,) = multiprocessing.active_children()
        return worker

    def await_record(*names):
        for name in names:
            made.records[name] = run.futures[cases[name].id].result(timeout=PATIENCE)
            files = made.store.results.rglob("*.json")
            made.on_disk[name] = sorted(path.relative_to(folder).parts[1] for path in files)

    with (
        pytest.MonkeyPatch.context() as patch,
        execution.start(list(cases.values()), Machine("cpu", workers=1), made.store) as run,
    ):
        patch.setattr(running, "DEATHS", 1)  # tests/test_faults.py has a second attempt
        os.kill(await_epoch("killed").pid, signal.SIGKILL)
        await_record("killed", "too large", "sgd")
        worker = await_epoch("signalled")
        data.unlink()
        os.kill(worker.pid, signal.SIGRTMIN + 1)
        await_record("signalled", "vanished", "sam")
        made.stopped = await_epoch("left")
        epochs_before_leaving = run.progress.epochs_done[cases["left"].id]
    made.epochs_after_leaving = run.progress.epochs_done[cases["left"].id] - epochs_before_leaving
    made.unfinished = not run.futures[cases["left"].id].done()
    made.threads_left = threading.active_count() - threads
    return made


def test_a_worker_that_is_killed_fails_its_own_case(trouble):
    record = trouble.records["killed"]
    assert record.id == trouble.cases["killed"].id
    assert record.status == "failed"
    assert record.reason == "its worker process died: killed by SIGKILL (out of memory?)"
    assert (record.test_accuracy, record.history) == (None, ())
    assert record.provenance["cell_hash"] == trouble.cases["killed"].cell_hash()


def test_a_signal_without_a_name_is_told_by_its_number(trouble):
    record = trouble.records["signalled"]
    number = signal.SIGRTMIN + 1
    assert (record.status, record.reason) == (
        "failed",
        f"its worker process died: killed by signal {number}",
    )


def test_an_exception_fails_its_own_case(trouble):
    record = trouble.records["too large"]
    assert record.status == "failed"
    assert record.reason is not None
    assert record.reason.startswith("RuntimeError: ")
    assert "shapes cannot be multiplied" in record.reason
    assert len(record.reason.splitlines()) == 1


def test_data_that_vanish_fail_their_own_case(trouble):
    record = trouble.records["vanished"]
    assert record.status == "failed"
    assert record.reason is not None
    assert record.reason.startswith("data.source.npz: there is no file ")


def test_the_others_are_what_they_are_without_trouble(trouble, two):
    """Also: with one worker or two, bit for bit."""
    for name, expected in (("sgd", two.records[0]), ("sam", two.records[1])):
        found = trouble.records[name].without_timings()
        other = expected.without_timings()
        # of the code's version, which may change while a developer's tests run
        provenance, of_other = found.pop("provenance"), other.pop("provenance")
        assert found == other
        for key in ("cell_hash", "common_hash", "torch", "device", "threads", "deterministic"):
            assert provenance[key] == of_other[key]


def test_a_record_is_written_as_soon_as_it_is_there(trouble):
    order = [trouble.on_disk[name] for name in trouble.records]
    assert [len(files) for files in order] == [1, 2, 3, 4, 5, 6]
    for name, record in trouble.records.items():
        assert read(trouble.store.record(trouble.cases[name])) == [record]
    assert not trouble.store.record(trouble.cases["left"]).exists()


def test_leaving_the_block_ends_the_worker_at_once(trouble):
    assert trouble.unfinished
    assert trouble.stopped is not None
    # it did not end by itself: pebble 5.0 kills it, and later ones have it exit with that status
    assert abs(trouble.stopped.exitcode) == signal.SIGTERM
    assert trouble.epochs_after_leaving <= 5  # what was under way and in the pipe
    assert multiprocessing.active_children() == []
    assert trouble.threads_left == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_worker_ends_by_itself_when_its_parent_is_killed(tmp_path):
    case = endless(tmp_path, "orphan")
    readable, writable = os.pipe()
    parent = os.fork()
    if parent == 0:
        try:
            with execution.start([case], Machine("cpu", workers=1)) as run:
                wait_until(lambda: bool(run.progress.epochs_done), "the case is under way")
                (worker,) = multiprocessing.active_children()
                os.write(writable, str(worker.pid).encode())
                run.futures[case.id].result(timeout=PATIENCE)
        finally:
            os._exit(1)
    os.close(writable)
    worker_pid = int(os.read(readable, 20) or b"0")
    os.close(readable)
    assert worker_pid, "the parent came to no worker"
    assert not gone(worker_pid)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    wait_until(lambda: gone(worker_pid), "the worker has ended")


# --- before anything starts


def refusal(cases, store=None, **options):
    with pytest.raises(UsageError) as caught, execution.start(cases, Machine(**options), store):
        pytest.fail("started")
    assert multiprocessing.active_children() == []
    (line,) = str(caught.value).splitlines()
    return line


def test_what_cannot_run_is_refused_before_a_worker_starts(tmp_path):
    cases = grid(tiny.protocol(tmp_path))
    assert refusal(cases, device="cpu", workers=0) == (
        "--workers must be a whole number of at least 1, got 0"
    )
    assert refusal(cases, device="tpu") == "--device must be cpu, cuda, cuda:N or auto, got 'tpu'"
    cifar = grid(tiny.protocol(tmp_path, tiny.table(data={"name": "cifar10"})))
    assert refusal(cases + cifar, device="cpu", data_dir=tmp_path).startswith(
        f"data set cifar10: not found (or its checksum is wrong) in {tmp_path}; "
    )
    few = grid(tiny.protocol(tmp_path, tiny.table(data={"name": "digits", "train_examples": 3})))
    assert refusal(few, device="cpu").startswith("data.train_examples = 3 must split")


def test_a_record_that_cannot_be_reused_is_refused(tmp_path):
    cases = grid(tiny.protocol(tmp_path))
    store = Store(tmp_path, resume=True)
    store.record(cases[0]).parent.mkdir(parents=True)
    store.record(cases[0]).write_text("{")
    line = refusal(cases, device="cpu", store=store)
    assert line.startswith(f"{store.record(cases[0])}: is not JSON: ")


def test_a_store_takes_what_would_come_out_the_same(tmp_path):
    case = grid(tiny.protocol(tmp_path))[0]
    kept = synthetic.record("sgd", "resnet18", 0, protocol="tiny", provenance={"key": "k"})
    store = Store(tmp_path, resume=True)
    assert store.finished(case, "k") is None  # nothing there yet
    write_json(store.record(case), kept.to_json())
    assert store.finished(case, "k") == kept
    assert store.finished(case, "another") is None
    assert Store(tmp_path, resume=False).finished(case, "k") is None
    weighing = Store(tmp_path, resume=True, keep_weights=True)
    assert weighing.finished(case, "k") is None
    weighing.weights(case).touch()
    assert weighing.finished(case, "k") == kept
    for status, reused in (("diverged", True), ("failed", False)):
        other = synthetic.record("sgd", status=status, protocol="tiny", provenance={"key": "k"})
        write_json(store.record(case), other.to_json())
        assert store.finished(case, "k") == (other if reused else None)


def test_places(monkeypatch):
    assert execution.places("cpu") == ["cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert execution.places("cuda") == execution.places("auto") == ["cuda:0", "cuda:1", "cuda:2"]
    assert execution.places("cuda:1") == ["cuda:1"]
    assert execution.places("cpu") == ["cpu"]


def test_cores_are_those_this_process_may_use(monkeypatch):
    assert 1 <= execution.cores() <= (os.cpu_count() or 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 9}, raising=False)
    assert execution.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert execution.cores() == 7


# --- progress

EPOCH = Epoch(
    train_loss=1.23456,
    train_accuracy=50.0,
    test_loss=1.5,
    test_accuracy=67.891,
    sam_sharpness=0.1,
    learning_rate=0.1,
    seconds=1.0,
    gradient_evaluations=4,
)


@pytest.fixture
def progress(tmp_path, monkeypatch):
    """sgd and sgd+sam of 2 epochs, and sgd-2x of 4; begun 40 seconds ago."""
    whole = tiny.table()
    whole["optimizers"]["sgd-2x"] = {**tiny.SGD, "epochs": 4}
    monkeypatch.setattr(time, "monotonic", lambda: 140.0)
    return Progress(grid(tiny.protocol(tmp_path, whole)), started=100.0)


def ids(progress):
    return [case.id for case in progress.cases]


def test_before_the_first_epoch_the_time_left_is_unknown(progress):
    assert progress.seconds_left() is None
    assert progress.line() == "0/3 cases · time left unknown"


def test_the_time_left_goes_by_gradient_evaluations(progress):
    sgd, sam, double = ids(progress)
    # in epochs of one gradient a batch: 2 + 2·2 + 4 = 10
    progress.epochs_done[sgd] = 1
    assert progress.seconds_left() == 40 * 9
    progress.epochs_done |= {sam: 1, double: 1}
    assert progress.seconds_left() == 40 * 6 / 4
    progress.finished.add(sgd)
    assert progress.seconds_left() == 40 * 5 / 5
    # a case that failed early is over too
    progress.finished |= {sam, double}
    assert progress.seconds_left() == 0


def test_what_was_reused_cost_no_time(progress):
    _, sam, double = ids(progress)
    progress.finished.add(sam)
    progress.reused.add(sam)
    assert progress.seconds_left() is None
    progress.epochs_done[double] = 2
    assert progress.seconds_left() == 40 * 4 / 2
    assert progress.line().startswith("1/3 cases")


def test_the_line_tells_cases_epoch_loss_accuracy_and_time_left(progress):
    sgd, sam, _ = ids(progress)
    progress.finished.add(sgd)
    progress.epochs_done |= {sgd: 2, sam: 1}
    progress.latest = (progress.cases[1], 1, EPOCH)
    assert progress.line() == (
        "1/3 cases · tiny/resnet18/sgd+sam/seed0 epoch 1/2 · loss 1.235 · accuracy 67.9 % · "
        "1:00 left"
    )


@pytest.mark.parametrize(
    ("elapsed", "shown"), [(4.2, "0:04"), (59.6, "1:00"), (605, "10:05"), (3723.4, "1:02:03")]
)
def test_durations(progress, monkeypatch, elapsed, shown):
    monkeypatch.setattr(time, "monotonic", lambda: 100.0 + elapsed)
    progress.finished |= {ids(progress)[0]}
    progress.epochs_done[ids(progress)[2]] = 3  # half of the ten: as long again
    assert progress.line().endswith(f"{shown} left")


# --- the live line


class Watched(Terminal):
    """A terminal that lets the case end once it has seen so many lines."""

    def __init__(self, future, lines):
        super().__init__()
        self._future, self._countdown = future, itertools.count(lines, -1)

    def flush(self):
        super().flush()
        if next(self._countdown) == 1:
            self._future.set_result(synthetic.record())


@pytest.fixture
def run(progress, monkeypatch):
    monkeypatch.setenv("COLUMNS", "25")
    return Run({case.id: Future() for case in progress.cases}, progress)


def test_the_line_is_cut_to_the_width_of_the_terminal(run):
    case = run.progress.cases[0]
    screen = Watched(run.futures[case.id], lines=1)
    assert follow(run, case, screen) == synthetic.record()
    assert screen.getvalue() == "\r0/3 cases · time left un\x1b[K\r\x1b[K"


def test_the_line_is_drawn_anew_until_the_case_ends(run):
    case = run.progress.cases[0]
    screen = Watched(run.futures[case.id], lines=3)
    follow(run, case, screen)
    assert screen.getvalue().count("\r0/3 cases") == 3


def test_below_a_line_that_the_follower_did_not_write(run):
    """One line down, and at the end back up to the column where pytest goes on."""
    case = run.progress.cases[0]
    screen = Watched(run.futures[case.id], lines=1)
    follow(run, case, screen, below_column=12)
    written = screen.getvalue()
    assert written.startswith("\n\r0/3 cases")
    assert written.endswith("\r\x1b[K\x1b[1A\x1b[12G")


def test_nothing_is_shown_of_a_case_that_is_done(run):
    case = run.progress.cases[0]
    run.futures[case.id].set_result(synthetic.record())
    screen = Terminal()
    follow(run, case, screen, below_column=3)
    assert screen.getvalue() == ""


def test_nothing_is_shown_where_there_is_no_terminal(run):
    case = run.progress.cases[0]
    pipe = io.StringIO()
    timer = threading.Timer(0.1, run.futures[case.id].set_result, [synthetic.record()])
    timer.start()
    assert follow(run, case, pipe) == synthetic.record()
    timer.join()
    assert pipe.getvalue() == ""


def test_an_error_of_the_feeding_thread_reaches_whoever_waits(run):
    case = run.progress.cases[0]
    run.futures[case.id].set_exception(OSError("no space left on device"))
    with pytest.raises(OSError, match="no space left"):
        follow(run, case, io.StringIO())


def test_a_record_to_be_reused_that_is_none_is_one_clear_line(tmp_path):
    case = grid(tiny.protocol(tmp_path), optimizers=["sgd"])[0]
    store = Store(tmp_path, resume=True)
    store.record(case).parent.mkdir(parents=True)
    store.record(case).write_text('{"benchmarks": []}')
    with pytest.raises(UsageError, match=r"sgd-seed0\.json: must hold 1 record, got 0"):
        store.finished(case, "key")

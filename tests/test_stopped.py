"""A run that is stopped, by Ctrl-C, a signal or `-x`, keeps what has ended, and nothing hangs."""

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flatbench import cli, process
from flatbench.records import reading
from tests import tiny
from tests.test_grid import ROOT, command

PATIENCE = 300  # seconds, on a machine that does other things as well
ENDLESS = {**tiny.SGD, "epochs": 1_000_000}


@pytest.fixture(scope="module")
def protocol(tmp_path_factory):
    """Two cases that end, and between them one that doesn't."""
    rows = {"first": tiny.SGD, "endless": ENDLESS, "last": tiny.SGD}
    return tiny.write(tmp_path_factory.mktemp("stopped"), tiny.table(optimizers=rows))


@contextlib.contextmanager
def started(arguments, **options):
    """A process, which is killed if the test ends before it."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(arguments, cwd=ROOT, **(pipes | options)) as running:
        try:
            yield running
        finally:
            running.kill()


def flatbench(protocol, results, *options):
    fixed = ["--protocol", str(protocol), "--results", str(results), "--device", "cpu"]
    return [sys.executable, "-m", "flatbench", "run", *fixed, *options]


def wait_until(condition, running=None):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert running is None or running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def record(results, row):
    return results / "tiny" / "records" / f"resnet18-{row}-seed0.json"


def children(pid):
    """Return the processes that a process, one of its threads, has started."""
    return " ".join(p.read_text() for p in Path(f"/proc/{pid}/task").glob("*/children")).split()


def is_alive(pid):
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.fixture(scope="module")
def stopped(protocol, tmp_path_factory):
    """A grid, stopped when two of its three cases have ended, where a whole grid's files are."""
    results = tmp_path_factory.mktemp("results")
    (results / "tiny").mkdir()
    for name in ("benchmark.json", "report.md"):
        (results / "tiny" / name).write_text("of a whole grid")
    files = [record(results, row) for row in ("first", "last")]
    with started(command(protocol, results, "--workers", "2", "-v")) as running:
        wait_until(lambda: all(file.exists() for file in files), running)
        running.send_signal(signal.SIGINT)
        out, error = running.communicate(timeout=PATIENCE)
    return running.returncode, out, error, results


def test_a_stopped_grid_exits_2_without_a_traceback(stopped):
    code, out, error, _ = stopped
    assert code == pytest.ExitCode.INTERRUPTED, out + error
    assert "Traceback" not in out + error
    assert "pytest_benchmark" not in out + error
    assert "StatisticsError" not in out + error


def test_the_cases_that_ended_are_saved_and_shown(stopped):
    """The one after the case that is waited for, too."""
    _, out, _, results = stopped
    saved = reading.read(results / "tiny" / "selection.json")
    assert [(r.optimizer, r.status) for r in saved] == [
        ("first", "completed"),
        ("last", "completed"),
    ]
    assert "test_generalization[tiny-resnet18-last-seed0] PASSED" in out
    table = out[out.index("### Test accuracy") :]
    assert "| first" in table
    assert "| last" in table


def test_a_stopped_grid_leaves_the_files_of_the_whole_grid_alone_and_says_so(stopped):
    _, out, _, results = stopped
    for name in ("benchmark.json", "report.md"):
        assert (results / "tiny" / name).read_text() == "of a whole grid"
    assert "| first" in (results / "tiny" / "selection.md").read_text()
    assert "stopped when 2 of 3 cases had been tested: selection.json and selection.md" in out
    assert "not checked: 1 of 3 cases" in out


def test_sigterm_stops_a_grid_as_ctrl_c_does(stopped, protocol, tmp_path):
    *_, results = stopped
    (results / "tiny" / "selection.json").unlink(missing_ok=True)
    arguments = command(protocol, results, "-v", "--resume")
    with (
        (tmp_path / "out").open("w") as out,
        started(arguments, stdout=out, stderr=out) as running,
    ):
        wait_until(lambda: "first-seed0] PASSED" in (tmp_path / "out").read_text(), running)
        running.terminate()
        assert running.wait(PATIENCE) == pytest.ExitCode.INTERRUPTED
    said = (tmp_path / "out").read_text()
    assert "ended by SIGTERM" in said
    assert "Traceback" not in said
    # a signal between two tests, not in a wait, leaves those to come out
    saved = reading.read(results / "tiny" / "selection.json")
    assert saved[0].optimizer == "first"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc")
def test_sigterm_ends_a_run_in_one_line_and_its_workers(protocol, tmp_path):
    checkpoint = tmp_path / "tiny/checkpoints/resnet18-endless-seed0.pt"
    with started(flatbench(protocol, tmp_path, "--optimizers", "endless")) as running:
        wait_until(checkpoint.exists, running)
        workers = children(running.pid)
        assert workers
        assert (tmp_path / "tiny" / ".lock").exists()
        running.terminate()
        out, error = running.communicate(timeout=PATIENCE)
    assert (running.returncode, out, error) == (143, "", "flatbench: ended by SIGTERM\n")
    # multiprocessing's resource tracker, one of them, ends a moment after its parent
    wait_until(lambda: not any(map(is_alive, workers)))
    assert checkpoint.exists()
    assert not record(tmp_path, "endless").exists()
    assert not (tmp_path / "tiny" / ".lock").exists()


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (signal.SIGINT, "interrupted"),
        (signal.SIGTERM, "ended by SIGTERM"),
        (signal.SIGHUP, "ended by SIGHUP"),
    ],
)
def test_each_signal_has_its_line_and_its_exit_code(monkeypatch, capsys, number, line):
    monkeypatch.setattr(cli, "_list", lambda options: signal.raise_signal(number))
    before = signal.getsignal(number)
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    signal.signal(number, usual)  # the tests themselves may run under nohup
    try:
        assert cli.main(["list"]) == 128 + number
    finally:
        signal.signal(number, before)
    assert capsys.readouterr() == ("", f"flatbench: {line}\n")


def test_a_signal_that_is_ignored_stays_so():
    """As nohup has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with process.ended_by_signals():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_does_not_break_into_the_ending():
    ended = []

    def run():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
            ended.append("in order")

    with pytest.raises(process.Ended, match="ended by SIGTERM"), process.ended_by_signals():
        run()
    assert ended == ["in order"]

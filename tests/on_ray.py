"""Cases on a Ray cluster of two nodes on this machine, one fault each.

    tox -e ray

Each ends with every record there once and, timings aside, bit for bit that of a run of this
machine's own engine that nothing disturbed.
"""

import os
import re
import signal
import subprocess
import sys

import pytest

from flatbench import execution
from flatbench.errors import UsageError
from flatbench.execution import Machine, node
from flatbench.execution import ray as engine
from flatbench.protocols.cases import grid
from flatbench.records.store import Store
from tests import faults, tiny
from tests.faults import PATIENCE, kept, wait_until

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - else everything else goes first
ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cases")


@pytest.fixture(scope="module")
def cases(folder):
    return faults.cases_in(folder)


@pytest.fixture(scope="module")
def undisturbed(cases, folder):
    """The records of the local engine."""
    return faults.finished(cases, Store(folder / "undisturbed"))


@pytest.fixture(scope="module")
def cluster():
    """A head without room for cases, and two nodes with room for one each."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    made.add_node(num_cpus=1)
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@pytest.fixture
def machine(cluster):
    return Machine("cpu", engine="ray", address=cluster.address)


def workers():
    return faults.processes("ray::messages")


def finish(run, cases):
    return [run.futures[case.id].result(timeout=PATIENCE) for case in cases]


def under_way(run, case, epochs=3):
    wait_until(
        lambda: run.progress.epochs_done.get(case.id, 0) >= epochs, f"{case.id} is under way"
    )


@pytest.fixture(params=["shared", "streamed"])
def place(request, monkeypatch):
    """Whether the nodes see the folder of the results."""
    if request.param == "streamed":
        monkeypatch.setattr(engine.Ray, "_mark", lambda self, job: None)


def test_the_records_are_those_of_the_local_engine(cases, machine, undisturbed, tmp_path):
    """One of the cases raises: its record says so, and nobody tries it again."""
    store = Store(tmp_path)
    with execution.start(cases, machine, store) as run:
        *_, failed = finish(run, cases)
        assert list(run.progress.notes) == []
    assert kept(store, cases) == undisturbed
    assert (failed.status, failed.reason) == ("failed", "ArithmeticError: on purpose")
    # and a second run takes what is there
    again = Store(tmp_path, resume=True)
    with execution.start(cases[:2], machine, again) as run:
        assert run.progress.reused == {case.id for case in cases[:2]}


def test_a_killed_worker(cases, machine, undisturbed, tmp_path, place):
    store = Store(tmp_path, keep_weights=True)
    with execution.start(cases, machine, store) as run:
        under_way(run, cases[0])
        for pid in workers():
            os.kill(pid, signal.SIGKILL)
        finish(run, cases)
        notes = list(run.progress.notes)
    assert any("its worker process died: WorkerCrashedError" in note for note in notes)
    assert any("attempt 2 goes on after epoch " in note for note in notes)
    for case in cases[:2]:
        assert store.weights(case).exists()
        store.weights(case).unlink()
    assert kept(store, cases) == undisturbed


def test_a_lost_node(cases, cluster, machine, undisturbed, tmp_path, place):
    store = Store(tmp_path)
    with execution.start(cases, machine, store) as run:
        under_way(run, cases[0])
        lost = next(node for node in cluster.worker_nodes)
        cluster.remove_node(lost, allow_graceful=False)
        cluster.add_node(num_cpus=1)
        finish(run, cases)
        notes = list(run.progress.notes)
    assert any("NodeDiedError" in note for note in notes)
    assert kept(store, cases) == undisturbed


def test_a_node_with_another_flatbench_says_so(cases, machine, monkeypatch):
    monkeypatch.setattr(node, "source_hash", lambda: "0123456789ab")
    with execution.start(cases[:1], machine) as run:
        (record,) = finish(run, cases[:1])
    assert record.status == "failed"
    assert re.fullmatch(
        r"flatbench on \S+ must have the driver's sources 0123456789ab, got [0-9a-f]{12}",
        record.reason,
    )


def test_leaving_the_block_cancels_what_runs(cases, machine, tmp_path):
    store = Store(tmp_path)
    with execution.start(cases, machine, store) as run:
        under_way(run, cases[0])
        assert workers()
    wait_until(lambda: not workers(), "the tasks have ended")
    assert all(not run.futures[case.id].done() for case in cases[:2])
    assert not list(tmp_path.rglob(".shared-*"))


def command(folder, results, *options):
    return [
        *(sys.executable, "-m", "flatbench", "run", "--protocol", str(folder / "tiny.toml")),
        *("--device", "cpu", "--engine", "ray", "--results", str(results), *options),
    ]


def test_a_killed_driver(cases, folder, cluster, undisturbed, tmp_path):
    options = command(folder, tmp_path, "--address", cluster.address)
    driver = subprocess.Popen(options, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    store = Store(tmp_path)
    wait_until(
        lambda: any(store.checkpoint(cases[0]).parent.glob("*.pt*")), "a checkpoint is there"
    )
    driver.kill()
    driver.wait()
    wait_until(lambda: not workers(), "its tasks have ended")
    assert not store.record(cases[0]).exists()
    again = subprocess.run(options, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert again.returncode == 1, again.stderr  # one case raises
    assert kept(store, cases) == undisturbed


def test_a_cluster_of_ones_own_ends_with_the_run(folder, undisturbed, tmp_path):
    """Also: interrupted as by Ctrl-C."""
    before = set(faults.processes("raylet"))
    options = command(folder, tmp_path, "--workers", "2")
    driver = subprocess.Popen(options, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(workers, "a case is under way")
    assert set(faults.processes("raylet")) > before
    driver.send_signal(signal.SIGINT)
    _, said = driver.communicate(timeout=PATIENCE)
    assert (driver.returncode, said.splitlines()[-1]) == (130, "flatbench: interrupted")
    wait_until(lambda: set(faults.processes("raylet")) <= before, "the cluster has ended")


def refusal(cases, **options):
    with pytest.raises(UsageError) as caught, execution.start(cases, Machine(**options)):
        pytest.fail("started")
    (line,) = str(caught.value).splitlines()
    return line


def test_what_cannot_run_is_refused(cases, tmp_path):
    assert refusal(cases, device="cuda:0", engine="ray") == (
        "--device must be cpu, cuda or auto with --engine ray, got 'cuda:0'"
    )
    assert refusal(cases, device="cuda", engine="ray") == (
        "--device = 'cuda': Ray finds no GPU on this machine"
    )

    def unreachable(**options):
        raise RuntimeError("Failed to connect to GCS.")

    with pytest.MonkeyPatch.context() as patch:  # it takes Ray a minute to say so
        patch.setattr(ray, "init", unreachable)
        assert refusal(cases, device="cpu", engine="ray", address="127.0.0.1:1") == (
            "--address must be that of a Ray cluster that runs, got '127.0.0.1:1'"
        )
    assert refusal(cases, device="cpu", engine="ray", address="ray://here:1").startswith(
        "--address must be auto or HOST:PORT, got ray://here:1: Ray Client carries no streams"
    )
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "fails.py").write_text(faults.FAILS, encoding="utf-8")
    outside = {"optimizer": "../fails.py:Fails", "lr": 0.1}
    (case,) = grid(tiny.protocol(inner, tiny.table(optimizers={"fails": outside})))
    assert refusal([case], device="cpu", engine="ray").startswith(
        f"protocol 'tiny': with --engine ray a file must lie in the protocol's folder {inner}, got "
    )

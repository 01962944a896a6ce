"""The folder of results: one run at a time, and weights that are those of their record."""

import subprocess
import sys

import pytest

from flatbench import cli
from flatbench.errors import UsageError
from flatbench.execution import Machine
from flatbench.files import write_json
from flatbench.protocols.cases import grid
from flatbench.records.store import Store, key_of_weights
from flatbench.study import runs
from tests import synthetic, tiny
from tests.test_grid import run

HOLD = """
import sys
from pathlib import Path
from flatbench.protocols.cases import grid
from flatbench.protocols.reading import load
from flatbench.records.store import Store

with Store(Path(sys.argv[2])).held(grid(load(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def cases(tmp_path):
    return grid(tiny.protocol(tmp_path))


@pytest.fixture
def other_run(tmp_path, cases):
    """A process that holds the folder of the cases in `results`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "tiny.toml"), str(tmp_path / "results")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_folder_that_another_run_holds_is_refused_in_one_line(tmp_path, other_run, capsys):
    where = ["--results", str(tmp_path / "results"), "--device", "cpu"]
    assert cli.main(["run", "--protocol", str(tmp_path / "tiny.toml"), *where]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    folder = tmp_path / "results" / "tiny"
    assert error.startswith(f"flatbench: {folder}: process {other_run.pid} on ")
    assert error.endswith(
        " trains into this folder; wait for its end, or give other --results (reports take several "
        "folders)\n"
    )
    assert len(error.splitlines()) == 1
    assert not (folder / "records").exists()


def test_studies_and_grids_are_refused_too(tmp_path, cases, other_run):
    store = Store(tmp_path / "results")
    with pytest.raises(UsageError, match="trains into this folder"):
        runs.train(cases, Machine("cpu"), store)
    refused = run(tmp_path / "tiny.toml", tmp_path / "results")
    assert refused.code == pytest.ExitCode.USAGE_ERROR
    assert len([x for x in refused.text.splitlines() if "trains into this folder" in x]) == 1
    assert "Traceback" not in refused.text
    assert not (tmp_path / "results" / "tiny" / "records").exists()


def test_a_run_that_is_killed_holds_nothing(tmp_path, cases, other_run):
    store = Store(tmp_path / "results")
    with pytest.raises(UsageError, match="trains into this folder"), store.held(cases):
        pass
    other_run.kill()
    other_run.wait()
    with store.held(cases):
        assert (tmp_path / "results" / "tiny" / ".lock").exists()


def test_another_protocols_folder_is_another(tmp_path, other_run):
    with Store(tmp_path / "results").held(grid(tiny.protocol(tmp_path, name="other"))):
        pass


def test_holding_leaves_nothing_behind(tmp_path, cases):
    store = Store(tmp_path / "deep" / "results")
    for _ in range(2):
        with (
            store.held(cases),
            pytest.raises(UsageError, match="trains into this folder"),
            store.held(cases),
        ):
            pass
        assert not (tmp_path / "deep").exists()
    with store.held(cases):
        store.record(cases[0]).parent.mkdir()
    assert [path.name for path in (tmp_path / "deep" / "results" / "tiny").iterdir()] == ["records"]


def test_a_lock_whose_file_its_holder_has_removed_meanwhile_is_taken_anew(
    tmp_path, cases, monkeypatch
):
    """A run opens the file just before its holder removes it: the lock would be on no name."""
    import fcntl

    store, real, calls = Store(tmp_path / "results"), fcntl.flock, []

    def removed_meanwhile(handle, operation):
        if not calls:
            (tmp_path / "results" / "tiny" / ".lock").unlink()
        calls.append(handle)
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    with store.held(cases):
        assert len(calls) == 2
        with pytest.raises(UsageError, match="trains into this folder"), store.held(cases):
            pass


def test_a_file_system_without_locks_is_warned_of(tmp_path, cases, monkeypatch):
    import fcntl

    def no_locks(handle, operation):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    says = r"tiny/\.lock: cannot be locked, nothing keeps a second run off: No locks available"
    with pytest.warns(RuntimeWarning, match=says), Store(tmp_path / "results").held(cases):
        pass


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, cases):
    (tmp_path / "results").write_text("a file")
    with (
        pytest.raises(UsageError, match="results/tiny: cannot be written to: Not a directory"),
        Store(tmp_path / "results").held(cases),
    ):
        pass


def save_weights(path, **metadata):
    import torch
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"w": torch.zeros(2)}, path, metadata=metadata or None)


def test_the_key_of_weights(tmp_path):
    path = tmp_path / "w.safetensors"
    assert key_of_weights(path) is None
    path.write_bytes(b"damaged")
    assert key_of_weights(path) is None
    save_weights(path)
    assert key_of_weights(path) is None
    save_weights(path, key="k")
    assert key_of_weights(path) == "k"


@pytest.mark.parametrize(
    ("metadata", "reused"), [({}, True), ({"key": "k"}, True), ({"key": "old"}, False)]
)
def test_a_record_with_the_weights_of_another_run_is_trained_again(
    tmp_path, cases, metadata, reused
):
    kept = synthetic.record("sgd", "resnet18", 0, protocol="tiny", provenance={"key": "k"})
    store = Store(tmp_path, resume=True, keep_weights=True)
    write_json(store.record(cases[0]), kept.to_json())
    save_weights(store.weights(cases[0]), **metadata)
    assert store.finished(cases[0], "k") == (kept if reused else None)

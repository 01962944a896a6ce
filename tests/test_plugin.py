"""The plugin in somebody else's repository: it takes nothing of theirs, and costs nothing."""

import subprocess
import sys

import pytest

from flatbench import gate, pytest_grid
from tests import tiny
from tests.synthetic import grid

CONFTEST = """
import pytest

pytest_plugins = ["flatbench.pytest_plugin"]

def pytest_addoption(parser):
    for name in ("protocol", "device", "results", "seeds", "workers", "resume", "gate"):
        parser.addoption(f"--{name}", default="mine")

@pytest.fixture
def thresholds():
    return "mine"
"""
UNRELATED = """
import sys

def test_of_their_own(request, thresholds):
    assert thresholds == request.config.getoption("device") == "mine"
    heavy = {"torch", "pandas", "scipy", "matplotlib", "numpy"} & set(sys.modules)
    assert not heavy, heavy
"""


def run(folder, *arguments):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_theirs.py").write_text(UNRELATED)
    (tmp_path / "bench_mine.py").write_text("from flatbench.pytest_grid import *\n")
    tiny.write(tmp_path)
    return tmp_path


def test_their_options_and_fixtures_stay_theirs_and_nothing_heavy_is_imported(repository):
    done = run(repository, "test_theirs.py")
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
    assert not (repository / "results").exists()


def test_a_mistake_in_an_option_bothers_nobody_who_does_not_run_the_grid(repository):
    options = ("--flatbench-protocol", "nowhere.toml")
    assert run(repository, "test_theirs.py", *options).returncode == 0
    done = run(repository, "bench_mine.py", *options)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: nowhere.toml: cannot be read: No such file or directory" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_one_line_collects_the_grid_in_the_order_that_it_needs(repository):
    """Whatever the order of their import: what is of all records comes after all cases."""
    names = ("test_gate", "test_against", "test_generalization")
    text = "".join(f"from flatbench.pytest_grid import {name}\n" for name in names)
    (repository / "bench_mine.py").write_text(text)
    chosen = ("--flatbench-protocol", "tiny.toml", "--flatbench-gate", "tiny.thresholds.toml")
    (repository / "tiny.thresholds.toml").write_text("no thresholds")
    done = run(repository, "bench_mine.py", "--collect-only", "-q", *chosen)
    assert "tiny.thresholds.toml: is not TOML" in done.stderr  # beside the protocol, found there
    (repository / "tiny.thresholds.toml").unlink()
    done = run(repository, "bench_mine.py", "--collect-only", "-q", *chosen[:2])
    assert done.stdout.split()[:3] == [
        "bench_mine.py::test_generalization[tiny-resnet18-sgd-seed0]",
        "bench_mine.py::test_generalization[tiny-resnet18-sgd+sam-seed0]",
        "bench_mine.py::test_against[tiny-resnet18-sgd+sam]",
    ]


def test_a_pair_of_which_nothing_is_asserted_is_skipped_and_says_so():
    means = {"sgd": 90.0, "sgd+sam": 80.0}
    thresholds = gate.derive(grid(range(10), means=means))
    pair = ("resnet18", "sgd+sam")
    with pytest.raises(pytest.skip.Exception, match="nothing is asserted of sgd\\+sam − sgd"):
        pytest_grid.test_against(pair, grid(range(3), means=means), thresholds)
    better = gate.derive(grid(range(10), means={"sgd": 80.0, "sgd+sam": 90.0}))
    with pytest.raises(pytest.fail.Exception, match="is not above 0"):
        pytest_grid.test_against(pair, grid(range(3), means=means), better)
    with pytest.raises(pytest.skip.Exception, match="or fewer than 3 seeds of both completed"):
        pytest_grid.test_against(pair, grid(range(2), means=means), better)

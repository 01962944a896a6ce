"""The plugin in somebody else's repository: it takes nothing of theirs, and costs nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from flatbench import gate, pytest_grid
from flatbench.protocols.reading import load
from tests import tiny
from tests.synthetic import grid

FOLDER = Path(__file__).parents[1] / "flatbench" / "protocols"
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
    options = ("--flatbench-protocol", "now\x1bhere.toml")
    assert run(repository, "test_theirs.py", *options).returncode == 0
    done = run(repository, "bench_mine.py", *options)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    # what is shown cannot move the cursor
    assert r"ERROR: now\x1bhere.toml: file name 'now\x1bhere' must be lower-case" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_without_pytest_benchmark_one_line_says_so_before_anything_trains(repository):
    chosen = ("-p", "no:benchmark", "--flatbench-protocol", "tiny.toml")
    done = run(repository, "bench_mine.py", *chosen)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: pytest-benchmark must be there, got -p no:benchmark" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert run(repository, "test_theirs.py", *chosen[:2]).returncode == 0


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
    held = []
    means = {"sgd": 90.0, "sgd+sam": 80.0}
    thresholds = gate.derive(grid(range(10), means=means))
    pair = ("resnet18", "sgd+sam")
    with pytest.raises(pytest.skip.Exception, match="nothing is asserted of sgd\\+sam − sgd"):
        pytest_grid.test_against(pair, grid(range(3), means=means), thresholds, held.extend)
    better = gate.derive(grid(range(10), means={"sgd": 80.0, "sgd+sam": 90.0}))
    with pytest.raises(pytest.skip.Exception, match=r"can't check: .* both completed 2"):
        pytest_grid.test_against(pair, grid(range(2), means=means), better, held.extend)
    pytest_grid.test_against(pair, grid(range(3), means=means), better, held.extend)
    assert [outcome.result for outcome in held] == ["can't check", "failed"]


def test_a_cell_is_held_by_its_mean():
    held = []
    thresholds = gate.derive(grid(range(10)))
    cell = ("vgg16", "adam")
    pytest_grid.test_cell(cell, grid(range(3), generator=3), thresholds, held.extend)
    assert [(o.name, o.result) for o in held] == [
        ("digits/vgg16/adam: test_accuracy", "passed"),
        ("digits/vgg16/adam: sam_sharpness", "passed"),
    ]
    with pytest.raises(pytest.skip.Exception, match="no thresholds"):
        pytest_grid.test_cell(cell, grid(), None, held.extend)


def test_no_thresholds_is_said_and_may_be_refused(repository):
    chosen = ("--collect-only", "-q", "--flatbench-protocol", "tiny.toml")
    for option, says in (
        (
            ("--flatbench-require-thresholds",),
            "ERROR: --require-thresholds: no thresholds: nothing",
        ),
        (("--flatbench-require-power", "3"), "ERROR: --require-power must have something to ask"),
    ):
        done = run(repository, "bench_mine.py", *chosen, *option)
        assert done.returncode == pytest.ExitCode.USAGE_ERROR
        assert says in done.stderr


def test_a_copy_under_another_name_says_where_its_thresholds_went(tmp_path):
    (tmp_path / "mine.toml").write_text((FOLDER / "digits.toml").read_text())
    copy = load(str(tmp_path / "mine.toml"))
    said = gate.without_thresholds(copy, [tmp_path / "mine.thresholds.toml"])
    assert said == (
        f"no thresholds: nothing holds mine to a bound, since {tmp_path}/mine.thresholds.toml is "
        "not there; it has the content of digits, but thresholds go by a protocol's name; to "
        "derive them: flatbench run --protocol mine.toml --seeds 100-109 --results baseline && "
        "flatbench baseline baseline/mine/records --output mine.thresholds.toml --grid-seeds 6"
    )
    assert "content" not in gate.without_thresholds(load("digits"), [tmp_path / "x"])

"""A failure in an inner process is reported by its test's name; so is a process that dies."""

import subprocess
import sys
from pathlib import Path

import pytest

INNER = """
import pytest, os
def test_right(): pass
@pytest.mark.parametrize("n", [1, 2])
def test_wrong(n): assert n == 1
def test_left_out(): pytest.skip("not today")
"""
OUTER = """
from tests.inner import run_inner
def test_outer(subtests, tmp_path):
    run_inner(subtests, tmp_path, {inner!r}, {{}})
"""


def outer(folder, inner):
    (folder / "inner_.py").write_text(inner)
    file = folder / "test_outer.py"
    file.write_text(OUTER.format(inner=str(folder / "inner_.py")))
    options = ["-v", "-rsf", "-p", "no:cacheprovider", f"--rootdir={folder}"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(file)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    return run.stdout


def test_inner_tests_are_named(tmp_path):
    said = outer(tmp_path, INNER)
    assert "SUBPASSED[test_right]" in said
    assert "SUBPASSED[test_wrong[1]]" in said
    assert "SUBFAILED[test_wrong[2]]" in said
    assert "assert 2 == 1" in said
    assert "not today" in said
    assert "contains 1 failed subtest" in said


@pytest.mark.parametrize("inner", ["import os; os._exit(0)", "import no_such_module", "x = 1"])
def test_an_inner_process_that_tests_nothing_fails(tmp_path, inner):
    outer(tmp_path, inner)

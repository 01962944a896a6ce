"""The files around the package: what a wheel holds, and what the project's pages name."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import flatbench
from tests.test_imports import PACKAGE, rooms_of

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def tracked(folder):
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--", folder]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return [Path(name) for name in found.stdout.split("\0") if name]


def test_every_module_stands_in_a_package():
    """Without an `__init__.py` mypy and pytest take its folder for another package's."""
    modules = [path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts]
    assert len(modules) > 100
    assert {path for path in modules if not path.with_name("__init__.py").exists()} == set()
    assert (PACKAGE / "py.typed").exists()


def test_contributing_names_every_room():
    table = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    named = {name for cell in table for name in re.findall(r"`(\w+)`", cell)}
    rooms = rooms_of(PACKAGE) - {"__init__", "__main__", "__pycache__"}
    assert named == rooms


@pytest.mark.checkout
def test_what_contributing_names_is_there():
    paths = re.findall(r"\b(?:flatbench|tests|benchmarks|docs|results)/[\w./-]*\w", PAGE)
    assert len(paths) > 8
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_version_is_one():
    """The package says it, the build reads it there, and the citation repeats it."""
    assert "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "flatbench/__init__.py"
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == flatbench.__version__


@pytest.mark.checkout
def test_the_versions_of_python_that_are_named_are_those_that_ci_runs():
    prefix = "Programming Language :: Python :: 3."
    named = {name for name in PROJECT["project"]["classifiers"] if name.startswith(prefix)}
    workflows = [path.read_text() for path in (ROOT / ".github" / "workflows").glob("*.yml")]
    found = {version for text in workflows for version in re.findall(r'"(3\.\d\d)"', text)}
    assert named == {f"Programming Language :: Python :: {version}" for version in found}
    assert PROJECT["project"]["requires-python"] == f">={min(found)}"


def test_no_module_is_longer_than_a_reader_can_hold():
    lengths = {path: path.read_text().count("\n") for path in PACKAGE.rglob("*.py")}
    assert {path.name: length for path, length in lengths.items() if length > 400} == {}


def test_tests_have_no_type_hints():
    """They are read, and nothing checks them: a hint there could be wrong for ever."""
    hinted = []
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.returns is not None:
                hinted.append(f"{path.name}: {node.name}")
            elif isinstance(node, ast.arg) and node.annotation is not None:
                hinted.append(f"{path.name}: {node.arg}")
    assert hinted == []

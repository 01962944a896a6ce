"""The files around the package: what a wheel holds, and what the project's pages name."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.test_imports import PACKAGE, rooms_of

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def tracked(folder):
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--", folder]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return [Path(name) for name in found.stdout.split("\0") if name]


def test_a_wheel_holds_every_file_of_the_package():
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout")
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["flatbench"]
    matched = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    data = [ROOT / path for path in tracked("flatbench") if path.suffix != ".py"]
    assert len(data) > 5
    assert {path for path in data if path not in matched} == set()
    assert PACKAGE / "py.typed" in matched
    # setuptools looks for modules in packages alone
    modules = [ROOT / path for path in tracked("flatbench") if path.suffix == ".py"]
    assert {path for path in modules if not path.with_name("__init__.py").exists()} == set()


def test_contributing_names_every_room():
    table = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    named = {name for cell in table for name in re.findall(r"`(\w+)`", cell)}
    rooms = rooms_of(PACKAGE) - {"__init__", "__main__", "__pycache__"}
    assert named == rooms


def test_what_contributing_names_is_there():
    paths = re.findall(r"\b(?:flatbench|tests|benchmarks|docs|results)/[\w./-]*\w", PAGE)
    assert len(paths) > 8
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_version_is_one():
    version = PROJECT["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert f'__version__ = "{version}"' in (PACKAGE / "__init__.py").read_text()


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

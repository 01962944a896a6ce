"""Imports point down: no room knows what stands above it, and the liftable ones know no room.

Every import counts: of a function, too, and of a type checker alone.
"""

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "flatbench"
LEVELS = (
    ("cli", "pytest_plugin", "pytest_grid", "__main__"),
    ("study",),
    ("landscape", "execution"),
    ("report", "gate", "training"),
    ("records",),
    ("data",),
    ("protocols",),
    ("models",),
    ("components",),
    ("errors",),
)
HEIGHT = {room: -level for level, rooms in enumerate(LEVELS) for room in rooms}
ROOT = "__init__"  # the package itself: its version, below everything
ONLY_ERRORS = ("text", "files", "stats", "options", "process")
LIFTABLE = {"optim": {"torch", "triton"}, "sharpness": {"torch", "numpy"}}
EXCEPTIONS = {
    ("__main__", "cli"): "python -m flatbench is the command",
}


def imported(file, package):
    """Return the dotted names that a file imports, relative ones made absolute."""
    inside = file.relative_to(package.parent).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(inside[: len(inside) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            # what is taken from a module may be a module itself
            yield from (f"{module}.{alias.name}" for alias in node.names)


def rooms_of(package):
    return {path.stem for path in package.iterdir() if path.suffix == ".py" or path.is_dir()}


def room(name, package):
    """Return the room of a dotted name, or None if it is none of flatbench's."""
    top, *rest = name.split(".")
    if top != package.name:
        return None
    return rest[0] if rest and rest[0] in rooms_of(package) else ROOT


def wrong(package):
    """Return the pairs of rooms whose import points up or sideways, with the files that do it."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        own = file.relative_to(package).parts[0].removesuffix(".py")
        for name in imported(file, package):
            other = room(name, package)
            if other is None:
                third_party = name.partition(".")[0]
                allowed = LIFTABLE.get(own, {third_party}) | sys.stdlib_module_names
                if third_party not in allowed:
                    found.setdefault((own, third_party), []).append(file.name)
            elif other != own and not may(own, other):
                found.setdefault((own, other), []).append(file.name)
    return found


def may(own, other):
    if own == ROOT or own in LIFTABLE:
        return False
    if own in ONLY_ERRORS:
        return other in ("errors", ROOT)
    if other == ROOT or other in LIFTABLE or other in ONLY_ERRORS:
        return True
    return HEIGHT[other] < HEIGHT[own]


def test_every_room_has_a_place_in_the_order():
    rooms = {name for name in rooms_of(PACKAGE) if name != "__pycache__"}
    assert rooms - HEIGHT.keys() - LIFTABLE.keys() - {ROOT, *ONLY_ERRORS} == set()


def test_no_import_points_up():
    assert {pair: files for pair, files in wrong(PACKAGE).items() if pair not in EXCEPTIONS} == {}


def test_no_exception_has_become_needless():
    assert EXCEPTIONS.keys() - wrong(PACKAGE).keys() == set()


@pytest.mark.parametrize(
    ("file", "line", "pair"),
    [
        ("data/a.py", "from flatbench.records.record import Record", ("data", "records")),
        ("data/a.py", "from flatbench import records", ("data", "records")),
        ("data/a.py", "import flatbench.records.record as r", ("data", "records")),
        ("data/a.py", "from .. import records", ("data", "records")),
        ("data/a.py", "from ..records import record", ("data", "records")),
        ("data/a.py", "def f():\n    import flatbench.records", ("data", "records")),
        (
            "data/a.py",
            "if TYPE_CHECKING:\n    from flatbench.records import record",
            ("data", "records"),
        ),
        ("gate/a.py", "from flatbench.report import numbers", ("gate", "report")),
        ("text.py", "from flatbench.protocols import schema", ("text", "protocols")),
        ("optim/a.py", "from flatbench.errors import UsageError", ("optim", "errors")),
        ("optim/a.py", "import numpy", ("optim", "numpy")),
        ("sharpness/a.py", "from scipy import sparse", ("sharpness", "scipy")),
        ("records/a.py", "from flatbench import __version__", None),
        ("records/a.py", "from flatbench import data", None),
        ("records/a.py", "from . import record", None),
        ("optim/a.py", "from . import kernels\nimport torch, triton.language, math", None),
    ],
)
def test_an_import_that_points_up_is_found(tmp_path, file, line, pair):
    package = tmp_path / "flatbench"
    for name in ("data/b.py", "records/b.py", "report/b.py", "protocols/b.py", "errors.py", file):
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (package / file).write_text(line)
    assert wrong(package) == ({} if pair is None else {pair: [Path(file).name]})

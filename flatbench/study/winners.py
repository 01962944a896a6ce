"""The winners of a tuning, as a protocol file."""

from __future__ import annotations

import copy
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

from flatbench import __version__, files
from flatbench.errors import UsageError
from flatbench.protocols.protocol import Protocol
from flatbench.protocols.reading import PERTURBATION, file_of
from flatbench.protocols.tuning import is_key, is_of_method
from flatbench.study.trials import tuning_of
from flatbench.study.tune import Tuned

_HEADER = """\
# Made by `flatbench tune {name}` (flatbench {version}): of {trials} trials a row and architecture,
# each with seeds {seeds}, the one whose validation outcome less its standard error is best. The
# test part was not touched.
"""


def place(protocol: Protocol, output: Path | None, results: Path) -> Path:
    """Return the file for a protocol's winners: the output that is asked for, or a usual one.

    That is in the folder of results, or beside the protocol where that one refers to files.

    Raises:
        UsageError: the protocol refers to files by relative paths, and the output asked for is in
            another folder, where they would not be found.
    """
    name = f"{protocol.name}-tuned.toml"
    path = _relative_path(_table(protocol))
    if path is None:
        return output or results / name
    if output is not None and output.parent.resolve() != protocol.folder:
        raise UsageError(
            f"--output must be in the protocol's folder, to which it refers as {path!r}, "
            f"got {output.parent}"
        )
    return output or protocol.folder / name


def write(tuned: Tuned, output: Path) -> None:
    """Write the protocol that was tuned, with its rows' winning values, as a file.

    The first architecture's values stand in the row, another one's in its ``architectures`` table
    where they differ; where not all were tuned, each one's stand there. All else stays as it was,
    ``[tuning]`` too.

    Raises:
        UsageError: a cell has no winner, or as `place`.
    """
    files.write_atomically(place(tuned.protocol, output, output.parent), text(tuned).encode())


def text(tuned: Tuned) -> str:
    """Return what `write` writes.

    Raises:
        UsageError: a cell has no winner.
    """
    protocol, tuning = tuned.protocol, tuning_of(tuned.protocol)
    if tuned.without_winner:
        row, architecture = tuned.without_winner[0]
        raise UsageError(f"{protocol.name}/{architecture}/{row}: no trial completed all its seeds")
    table = _table(protocol)
    for row in tuned.rows:
        _set(table["optimizers"][row], tuned, row)
    table["tuning"]["trials"], table["tuning"]["seeds"] = tuning.trials, list(tuning.seeds)
    header = _HEADER.format(
        name=protocol.name,
        version=__version__,
        trials=tuning.trials,
        seeds=", ".join(map(str, tuning.seeds)),
    )
    return header + tomli_w.dumps(table)


def _set(table: dict[str, Any], tuned: Tuned, row: str) -> None:
    """Set the winning values of one row in its table.

    What was tuned on some of the architectures alone is no value of the others.
    """
    _shorten(table)
    first = tuned.architectures[0]
    shared: dict[str, Any] = {}
    if set(tuned.architectures) == set(tuned.protocol.model.names):
        shared = _values(tuned, row, first)
    changes = table.pop("architectures", {})
    _merge(table, shared)
    for architecture in tuned.architectures:
        change = changes.pop(architecture, {})
        _shorten(change)
        for name in tuning_of(tuned.protocol).space[row]:  # what stood there was tuned elsewhere
            for place in (change, change.get("options", {}), change.get("perturbation", {})):
                place.pop(name, None)
        values = _values(tuned, row, architecture)
        _merge(change, values if values != shared else {})
        change = {key: value for key, value in change.items() if value != {}}
        if change:
            table.setdefault("architectures", {})[architecture] = change
    if changes:  # of architectures that were not tuned now
        table.setdefault("architectures", {}).update(changes)


def _shorten(table: dict[str, Any]) -> None:
    """Put SAM's long form of rho, adaptive and eta into the short one."""
    if table.get("perturbation", {}).get("method") == "sam":
        long_form = table.pop("perturbation")
        table.update({key: value for key, value in long_form.items() if key != "method"})


def _values(tuned: Tuned, row: str, architecture: str) -> dict[str, Any]:
    """Return the winner's values as a row's table has them."""
    best = tuned.best(row, architecture)
    assert best is not None
    found: dict[str, Any] = {}
    its_row = tuned.protocol.optimizers[row]
    for name, value in copy.deepcopy(dict(best.values)).items():
        in_long_form = its_row.method is not None and name in PERTURBATION
        if is_of_method(its_row, name) or in_long_form:
            into = found.setdefault("perturbation", {})
        else:
            into = found if is_key(its_row, name) else found.setdefault("options", {})
        into[name] = list(value) if isinstance(value, tuple) else value
    return found


def _merge(table: dict[str, Any], values: dict[str, Any]) -> None:
    """Put values into a row's table; an option replaces its short form, tables are merged."""
    options = values.get("options", {})
    for name in options:
        table.pop(name, None)
    for name, value in values.items():
        if name in ("options", "perturbation"):
            table.setdefault(name, {}).update(value)
        else:
            table.get("options", {}).pop(name, None)
            table[name] = value


def _table(protocol: Protocol) -> dict[str, Any]:
    return tomllib.loads(files.read(file_of(protocol)).decode("utf-8"))


def _relative_path(table: dict[str, Any]) -> str | None:
    """Return a path in a protocol's table that is relative to its folder, or None."""
    source = table["data"].get("source")
    files = [source.get(kind) for kind in ("npz", "folder")] if isinstance(source, dict) else []
    paths = [path for path in files if path is not None and not Path(path).is_absolute()]
    paths += [text for text in _strings(table) if text.startswith(("./", "../"))]
    return paths[0] if paths else None


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [found for inner in value.values() for found in _strings(inner)]
    if isinstance(value, list):
        return [found for inner in value for found in _strings(inner)]
    return [value] if isinstance(value, str) else []

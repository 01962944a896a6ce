"""Reading records, one or many, from JSON files."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flatbench import files
from flatbench.errors import UsageError
from flatbench.protocols.schema import Check, Reader
from flatbench.records.record import SCHEMA_VERSION, Epoch, Record

_EPOCH = typing.get_type_hints(Epoch, include_extras=True)
_REQUIRED = [f.name for f in dataclasses.fields(Epoch) if f.default is dataclasses.MISSING]


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _parts(hint: Any) -> tuple[type, tuple[Check, ...]]:
    """Return the type and the checks of an annotation, less its None."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = typing.get_args(hint)[0]
    inner, *checks = typing.get_args(hint) or (hint,)
    return inner, tuple(checks)


_NUMBERS = {name: _parts(hint) for name, hint in _EPOCH.items()}


def from_json(table: Any, source: Path | str) -> Record:
    """Validate a record read from JSON.

    Raises:
        UsageError: another schema version, or a key that is unknown, missing, of the wrong type
            or out of range; the message opens with ``source``.
    """
    reader = Reader(source)
    table = dict(reader.table(table, "record"))
    version = table.get("schema_version")
    if version != SCHEMA_VERSION:
        raise reader.error("schema_version", version, f"{SCHEMA_VERSION} (this flatbench's)")
    columns = reader.table(table.pop("history", {}), "history")
    reader.known(columns, _EPOCH, "history.")
    lengths = {}
    for name, column in columns.items():
        if not isinstance(column, list):
            raise reader.error(f"history.{name}", column, "a list")
        lengths[name] = len(column)
    if len(set(lengths.values())) > 1:
        raise reader.error("history", lengths, "lists of one length")
    for name in _REQUIRED:
        if columns and name not in columns:
            raise UsageError(f"{source}: history.{name} is missing")
    # in the order of the fields, which Epoch takes them in; a late one may be missing
    names = [name for name in _EPOCH if name in columns]
    checked = [_column(reader, columns[name], _EPOCH[name], name) for name in names]
    rows = zip(*checked, strict=True)
    if names == _REQUIRED:
        history = tuple(Epoch(*values) for values in rows)
    else:
        history = tuple(Epoch(**dict(zip(names, values, strict=True))) for values in rows)
    return reader.read(Record, table, history=history)


def _column(reader: Reader, column: list[Any], hint: Any, name: str) -> list[Any]:
    """Return one column of the history, checked."""
    inner, checks = _NUMBERS[name]
    # A fast pass that only ever says yes; the reader, value by value, says what is wrong. What
    # holds for the least and the largest holds for all, as each check is of an interval. A NaN,
    # which has no place among them, makes the sum one.
    if column and set(map(type, column)) == {inner}:
        low, high = min(column), max(column)
        fits = all(check.holds(low) and check.holds(high) for check in checks)
        if fits and max(-low, high) <= 1e9 and not math.isnan(sum(column)):
            return column
    return [reader.value(v, hint, f"history.{name}[{i}]") for i, v in enumerate(column)]


def read(path: Path) -> list[Record]:
    """Read the records of one JSON file: a single record, or pytest-benchmark's own JSON.

    A file whose name ends in .gz is unpacked first. In pytest-benchmark's JSON, benchmarks without
    a record (step timings) are skipped.

    Raises:
        UsageError: the file cannot be read, is not JSON, or a record in it is not valid.
    """
    try:
        text = files.read(path, files.RECORDS).decode("utf-8")
        table = json.loads(text, parse_constant=_refuse_constant)
        if _SURROGATE.search(text):
            # half of a pair is no character, and could be written nowhere
            json.dumps(table, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a bare NaN, or too deep
        raise UsageError(f"{path}: is not JSON: {error}") from None
    if not isinstance(table, dict):
        raise UsageError(f"{path}: must hold a record or pytest-benchmark's JSON, both objects")
    if "benchmarks" not in table:
        return [from_json(table, path)]
    records = []
    benchmarks = table["benchmarks"]
    if not isinstance(benchmarks, list):
        raise Reader(path).error("benchmarks", benchmarks, "a list")
    for i, benchmark in enumerate(benchmarks):
        benchmarks[i] = None  # of 100,000 the tables are not kept beside their records
        extra = benchmark.get("extra_info") if isinstance(benchmark, dict) else None
        if not isinstance(extra, dict):
            raise Reader(path).error(f"benchmarks[{i}].extra_info", extra, "a table")
        if "record" in extra:
            records.append(from_json(extra["record"], f"{path}: benchmarks[{i}]"))
    return records


def read_one(path: Path) -> Record:
    """Read the only record of a JSON file.

    Raises:
        UsageError: as `read`, or the file does not hold exactly one record.
    """
    records = read(path)
    if len(records) != 1:
        raise UsageError(f"{path}: must hold 1 record, got {len(records)}")
    return records[0]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def collect(paths: Iterable[Path]) -> list[Record]:
    """Read records from files, and from every ``*.json`` of a folder or of its ``records``.

    A folder with a ``records`` in it is a protocol's results: its other JSON holds the same records
    once more.

    Raises:
        UsageError: a file is not valid, a path does not exist, or no file holds a record.
    """
    records: list[Record] = []
    seen: list[str] = []
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder")
        seen.append(str(path))
        folder = path / "records" if (path / "records").is_dir() else path
        # listdir, since glob takes a folder that it may not read for an empty one
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
        inside = [folder / n for n in names if n.endswith(".json") and not n.startswith(".")]
        found = inside if folder.is_dir() else [path]
        for file in found:
            records += read(file)
    if not records:
        raise UsageError(f"{', '.join(seen) or 'no path'}: holds no record")
    return records

"""How a protocol's hyperparameters are chosen: each row's space, the trials, and their seeds."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any

from flatbench.errors import UsageError
from flatbench.protocols.schema import AT_LEAST_ONE, SEEDS, Reader, quoted

if TYPE_CHECKING:
    from flatbench.protocols.protocol import Row

RANGE = "LOW..HIGH with 0 < LOW < HIGH, as 1e-4..1e-1 (log-uniform)"
_RANGE = re.compile(r"\s*(\S+?)\s*\.\.\s*(\S+)\s*")

# Which short forms an optimizer of ours has, and what of a row is not its optimizer's.
_SHORT: Mapping[str, tuple[str, ...]] = {
    "sgd": ("lr", "momentum", "nesterov", "weight_decay"),
    "adam": ("lr", "betas", "weight_decay"),
    "adamw": ("lr", "betas", "weight_decay"),
}
_OF_ROW = ("label_smoothing", "warmup_epochs")
_OF_SAM = ("rho", "eta")


@dataclass(frozen=True)
class Range:
    """All numbers between two positive ones; points in it are uniform in their logarithm."""

    low: float
    high: float

    def __str__(self) -> str:
        """As a protocol has it: "0.0001..0.1"."""
        return f"{self.low:g}..{self.high:g}"


Choice = tuple[Any, ...]
Space = Mapping[str, Range | Choice]  # a hyperparameter -> its range, or the values to choose from


@dataclass(frozen=True)
class Tuning:
    """How ``flatbench tune`` chooses hyperparameters, on the validation part.

    ``[tuning.space.ROW]`` has what is tuned of a row: keys of the row, as ``lr`` or ``rho``, and
    options of its optimizer. ``"1e-4..1e-1"`` is a range, uniform in its logarithm; a list has the
    values to choose from. It has no part in any hash, since it bears on no result.
    """

    # Points of its space for every row and architecture, the same number for all.
    trials: Annotated[int, AT_LEAST_ONE]
    # One run of each trial for each of them; none of the protocol's own seeds.
    seeds: Annotated[tuple[int, ...], SEEDS]
    # Row -> hyperparameter -> range or list.
    space: Mapping[str, Space]


def parse_range(text: str) -> Range | None:
    """Return the range that a text such as "1e-4..1e-1" stands for, or None if it is none."""
    found = _RANGE.fullmatch(text)
    try:
        low, high = (float(end) for end in found.groups()) if found else (0.0, 0.0)
    except ValueError:
        return None
    return Range(low, high) if 0 < low < high < float("inf") else None


def with_values(row: Row, values: Mapping[str, Any]) -> Row:
    """Return a row with these hyperparameters: keys of the row, or options of its optimizer."""
    of_method = {name: value for name, value in values.items() if is_of_method(row, name)}
    keys = {name: value for name, value in values.items() if is_key(row, name)}
    options = {
        name: value for name, value in values.items() if name not in keys and name not in of_method
    }
    method = row.method and replace(row.method, **of_method)
    return replace(row, **keys, method=method, options=row.options | options)


def is_of_method(row: Row, name: str) -> bool:
    """Return whether a hyperparameter is an option of the row's method of the SAM family."""
    return row.method is not None and name in {f.name for f in fields(row.method)} - {"name"}


def is_key(row: Row, name: str) -> bool:
    """Return whether a hyperparameter is a key of the row, and not an option of its optimizer."""
    own = (*_OF_ROW, *_OF_SAM, *_SHORT.get(row.optimizer, ()))
    return name in own and not is_of_method(row, name)


def read_space(reader: Reader, value: object, row: Row, where: str) -> dict[str, Range | Choice]:
    """Return the space of one row.

    Raises:
        UsageError: a hyperparameter that the row does not have, or values that it can't take.
    """
    space = {}
    for name, given in reader.table(value, where).items():
        key = f"{where}.{quoted(name)}"
        if name in _OF_SAM and not row.is_sam:
            raise reader.error(key, given, "absent unless the row has rho")
        short = _SHORT.get(row.optimizer)
        if short is not None and name in {n for names in _SHORT.values() for n in names} - {*short}:
            raise reader.error(key, given, f'absent where optimizer = "{row.optimizer}"')
        found = parse_range(given) if isinstance(given, str) else given
        if isinstance(found, list) and found:
            found = tuple(tuple(v) if isinstance(v, list) else v for v in found)
        if not isinstance(found, Range | tuple):
            raise reader.error(key, given, f"{RANGE}, or a list of values")
        owner = row.method if is_of_method(row, name) else row if is_key(row, name) else None
        if owner is not None:
            hint = typing.get_type_hints(type(owner), include_extras=True)[name]
            for end in (found.low, found.high) if isinstance(found, Range) else found:
                reader.value(list(end) if isinstance(end, tuple) else end, hint, key)
        space[name] = found
    if not space:
        raise reader.error(where, {}, "a table with at least one hyperparameter")
    return space


def read(reader: Reader, value: object, rows: Mapping[str, Row], seeds: Iterable[int]) -> Tuning:
    """Return a protocol's ``[tuning]``.

    Raises:
        UsageError: an unknown key or row, or a value out of range.
    """
    table = reader.table(value, "tuning")
    reader.known(table, ("trials", "seeds", "space"), "tuning.")
    for name in ("trials", "seeds", "space"):
        if name not in table:
            raise UsageError(f"{reader.source}: tuning.{name} is missing")
    hints = typing.get_type_hints(Tuning, include_extras=True)
    trials, chosen = (
        reader.value(table[name], hints[name], f"tuning.{name}") for name in ("trials", "seeds")
    )
    if set(chosen) & set(seeds):
        raise reader.error("tuning.seeds", list(chosen), "none of the protocol's own seeds")
    spaces = reader.table(table["space"], "tuning.space")
    reader.known(spaces, rows, "tuning.space.")
    return Tuning(
        trials,
        chosen,
        {
            name: read_space(reader, space, rows[name], f"tuning.space.{quoted(name)}")
            for name, space in spaces.items()
        },
    )

"""Reading tables (of TOML or JSON) into frozen dataclasses whose annotations are the schema.

An annotation says what a key may hold: a plain type, ``Literal`` choices, ``Annotated`` with a
`Check`, tuples and dicts of these, and ``X | None``. Every departure is one `UsageError`
that names the file, the key, what it must be, and what was found.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from flatbench.errors import UsageError
from flatbench.text import did_you_mean

T = TypeVar("T")


@dataclass(frozen=True)
class Check:
    """A condition on a value, and the words for it in an error: "must be ..."."""

    holds: Callable[[Any], bool]
    must_be: str


AT_LEAST_ONE = Check(lambda x: x >= 1, "a whole number of at least 1")
SEEDS = Check(
    lambda xs: len(xs) > 0 and len(set(xs)) == len(xs) and min(xs) >= 0,
    "a list of different whole numbers of at least 0",
)

# Squares of what is read must be finite too, and whole numbers fit 64 bits as TOML's do.
LONGEST = 100  # characters of a key that an error shows
_LARGEST = 1e150
_LARGEST_INT = 2**63 - 1

_PLAIN = {
    float: "a finite number, in size at most 1e150",
    int: "a whole number of at most 64 bits",
    bool: "true or false",
    str: "a string",
}

Parse = Callable[["Reader", Any, str], Any]  # a value and its key -> it, in its annotation's type


@dataclass(frozen=True)
class _Schema:
    """What a dataclass is read by: made once, since thousands of records are read by it."""

    parses: Mapping[str, Parse]
    required: tuple[str, ...]


@functools.cache
def _schema(cls: Any) -> _Schema:
    hints = typing.get_type_hints(cls, include_extras=True)
    required = (
        f.name
        for f in dataclasses.fields(cls)
        if f.default is f.default_factory is dataclasses.MISSING
    )
    return _Schema({name: _parse(hint) for name, hint in hints.items()}, tuple(required))


@dataclass(frozen=True)
class Reader:
    """Reads the tables of one source; ``source`` (a path, for most) opens every error."""

    source: Path | str

    def error(self, key: str, value: object, must_be: str) -> UsageError:
        """Return the error for a key that holds a wrong value."""
        return UsageError(f"{self.source}: {key} must be {must_be}, got {shown(value)}")

    def known(self, table: Mapping[str, Any], keys: Iterable[str], prefix: str) -> None:
        """Raise unless every key of the table is one of ``keys``."""
        known = set(keys)
        for key in table:
            if key not in known:
                names = sorted(known)
                raise UsageError(
                    f"{self.source}: {prefix}{quoted(key)} is an unknown key"
                    f"{did_you_mean(key, names)}; it must be one of {', '.join(names)}"
                )

    def table(self, value: object, key: str) -> dict[str, Any]:
        """Return the value if it is a table."""
        if not isinstance(value, dict):
            raise self.error(key, value, "a table")
        return value

    def read(self, cls: type[T], table: Mapping[str, Any], prefix: str = "", **given: Any) -> T:
        """Fill one dataclass from one table and from what does not come from the table."""
        schema = _schema(typing.cast(Any, cls))
        self.known(table, schema.parses.keys() - given.keys(), prefix)
        for name in schema.required:
            if name not in table and name not in given:
                raise UsageError(f"{self.source}: {prefix}{name} is missing")
        values = {k: schema.parses[k](self, v, f"{prefix}{k}") for k, v in table.items()}
        return cls(**given, **values)

    def value(self, value: object, hint: Any, key: str) -> Any:
        """Check a value against an annotation and return it in the annotation's type."""
        return _parse(hint)(self, value, key)


@functools.cache
def _parse(hint: Any, must_be: str | None = None) -> Parse:  # noqa: PLR0911 - one for each kind
    """Return what `Reader.value` does for an annotation; ``must_be`` is what its errors say."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _checked(arguments[0], arguments[1:])
    if origin in (types.UnionType, typing.Union):  # X | None
        some = _parse(arguments[0])
        return lambda reader, value, key: None if value is None else some(reader, value, key)
    if origin is Literal:
        return _choice(arguments)
    if origin is tuple:
        return _tuple(_parse(arguments[0], must_be), must_be or "a list")
    if origin is dict:
        return _dict(_parse(arguments[1]))
    if dataclasses.is_dataclass(hint):
        cls = typing.cast(type, hint)
        return lambda reader, value, key: reader.read(cls, reader.table(value, key), f"{key}.")
    if hint is Any:
        return lambda reader, value, key: value
    return _plain(hint, must_be)


def _checked(hint: Any, checks: Iterable[Check]) -> Parse:
    checks = tuple(checks)
    must_be = "; ".join(check.must_be for check in checks)
    inner = _parse(hint, must_be)

    def parse(reader: Reader, value: Any, key: str) -> Any:
        converted = inner(reader, value, key)
        for check in checks:
            if not check.holds(converted):
                raise reader.error(key, value, must_be)
        return converted

    return parse


def _choice(choices: Sequence[object]) -> Parse:
    must_be = f"one of {', '.join(map(json.dumps, choices))}"

    def parse(reader: Reader, value: Any, key: str) -> Any:
        for choice in choices:
            if value == choice and type(value) is type(choice):  # Python's 1 == 1.0 == True
                return value
        raise reader.error(key, value, must_be)

    return parse


def _tuple(inner: Parse, must_be: str) -> Parse:
    def parse(reader: Reader, value: Any, key: str) -> Any:
        if not isinstance(value, list):
            raise reader.error(key, value, must_be)
        return tuple([inner(reader, v, key) for v in value])

    return parse


def _dict(inner: Parse) -> Parse:
    def parse(reader: Reader, value: Any, key: str) -> Any:
        table = reader.table(value, key)
        return {k: inner(reader, v, f"{key}.{quoted(k)}") for k, v in table.items()}

    return parse


def _plain(kind: Any, must_be: str | None) -> Parse:
    kinds = (int, float) if kind is float else kind
    largest = {float: _LARGEST, int: _LARGEST_INT}.get(kind)

    def parse(reader: Reader, value: Any, key: str) -> Any:
        fits = isinstance(value, kinds) and (kind is bool or not isinstance(value, bool))
        if fits and (largest is None or abs(value) <= largest):
            return kind(value)
        raise reader.error(key, value, must_be or _PLAIN[kind])

    return parse


@functools.lru_cache(1000)
def quoted(key: str) -> str:
    """Return a key as TOML would write it."""
    if len(key) > LONGEST:
        key = f"{key[:LONGEST]}..."
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def shown(value: object) -> str:
    """Return a value on one line, near to what the file says, and not without end."""
    try:
        text = json.dumps(value, default=str)
    except ValueError:  # of an integer beyond sys.get_int_max_str_digits()
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."

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
from collections.abc import Callable, Iterable, Mapping
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
_LARGEST = 1e150
_LARGEST_INT = 2**63 - 1

_PLAIN = {
    float: "a finite number, in size at most 1e150",
    int: "a whole number of at most 64 bits",
    bool: "true or false",
    str: "a string",
}

# Thousands of records are read against the same few annotations.
_hints = functools.cache(functools.partial(typing.get_type_hints, include_extras=True))
_origin: Callable[[Any], Any] = functools.cache(typing.get_origin)
_arguments: Callable[[Any], tuple[Any, ...]] = functools.cache(typing.get_args)


@dataclass(frozen=True)
class Reader:
    """Reads the tables of one source; ``source`` (a path, for most) opens every error."""

    source: Path | str

    def error(self, key: str, value: object, must_be: str) -> UsageError:
        """Return the error for a key that holds a wrong value."""
        return UsageError(f"{self.source}: {key} must be {must_be}, got {shown(value)}")

    def known(self, table: Mapping[str, Any], keys: Iterable[str], prefix: str) -> None:
        """Raise unless every key of the table is one of ``keys``."""
        names = sorted(keys)
        for key in table:
            if key not in names:
                hint = did_you_mean(key, names)
                raise UsageError(
                    f"{self.source}: {prefix}{quoted(key)} is an unknown key{hint}; it "
                    f"must be one of {', '.join(names)}"
                )

    def table(self, value: object, key: str) -> dict[str, Any]:
        """Return the value if it is a table."""
        if not isinstance(value, dict):
            raise self.error(key, value, "a table")
        return value

    def read(self, cls: type[T], table: Mapping[str, Any], prefix: str = "", **given: Any) -> T:
        """Fill one dataclass from one table and from what does not come from the table."""
        hints = _hints(typing.cast(Any, cls))
        self.known(table, set(hints) - set(given), prefix)
        for f in dataclasses.fields(typing.cast(Any, cls)):
            required = f.default is f.default_factory is dataclasses.MISSING
            if required and f.name not in table and f.name not in given:
                raise UsageError(f"{self.source}: {prefix}{f.name} is missing")
        values = {key: self.value(v, hints[key], f"{prefix}{key}") for key, v in table.items()}
        return cls(**given, **values)

    def value(self, value: object, hint: Any, key: str) -> Any:
        """Check a value against an annotation and return it in the annotation's type."""
        if _origin(hint) is not Annotated:
            return self._typed(value, hint, key, None)
        inner, *checks = _arguments(hint)
        must_be = "; ".join(check.must_be for check in checks)
        converted = self._typed(value, inner, key, must_be)
        if not all(check.holds(converted) for check in checks):
            raise self.error(key, value, must_be)
        return converted

    def _typed(  # noqa: PLR0911 - one return for each kind of annotation
        self, value: object, hint: Any, key: str, must_be: str | None
    ) -> Any:
        origin, arguments = _origin(hint), _arguments(hint)
        if origin in (types.UnionType, typing.Union):  # X | None
            return None if value is None else self.value(value, arguments[0], key)
        if origin is Literal:
            # by type too: Python's 1 == 1.0 == True
            if not any(value == choice and type(value) is type(choice) for choice in arguments):
                choices = ", ".join(json.dumps(choice) for choice in arguments)
                raise self.error(key, value, f"one of {choices}")
            return value
        if origin is tuple:
            if not isinstance(value, list):
                raise self.error(key, value, must_be or "a list")
            return tuple(self._typed(v, arguments[0], key, must_be) for v in value)
        if origin is dict:
            table = self.table(value, key)
            return {k: self.value(v, arguments[1], f"{key}.{quoted(k)}") for k, v in table.items()}
        if dataclasses.is_dataclass(hint):
            return self.read(typing.cast(type, hint), self.table(value, key), f"{key}.")
        if hint is Any:
            return value
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if hint is float and is_number and abs(typing.cast(float, value)) <= _LARGEST:
            return float(typing.cast(float, value))
        if hint is int and isinstance(value, int) and is_number and abs(value) <= _LARGEST_INT:
            return value
        if hint in (bool, str) and isinstance(value, hint):
            return value
        raise self.error(key, value, must_be or _PLAIN[hint])


def quoted(key: str) -> str:
    """Return a key as TOML would write it."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def shown(value: object) -> str:
    """Return a value on one line, near to what the file says, and not without end."""
    try:
        text = json.dumps(value, default=str)
    except ValueError:  # of an integer beyond sys.get_int_max_str_digits()
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."

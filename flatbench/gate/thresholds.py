"""Thresholds: the limits that a protocol's cells and pairs must keep, as a TOML file."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from flatbench import files
from flatbench.errors import UsageError
from flatbench.protocols.protocol import Protocol
from flatbench.protocols.reading import available, load
from flatbench.protocols.schema import Check, Reader
from flatbench.records.quantities import Scale
from flatbench.text import plain

LEVEL, GRID_SEEDS = 0.999, 3  # of thresholds, unless it is said
LEVELS = Check(lambda x: 0.5 < x < 1, "a number between 0.5 and 1")
_MOST_LOG = 300  # logarithms whose numbers, added up and squared, are finite
_TWO = Check(lambda x: x >= 2, "a whole number of at least 2")
_ONE = Check(lambda x: x >= 1, "a whole number of at least 1")
_NON_NEGATIVE = Check(lambda x: x >= 0, "a number of at least 0")


@dataclass(frozen=True)
class Bound:
    """The limit that one measure of one new seed must keep.

    ``limit`` is a value of the measure; ``mean`` and ``std`` are the baseline's on the ``scale``,
    and ``offset`` is what it adds to an error; see `flatbench.gate.scales`.
    """

    side: Literal["at_least", "at_most"]
    limit: float
    scale: Scale
    mean: float
    std: Annotated[float, _NON_NEGATIVE]
    offset: Annotated[float, _NON_NEGATIVE] = 0.0


@dataclass(frozen=True)
class CellThreshold:
    """The bounds of one cell by measure, and why a measure has none."""

    n: Annotated[int, _TWO]
    cell_hash: str
    bounds: Mapping[str, Bound]
    unbounded: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PairThreshold:
    """The paired differences SAM − base in test accuracy; ``limit`` bounds their new mean."""

    base: str
    n: Annotated[int, _TWO]
    mean: float
    std: Annotated[float, _NON_NEGATIVE]
    limit: float  # lower prediction bound of the mean over the grid's number of seeds

    @property
    def positive(self) -> bool:
        """Whether the baseline predicts that the mean difference of a new grid is above 0."""
        return self.limit > 0


@dataclass(frozen=True)
class Thresholds:
    """A protocol's thresholds; cells and pairs by (architecture, optimizer)."""

    protocol: str
    evaluation: Literal["test", "validation"]
    common_hash: str
    level: Annotated[float, LEVELS]
    pair_level: Annotated[float, LEVELS]
    seeds: tuple[int, ...]  # empty where they come from published means
    grid_seeds: Annotated[int, _ONE]  # how many seeds a pair's new mean is taken over
    commit: str  # what code made the baseline; for published values, their source
    cells: Mapping[tuple[str, str], CellThreshold]
    pairs: Mapping[tuple[str, str], PairThreshold]

    @property
    def code(self) -> str:
        """What the baseline was made with; a commit stood alone in the first files."""
        bare = re.fullmatch(r"[0-9a-f]{7,}(\+dirty)?", self.commit)
        return f"commit {self.commit}" if bare else self.commit

    @property
    def false_alarm_rate(self) -> float:
        """How often, at most, a grid without a regression fails (Bonferroni's inequality)."""
        bounds = sum(len(cell.bounds) for cell in self.cells.values())
        pairs = sum(pair.positive for pair in self.pairs.values())
        # each bound is for the seeds one by one, and for their mean
        checks = bounds * (self.grid_seeds + 1)
        alarms = (1 - self.level) * checks + (1 - self.pair_level) * pairs
        return min(1.0, alarms)

    @property
    def renewal(self) -> str:
        """The commands that derive these thresholds anew: of a user's own, beside the protocol."""
        if self.seeds:
            seeds = ",".join(map(str, self.seeds))
            return _derivation(self.protocol, seeds, self.grid_seeds, self.level)
        protocol, output = _files(self.protocol)
        return f"flatbench baseline --reference {protocol} --output {output}"


def beside(protocol: Protocol) -> Path:
    """Return where the thresholds stand of a protocol in a file of its own."""
    return protocol.folder / f"{protocol.name}.thresholds.toml"


def _files(protocol: str) -> tuple[str, str]:
    """Return what a command calls a protocol, and where its thresholds go."""
    if protocol in available():
        return protocol, f"benchmarks/thresholds/{protocol}.toml"
    return f"{protocol}.toml", f"{protocol}.thresholds.toml"


def _derivation(protocol: str, seeds: str, grid_seeds: int, level: float = LEVEL) -> str:
    name, output = _files(protocol)
    held = "" if grid_seeds == GRID_SEEDS else f" --grid-seeds {grid_seeds}"
    held += "" if level == LEVEL else f" --level {level}"
    return (
        f"flatbench run --protocol {name} --seeds {seeds} --results baseline && "
        f"flatbench baseline baseline/{protocol}/records --output {output}{held}"
    )


def without_thresholds(protocol: Protocol, looked: Sequence[Path]) -> str:
    """Return what is said where a protocol has no thresholds, and none of these files is there.

    A copy of one of flatbench's protocols under another name has lost those of the original.
    """
    said = (
        f"no thresholds: nothing holds {plain(protocol.name)} to a bound, since "
        f"{' and '.join(plain(str(path)) for path in looked)} "
        f"{'is' if len(looked) == 1 else 'are'} not there"
    )
    names = (n for n in available() if load(n).common_hash() == protocol.common_hash())
    if (original := next(names, None)) is not None and original != protocol.name:
        said += f"; it has the content of {original}, but thresholds go by a protocol's name"
    return f"{said}; to derive them: {_derivation(protocol.name, '100-109', len(protocol.seeds))}"


_HEADER = """\
# Derived from {origin}, not written by hand; to derive them anew:
#   {renewal}
# Each limit of a cell is a one-sided prediction bound of one new seed, at "level"; the mean over a
# cell's seeds has a limit at that level too, made of mean and std. Each limit of a pair bounds the
# mean difference over {grid_seeds} new seeds, at "pair_level". A grid of all cells and {grid_seeds}
# seeds without a regression fails with a probability of at most {rate:.1%}.
"""


def write_thresholds(path: Path, thresholds: Thresholds) -> None:
    """Write thresholds as TOML, atomically."""
    t = thresholds
    lines = [
        _HEADER.format(
            origin="the runs named below" if t.seeds else "the published values",
            renewal=t.renewal,
            grid_seeds=t.grid_seeds,
            rate=t.false_alarm_rate,
        ),
        *(
            f"{key} = {_toml(getattr(t, key))}"
            for key in ("protocol", "evaluation", "common_hash", "level", "pair_level")
        ),
        *(f"{key} = {_toml(getattr(t, key))}" for key in ("seeds", "grid_seeds")),
        f"commit = {_toml(t.commit)}",
    ]
    for (architecture, row), cell in t.cells.items():
        lines += [
            f"\n[cells.{_toml(architecture)}.{_toml(row)}]",
            f"n = {cell.n}",
            f"cell_hash = {_toml(cell.cell_hash)}",
        ]
        for measure, b in cell.bounds.items():
            keys = ("side", "limit", "scale", "mean", "std", *(("offset",) if b.offset else ()))
            values = ", ".join(f"{k} = {_toml(getattr(b, k))}" for k in keys)
            lines.append(f"bounds.{_toml(measure)} = {{ {values} }}")
        lines += [f"unbounded.{_toml(m)} = {_toml(why)}" for m, why in cell.unbounded.items()]
    for (architecture, row), pair in t.pairs.items():
        says = "asserted: above 0" if pair.positive else "not asserted: may well be below 0"
        lines += [
            f"\n[pairs.{_toml(architecture)}.{_toml(row)}]  # {says}",
            *(f"{k} = {_toml(getattr(pair, k))}" for k in ("base", "n", "mean", "std", "limit")),
        ]
    files.write_atomically(path, ("\n".join(lines) + "\n").encode())


def _toml(value: object) -> str:
    """Return a string, number or tuple of numbers as TOML.

    JSON's strings are TOML's basic strings but for DEL, which TOML wants escaped.
    """
    if isinstance(value, tuple):
        return json.dumps(list(value))
    return json.dumps(value, allow_nan=False, ensure_ascii=False).replace("\x7f", "\\u007f")


def read_thresholds(path: Path) -> Thresholds:
    """Read thresholds.

    Raises:
        UsageError: the file cannot be read, is not TOML, or holds a key that is unknown, missing
            or of the wrong type.
    """
    try:
        table = tomllib.loads(files.read(path).decode("utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, or too long or deep
        raise UsageError(f"{path}: is not TOML: {error}") from None
    reader = Reader(path)
    cells = {}
    for key, where, cell in _nested(reader, table.pop("cells", {}), "cells"):
        bounds = reader.table(cell.pop("bounds", {}), f"{where}.bounds")
        cells[key] = reader.read(
            CellThreshold,
            cell,
            f"{where}.",
            bounds={
                measure: reader.read(
                    Bound,
                    reader.table(bound, f"{where}.bounds.{measure}"),
                    f"{where}.bounds.{measure}.",
                )
                for measure, bound in bounds.items()
            },
        )
    for (architecture, row), found in cells.items():
        for measure, bound in found.bounds.items():
            if bound.scale != "linear" and max(abs(bound.mean), bound.std) > _MOST_LOG:
                at = f"cells.{architecture}.{row}.bounds.{measure}: mean and std"
                must_be = f"numbers of at most {_MOST_LOG} in size, of scale {bound.scale}"
                raise reader.error(at, [bound.mean, bound.std], must_be)
    pairs = {
        key: reader.read(PairThreshold, pair, f"{where}.")
        for key, where, pair in _nested(reader, table.pop("pairs", {}), "pairs")
    }
    return reader.read(Thresholds, table, cells=cells, pairs=pairs)


def _nested(
    reader: Reader, table: object, name: str
) -> Iterable[tuple[tuple[str, str], str, dict[str, Any]]]:
    """Yield the tables of ``[name.architecture.row]`` with their keys."""
    for architecture, rows in reader.table(table, name).items():
        for row, values in reader.table(rows, f"{name}.{architecture}").items():
            where = f"{name}.{architecture}.{row}"
            yield (architecture, row), where, dict(reader.table(values, where))

"""Records: what one training run measured, as versioned JSON."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from flatbench.errors import UsageError
from flatbench.protocols.schema import Check, Reader

SCHEMA_VERSION: Final = 1

_NATURAL = Check(lambda x: x >= 0, "a whole number of at least 0")
_PERCENT = Check(lambda x: 0 <= x <= 100, "a number from 0 to 100")
_AT_LEAST_ZERO = Check(lambda x: x >= 0, "a number of at least 0")
_TEXT = Check(bool, "a string that is not empty")

Percent = Annotated[float, _PERCENT] | None
Number = Annotated[float, _AT_LEAST_ZERO] | None


@dataclass(frozen=True)
class Epoch:
    """What one epoch measured. Accuracies are top-1 in percent, losses are means an example."""

    train_loss: float
    train_accuracy: Annotated[float, _PERCENT]  # of the labels trained on, noisy ones included
    test_loss: float
    test_accuracy: Annotated[float, _PERCENT]
    sam_sharpness: Annotated[float, _AT_LEAST_ZERO]  # mean over the batches of rho * ||gradient||
    learning_rate: Annotated[float, _AT_LEAST_ZERO]  # of the epoch's first step
    # training alone, without evaluation, compilation, and the capture of a CUDA graph
    seconds: Annotated[float, _AT_LEAST_ZERO]
    gradient_evaluations: Annotated[int, _NATURAL]  # of batches, in this epoch


@dataclass(frozen=True)
class Record:
    """One case's result. Absent numbers are None (JSON ``null``), never NaN.

    ``test_accuracy`` and its siblings are those of the last epoch; the best epoch's, which is
    selected on the test set, is kept apart and named so. A run that ``diverged`` (a loss or
    gradient was not finite) or ``failed`` (an error, a dead worker) says why in ``reason`` and
    has no final numbers; its history holds the epochs before.
    """

    protocol: Annotated[str, _TEXT]
    architecture: Annotated[str, _TEXT]
    optimizer: Annotated[str, _TEXT]
    seed: Annotated[int, _NATURAL]
    base_row: str | None  # the row that a SAM row is compared with; None: not a SAM row
    status: Literal["completed", "diverged", "failed"]
    base: str | None = None  # base optimizer, as "sgd"; of SAM rows too
    reason: str | None = None
    evaluation: Literal["test", "validation"] = "test"  # the part that test_* were measured on
    test_accuracy: Percent = None
    best_test_accuracy: Percent = None
    test_loss: float | None = None
    train_accuracy: Percent = None
    train_loss: float | None = None
    sam_sharpness: Number = None
    sharpness: dict[str, float | None] = field(default_factory=dict)  # measures of the final w
    sharpness_history: dict[str, tuple[float | None, ...]] = field(default_factory=dict)
    # measures after each epoch of the history
    gradient_evaluations: Annotated[int, _NATURAL] = 0
    seconds: Number = None  # training alone, without evaluation
    calibration_seconds: Number = None  # of a fixed piece of work, timed beside the training
    peak_memory: Number = None  # bytes; of the device on CUDA, of the process on CPU
    history: tuple[Epoch, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    schema_version: Literal[1] = SCHEMA_VERSION

    @property
    def id(self) -> str:
        """For example "digits/resnet18/adam+sam/seed0"."""
        return f"{self.protocol}/{self.architecture}/{self.optimizer}/seed{self.seed}"

    @property
    def relative_time(self) -> float | None:
        """Training time over that of the calibration's fixed work: machines of a kind share it."""
        if not self.seconds or not self.calibration_seconds:
            return None
        return self.seconds / self.calibration_seconds

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON's own types; the history as one list a column."""
        table = dataclasses.asdict(self)
        names = [f.name for f in dataclasses.fields(Epoch)]
        table["history"] = {name: [getattr(e, name) for e in self.history] for name in names}
        return table

    def without_timings(self) -> dict[str, Any]:
        """Return the JSON less what was timed or weighed: runs of one seed share it bit for bit."""
        table = self.to_json()
        for key in ("seconds", "calibration_seconds", "peak_memory"):
            del table[key]
        del table["history"]["seconds"]
        for key in ("resumed_after", "warm_up_seconds", "capture_seconds"):
            table["provenance"].pop(key, None)  # asdict made a copy
        return table


_EPOCH = typing.get_type_hints(Epoch, include_extras=True)


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
    for name in _EPOCH:
        if columns and name not in columns:
            raise UsageError(f"{source}: history.{name} is missing")
    checked = (_column(reader, columns[name], _EPOCH[name], name) for name in columns and _EPOCH)
    history = tuple(Epoch(*values) for values in zip(*checked, strict=True))
    return reader.read(Record, table, history=history)


def _column(reader: Reader, column: list[Any], hint: Any, name: str) -> list[Any]:
    """Check one column of the history."""
    inner, *checks = typing.get_args(hint) or (hint,)
    # a fast pass that only ever says yes; the reader, value by value, says what is wrong
    if all(type(v) is inner and abs(v) <= 1e9 for v in column) and all(
        check.holds(v) for check in checks for v in column
    ):
        return column
    return [reader.value(v, hint, f"history.{name}[{i}]") for i, v in enumerate(column)]


def read(path: Path) -> list[Record]:
    """Read the records of one JSON file: a single record, or pytest-benchmark's own JSON.

    Of pytest-benchmark's JSON the benchmarks that carry no record (step timings) are passed over.

    Raises:
        UsageError: the file cannot be read, is not JSON, or a record in it is not valid.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
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
        extra = benchmark.get("extra_info") if isinstance(benchmark, dict) else None
        if not isinstance(extra, dict):
            raise Reader(path).error(f"benchmarks[{i}].extra_info", extra, "a table")
        if "record" in extra:
            records.append(from_json(extra["record"], f"{path}: benchmarks[{i}]"))
    return records


def read_one(path: Path) -> Record:
    """Read the only record of a JSON file.

    Raises:
        UsageError: as `read`, or there is not one record in it.
    """
    records = read(path)
    if len(records) != 1:
        raise UsageError(f"{path}: holds {len(records)} records: allowed is 1")
    return records[0]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def collect(paths: Iterable[Path]) -> list[Record]:
    """Read records from files and, for folders, from every ``*.json`` directly in them.

    Raises:
        UsageError: a file is not valid, a path does not exist, or there is no record in any.
    """
    records: list[Record] = []
    seen: list[str] = []
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder")
        seen.append(str(path))
        for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
            records += read(file)
    if not records:
        raise UsageError(f"{', '.join(seen) or 'no path'}: holds no record")
    return records


def write_json(path: Path, table: Mapping[str, Any]) -> None:
    """Write JSON so that the file is either whole or as it was, whatever happens meanwhile."""
    text = json.dumps(table, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file by way of a temporary one beside it: write, fsync, rename, fsync folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide a shared result
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

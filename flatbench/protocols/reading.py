"""Reading a protocol file.

The dataclasses of `flatbench.protocols.protocol` are the schema. What a single annotation cannot
say, of two keys together or of names, is checked here.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
import typing
from pathlib import Path
from typing import Any

from flatbench import components, files
from flatbench.errors import UsageError
from flatbench.models import ARCHITECTURES
from flatbench.protocols import tuning
from flatbench.protocols.methods import METHODS, Method, Momentum
from flatbench.protocols.protocol import (
    DATA_SETS,
    OPTIMIZERS,
    Architecture,
    Data,
    Model,
    Protocol,
    Reference,
    ReferenceText,
    Row,
    Sharpness,
    Source,
    Training,
)
from flatbench.protocols.schema import Reader, quoted
from flatbench.text import did_you_mean

PROTOCOLS = Path(__file__).parent


TOP_LEVEL = (
    *("data", "training", "model", "sharpness", "optimizers", "reference", "tuning"),
    *("seeds", "description", "compare_with", "against"),
)
SHORT_OPTIONS = ("lr", "momentum", "nesterov", "betas", "weight_decay")
PERTURBATION = ("rho", "adaptive", "eta")

# Names of rows, architectures, data sets and protocols become parts of case ids, of file names and
# of pytest's -k expressions.
NAME = re.compile(r"[a-z0-9][a-z0-9.+_-]{0,79}")
NAME_MUST_BE = "lower-case letters, digits and any of . + _ - after the first, at most 80"


def available() -> tuple[str, ...]:
    """Return the names of the protocols that come with flatbench."""
    return tuple(sorted(path.stem for path in PROTOCOLS.glob("*.toml")))


def load(name_or_path: str) -> Protocol:
    """Read a protocol by its name, or a file of one's own by its path (ending in ``.toml``).

    Raises:
        UsageError: no such protocol; not TOML; or a key that is unknown, missing, of the wrong
            type or out of range.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = PROTOCOLS / f"{name_or_path}.toml"
        if name_or_path not in available():
            raise UsageError(
                f"protocol must be one of {', '.join(available())}, or the path of a .toml file, "
                f"got {name_or_path!r}{did_you_mean(name_or_path, available())}"
            )
    if not NAME.fullmatch(path.stem):
        raise UsageError(f"{path}: file name {path.stem!r} must be {NAME_MUST_BE}")
    try:
        table = tomllib.loads(files.read(path).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8: {error.reason} at byte {error.start}") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, or too long or deep
        raise UsageError(f"{path}: is not TOML: {error}") from None
    return _Reader(path).protocol(table)


def file_of(protocol: Protocol) -> Path:
    """Return the file that a protocol was read from."""
    return protocol.folder / f"{protocol.name}.toml"


class _Reader(Reader):
    """A reader that knows how a protocol's tables hang together."""

    def protocol(self, table: dict[str, Any]) -> Protocol:
        given: dict[str, Any] = {"sharpness": {}} | table
        self.known(given, TOP_LEVEL, "")
        for name in ("data", "training", "model", "optimizers"):
            if name not in given:
                raise UsageError(f"{self.source}: table [{name}] is missing")
        training = self.read(Training, self.table(given["training"], "training"), "training.")
        data, model = self._data(given["data"]), self._model(given["model"])
        rows, overrides = self._rows(given["optimizers"], model)
        protocol = Protocol(
            name=Path(self.source).stem,
            folder=Path(self.source).parent.resolve(),
            data=data,
            training=training,
            model=model,
            optimizers=rows,
            overrides=overrides,
            sharpness=self.sharpness(self.table(given["sharpness"], "sharpness")),
            reference=self._reference(given, model, rows),
            **self._plain(given),
        )
        if "tuning" in given:
            if data.validation == 0:
                raise self.error("data.validation", 0.0, "above 0 where there is a [tuning]")
            found = tuning.read(self, given["tuning"], rows, protocol.seeds)
            protocol = dataclasses.replace(protocol, tuning=found)
        self._check_schedules(protocol)
        if protocol.data.evaluation == "validation" and protocol.data.validation == 0:
            must_be = '"test" unless data.validation is above 0'
            raise self.error("data.evaluation", "validation", must_be)
        return protocol

    def _plain(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return what stands at the top of the file, above all tables."""
        given = dict(given)
        if "against" in given:
            self.absent(given, "compare_with", "", "against, its old name, is given")
            given["compare_with"] = given.pop("against")
        hints = typing.get_type_hints(Protocol, include_extras=True)
        keys = ("seeds", "description", "compare_with")
        parts = {k: self.value(given[k], hints[k], k) for k in keys if k in given}
        if parts.get("compare_with") == Path(self.source).stem:
            raise self.error("compare_with", parts["compare_with"], "the name of another protocol")
        return parts

    def sharpness(self, table: dict[str, Any]) -> Sharpness:
        found = self.read(Sharpness, table, "sharpness.")
        if found.batchnorm == "train" and found.examples < 2:
            must_be = 'at least 2 with batchnorm = "train": one example has no variance'
            raise self.error("sharpness.examples", found.examples, must_be)
        return found

    def _data(self, table: object) -> Data:
        table = dict(self.table(table, "data"))
        self.known(table, _keys(Data), "data.")
        source = self._source(table.pop("source")) if "source" in table else None
        data = self.read(Data, table, "data.", source=source)
        if source is None and data.name not in DATA_SETS:
            must_be = f"one of {', '.join(DATA_SETS)}, or any with a source"
            raise self.error("data.name", data.name, must_be)
        if source is not None and data.name in DATA_SETS:
            raise self.error("data.name", data.name, "another name for a source of one's own")
        if source is not None and not NAME.fullmatch(data.name):
            raise self.error("data.name", data.name, NAME_MUST_BE)
        return data

    def _source(self, value: object) -> Source:
        if isinstance(value, str):
            value = {"function": value}
        table = dict(self.table(value, "data.source"))
        options = self._options(table.pop("options", {}), "data.source.options")
        kinds = typing.get_args(typing.get_type_hints(Source)["kind"])
        self.known(table, kinds, "data.source.")
        if len(table) != 1:
            raise self.error("data.source", value, f"a table with one of {', '.join(kinds)}")
        ((kind, what),) = table.items()
        hint = ReferenceText if kind == "function" else str
        what = self.value(what, hint, f"data.source.{kind}")
        if options and kind in ("npz", "folder"):
            raise self.error("data.source.options", options, f"absent with {kind}")
        return Source(typing.cast(Any, kind), what, options)

    def _model(self, table: object) -> Model:
        table = dict(self.table(table, "model"))
        self.known(table, _keys(Model), "model.")
        listed = table.pop("architectures", None)
        if listed is None:
            return self.read(Model, table, "model.")
        if not isinstance(listed, list) or not listed:
            raise self.error("model.architectures", listed, "a list of names and tables")
        found = tuple(
            self._architecture(value, f"model.architectures[{i}]") for i, value in enumerate(listed)
        )
        names = [architecture.name for architecture in found]
        if len(set(names)) < len(names):
            raise self.error("model.architectures", names, "a list of different names")
        return self.read(Model, table, "model.", architectures=found)

    def _architecture(self, value: object, key: str) -> Architecture:
        table = {"name": value} if isinstance(value, str) else dict(self.table(value, key))
        self.known(table, _keys(Architecture), f"{key}.")
        options = self._options(table.pop("options", {}), f"{key}.options")
        name = table.get("name")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise self.error(f"{key}.name", name, NAME_MUST_BE)
        found = self.read(Architecture, {"build": name, **table}, f"{key}.", options=options)
        if not components.is_known(found.build, ARCHITECTURES):
            if isinstance(value, str):
                must_be = f"one of {', '.join(ARCHITECTURES)}, or a table with its build"
                raise self.error(key, value, must_be)
            must_be = f"one of {', '.join(ARCHITECTURES)}, or {components.FORMS}"
            raise self.error(f"{key}.build", found.build, must_be)
        return found

    def _rows(
        self, table: object, model: Model
    ) -> tuple[dict[str, Row], dict[tuple[str, str], Row]]:
        rows: dict[str, Row] = {}
        overrides: dict[tuple[str, str], Row] = {}
        for name, row in self.table(table, "optimizers").items():
            key = f"optimizers.{quoted(name)}"
            if not NAME.fullmatch(name):
                raise UsageError(f"{self.source}: {key}: a row's name must be {NAME_MUST_BE}")
            shared = dict(self.table(row, key))
            per_architecture = self.table(shared.pop("architectures", {}), f"{key}.architectures")
            self.known(per_architecture, {*ARCHITECTURES, *model.names}, f"{key}.architectures.")
            rows[name] = self._row(name, shared, key)
            for architecture, change in per_architecture.items():
                where = f"{key}.architectures.{quoted(architecture)}"
                changed = _merged(shared, dict(self.table(change, where)))
                overrides[name, architecture] = self._row(name, changed, where)
        if not rows:
            raise UsageError(f"{self.source}: table [optimizers] holds no row")
        for name, found in rows.items():
            if found.against is not None and (found.against not in rows or found.against == name):
                key = f"optimizers.{quoted(name)}.against"
                raise self.error(key, found.against, "the name of another row")
        return rows, overrides

    def _row(self, name: str, table: dict[str, Any], key: str) -> Row:
        table = dict(table)
        keys = _keys(Row) - {"name", "method"} | {"base", "perturbation", "architectures"}
        self.known(table, keys, f"{key}.")
        if "base" in table:
            self.absent(table, "optimizer", f"{key}.", "base, its old spelling, is given")
            hint = typing.get_type_hints(Row, include_extras=True)["optimizer"]
            table["optimizer"] = self.value(table.pop("base"), hint, f"{key}.base")
        method = self._perturbation(table, key)
        options = self._options(table.pop("options", {}), f"{key}.options")
        for short in SHORT_OPTIONS:
            if short in options:
                self.absent(table, short, f"{key}.", f"{short} is one of its options")
        row = self.read(Row, table, f"{key}.", name=name, options=options, method=method)
        if row.optimizer not in OPTIMIZERS:
            # The short forms are checked as numbers above; here they become what they stand for.
            short_forms = {k: table[k] for k in SHORT_OPTIONS if k in table}
            without = {k: v for k, v in table.items() if k not in SHORT_OPTIONS}
            options = short_forms | options
            return self.read(Row, without, f"{key}.", name=name, options=options, method=method)
        if row.lr is None and "lr" not in options:
            raise UsageError(f"{self.source}: {key}.lr is missing")
        if row.optimizer == "sgd":
            self.absent(table, "betas", f"{key}.", 'optimizer is "adam(w)"', unless=True)
        else:
            for k in ("momentum", "nesterov"):
                self.absent(table, k, f"{key}.", 'optimizer = "sgd"', unless=True)
        if row.nesterov and row.momentum == 0:
            raise self.error(f"{key}.nesterov", True, "false unless momentum is above 0")
        return row

    def _perturbation(self, table: dict[str, Any], key: str) -> Method | None:
        """Read the long form of rho, adaptive and eta into the short one, and return its method."""
        if "perturbation" not in table:
            if "rho" not in table:
                for short in ("adaptive", "eta"):
                    self.absent(table, short, f"{key}.", "rho is given", unless=True)
            return None
        where = f"{key}.perturbation"
        long_form = dict(self.table(table.pop("perturbation"), where))
        names = ("sam", *METHODS)
        if (name := long_form.pop("method", None)) not in names:
            must_be = f"one of {', '.join(json.dumps(n) for n in names)}"
            raise self.error(f"{where}.method", name, must_be)
        cls = METHODS.get(name)
        own = _keys(cls) - {"name"} if cls is not None else set()
        common = ("rho",) if cls is Momentum else PERTURBATION
        self.known(long_form, {*own, *common}, f"{where}.")
        if "rho" not in long_form:
            raise UsageError(f"{self.source}: {where}.rho is missing")
        for short in PERTURBATION:
            self.absent(table, short, f"{key}.", "perturbation is given")
        table |= {k: v for k, v in long_form.items() if k not in own}
        if cls is None:
            return None
        values = {k: v for k, v in long_form.items() if k in own}
        return self.read(cls, values, f"{where}.", name=name)

    def _options(self, value: object, key: str) -> dict[str, Any]:
        """Return options made of numbers, strings, truth values, lists and tables.

        TOML has dates, too; a hash of the options has no place for them.
        """
        table = self.table(value, key)
        self._check_option(table, key)
        return table

    def _check_option(self, value: object, key: str) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                self._check_option(inner, f"{key}.{quoted(name)}")
        elif isinstance(value, list):
            for inner in value:
                self._check_option(inner, key)
        elif not isinstance(value, str | bool):
            self.value(value, float, key)

    def _reference(
        self, given: dict[str, Any], model: Model, rows: dict[str, Row]
    ) -> Reference | None:
        if "reference" not in given:
            return None
        reference = self.read(Reference, self.table(given["reference"], "reference"), "reference.")
        self.known(reference.test_accuracy, model.names, "reference.test_accuracy.")
        for architecture, cells in reference.test_accuracy.items():
            self.known(cells, rows, f"reference.test_accuracy.{quoted(architecture)}.")
        return reference

    def _check_schedules(self, protocol: Protocol) -> None:
        training = protocol.training
        rows = (*protocol.optimizers.values(), *protocol.overrides.values())
        steps = "step" in (training.schedule, *(row.schedule for row in rows))
        if steps and not training.milestones:
            raise UsageError(f'{self.source}: training.milestones is missing: schedule = "step"')
        if training.milestones and not steps:
            must_be = 'absent unless schedule = "step"'
            raise self.error("training.milestones", list(training.milestones), must_be)

    def absent(
        self, table: dict[str, Any], key: str, prefix: str, reason: str, unless: bool = False
    ) -> None:
        """Raise if a table has a key that it must not have where, or unless, something holds."""
        if key in table:
            when = "unless" if unless else "where"
            raise self.error(f"{prefix}{key}", table[key], f"absent {when} {reason}")


def _keys(cls: type[Any]) -> set[str]:
    return {f.name for f in dataclasses.fields(cls)}


def _merged(shared: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Return a row with an architecture's changes; those of its tables are made one by one."""
    merged = shared | change
    for table in ("options", "perturbation"):
        if isinstance(shared.get(table), dict) and isinstance(change.get(table), dict):
            merged[table] = shared[table] | change[table]
    return merged


def from_table(table: dict[str, Any], source: str) -> Protocol:
    """Return the protocol of a table that is no file's; paths are relative to the current folder.

    Args:
        table: as a protocol file has it.
        source: its name, which opens an error too.

    Raises:
        UsageError: as of a protocol file.
    """
    return _Reader(source).protocol(table)


def read_sharpness(table: dict[str, Any], source: str) -> Sharpness:
    """Return the ``[sharpness]`` of a table that is no file's.

    Raises:
        UsageError: a value is out of range.
    """
    listed = {k: list(v) if isinstance(v, tuple) else v for k, v in table.items()}
    return _Reader(source).sharpness(listed)


def read_row(table: dict[str, Any], name: str, source: str) -> Row:
    """Return a row of a table that is no file's.

    Args:
        table: as ``[optimizers.NAME]`` has it.
        name: the row's name.
        source: where the table comes from, to open an error with.

    Raises:
        UsageError: as of a protocol file.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"{source}: a row's name must be {NAME_MUST_BE}, got {name!r}")
    return _Reader(source)._row(name, table, name)

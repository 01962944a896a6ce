"""Reading a protocol file.

The dataclasses of `flatbench.protocols.protocol` are the schema. What a single annotation cannot
say, of two keys together or of names, is checked here.
"""

from __future__ import annotations

import re
import tomllib
import typing
from pathlib import Path
from typing import Any

from flatbench.errors import UsageError
from flatbench.models import ARCHITECTURES
from flatbench.protocols.protocol import Data, Model, Protocol, Reference, Row, Sharpness, Training
from flatbench.protocols.schema import Reader, quoted

PROTOCOLS = Path(__file__).parent


# A row's and a protocol's name become parts of case ids, file names and pytest's -k expressions.
_NAME = re.compile(r"[a-z0-9][a-z0-9.+_-]*")
_NAME_MUST_BE = "lower-case letters, digits and any of . + _ - after the first"


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
                f"got {name_or_path!r}"
            )
    if not _NAME.fullmatch(path.stem):
        raise UsageError(f"{path}: file name {path.stem!r} must be {_NAME_MUST_BE}")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8: {error.reason} at byte {error.start}") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, or too long or deep
        raise UsageError(f"{path}: is not TOML: {error}") from None
    return _Reader(path).protocol(table)


class _Reader(Reader):
    """A reader that knows how a protocol's tables hang together."""

    def protocol(self, table: dict[str, Any]) -> Protocol:
        sections = {"data": Data, "training": Training, "model": Model, "sharpness": Sharpness}
        given: dict[str, Any] = {"sharpness": {}} | table
        top_level = {"optimizers", "seeds", "description", "against", "reference", *sections}
        self.known(given, top_level, "")
        for name in ("data", "training", "model", "optimizers"):
            if name not in given:
                raise UsageError(f"{self.source}: table [{name}] is missing")
        parts: dict[str, Any] = {
            name: self.read(section, self.table(given[name], name), f"{name}.")
            for name, section in sections.items()
        }
        hints = typing.get_type_hints(Protocol, include_extras=True)
        for key in ("seeds", "description", "against"):
            if key in given:
                parts[key] = self.value(given[key], hints[key], key)

        if parts.get("against") == Path(self.source).stem:
            raise self.error("against", parts["against"], "the name of another protocol")

        rows: dict[str, Row] = {}
        overrides: dict[tuple[str, str], Row] = {}
        for name, row in self.table(given["optimizers"], "optimizers").items():
            key = f"optimizers.{quoted(name)}"
            if not _NAME.fullmatch(name):
                raise UsageError(f"{self.source}: {key}: a row's name must be {_NAME_MUST_BE}")
            shared = dict(self.table(row, key))
            per_architecture = self.table(shared.pop("architectures", {}), f"{key}.architectures")
            self.known(per_architecture, set(ARCHITECTURES), f"{key}.architectures.")
            rows[name] = self._optimizer(name, shared, key)
            for architecture, change in per_architecture.items():
                where = f"{key}.architectures.{architecture}"
                changed = shared | self.table(change, where)
                overrides[name, architecture] = self._optimizer(name, changed, where)
        if not rows:
            raise UsageError(f"{self.source}: table [optimizers] holds no row")
        if "reference" in given:
            reference = self.read(
                Reference, self.table(given["reference"], "reference"), "reference."
            )
            parts["reference"], published = reference, reference.test_accuracy
            self.known(published, parts["model"].architectures, "reference.test_accuracy.")
            for architecture, cells in published.items():
                self.known(cells, rows, f"reference.test_accuracy.{architecture}.")
        protocol = Protocol(
            name=Path(self.source).stem, optimizers=rows, overrides=overrides, **parts
        )
        self._check_schedule(protocol.training)
        if protocol.data.evaluation == "validation" and protocol.data.validation == 0:
            must_be = '"test" unless data.validation is above 0'
            raise self.error("data.evaluation", "validation", must_be)
        return protocol

    def _optimizer(self, name: str, row: dict[str, Any], key: str) -> Row:
        optimizer = self.read(Row, row, f"{key}.", name=name)
        if optimizer.base != "sgd":
            for k in ("momentum", "nesterov"):
                if k in row:
                    raise self.error(f"{key}.{k}", row[k], 'absent unless base = "sgd"')
        elif "betas" in row:
            raise self.error(f"{key}.betas", row["betas"], 'absent unless base is "adam(w)"')
        if optimizer.nesterov and optimizer.momentum == 0:
            raise self.error(f"{key}.nesterov", True, "false unless momentum is above 0")
        if not optimizer.is_sam:
            for k in ("adaptive", "eta"):
                if k in row:
                    raise self.error(f"{key}.{k}", row[k], "absent unless rho is given")
        return optimizer

    def _check_schedule(self, training: Training) -> None:
        if training.schedule == "step" and not training.milestones:
            raise UsageError(f'{self.source}: training.milestones is missing: schedule = "step"')
        if training.schedule != "step" and training.milestones:
            must_be = 'absent unless schedule = "step"'
            raise self.error("training.milestones", list(training.milestones), must_be)

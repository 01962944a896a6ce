"""Every key of a protocol: docs/protocols.md.

Types and defaults are those of the schema's dataclasses. What a key means is the comment above its
field, which is thereby the one place that says so.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import sys
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from tabulate import tabulate

from flatbench.models import ARCHITECTURES
from flatbench.protocols.methods import METHODS
from flatbench.protocols.protocol import (
    DATA_SETS,
    OPTIMIZERS,
    Architecture,
    Data,
    Metric,
    Model,
    Protocol,
    Reference,
    Row,
    Sharpness,
    Training,
)
from flatbench.protocols.tuning import Tuning
from flatbench.text import markdown_text

PLAIN = {float: "a number", int: "a whole number", bool: "true or false", str: "a string"}
# What stands where in a file: heading, class, and the fields that are no keys there.
TABLES: tuple[tuple[str, type, tuple[str, ...]], ...] = (
    (
        "At the top",
        Protocol,
        (
            *("name", "folder", "data", "training", "model"),
            *("optimizers", "overrides", "sharpness", "reference", "tuning"),
        ),
    ),
    ("[data]", Data, ()),
    ("[training]", Training, ()),
    ("[training.metric]", Metric, ()),
    ("[model]", Model, ()),
    ("A table in model.architectures", Architecture, ()),
    ("[optimizers.NAME]", Row, ("name", "method")),
    ("[sharpness]", Sharpness, ()),
    ("[reference]", Reference, ()),
    ("[tuning]", Tuning, ()),
)


def meanings(cls: type) -> dict[str, str]:
    """Return the comment above each field of a dataclass, by the field's name."""
    source = inspect.getsource(sys.modules[cls.__module__])
    lines = source.splitlines()
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__:
            for statement in node.body:
                if isinstance(statement, ast.AnnAssign):
                    first = statement.lineno - 1
                    while lines[first - 1].startswith("    # "):
                        first -= 1
                    above = lines[first : statement.lineno - 1]
                    name = ast.unparse(statement.target)
                    found[name] = " ".join(line.removeprefix("    # ") for line in above)
    return found


def words(hint: Any) -> str:  # noqa: PLR0911 - one return for each kind of annotation
    """Return what an annotation lets a key hold."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return "; ".join(check.must_be for check in arguments[1:])
    if origin in (types.UnionType, typing.Union):
        return words(arguments[0])
    if origin is Literal:
        return ", ".join(json.dumps(choice) for choice in arguments)
    if origin is tuple:
        if dataclasses.is_dataclass(arguments[0]):
            return "a list of names and tables"
        return f"a list of {words(arguments[0])}"
    if origin in (dict, Mapping) or dataclasses.is_dataclass(hint):
        return "a table"
    return PLAIN[hint]


def default(f: dataclasses.Field[Any]) -> str:
    """Return a field's default as TOML would write it, or that there must be a value."""
    if f.default is f.default_factory is dataclasses.MISSING:
        return "required"
    value = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
    if value is None or value == {}:
        return ""
    if isinstance(value, tuple):
        value = [x.name if isinstance(x, Architecture) else x for x in value]
    return f"`{json.dumps(value)}`"


def keys(cls: type, left_out: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return a row for each of a dataclass's keys: key, what it must be, default, meaning."""
    hints, says = typing.get_type_hints(cls, include_extras=True), meanings(cls)
    return [
        (
            f"`{f.name}`",
            markdown_text(words(hints[f.name])),
            default(f),
            markdown_text(says[f.name]),
        )
        for f in dataclasses.fields(cls)
        if f.name not in left_out
    ]


def table(cls: type, left_out: tuple[str, ...]) -> str:
    """Return a markdown table of a dataclass's keys."""
    titles = ["key", "must be", "default", "what it says"]
    return tabulate(keys(cls, left_out), titles, tablefmt="github")


def methods() -> str:
    """Return a markdown table of the SAM family's methods and their keys."""
    rows: list[tuple[str, ...]] = []
    for name, cls in METHODS.items():
        assert cls.__doc__ is not None
        rows.append((f"`{name}`", "", "", "", cls.__doc__))
        rows += [("", *row) for row in keys(cls, ("name",))]
    titles = ["method", "key", "must be", "default", "what it says"]
    return tabulate(rows, titles, tablefmt="github")


PAGE = """\
# Protocols

A protocol is a TOML file that says what is trained, on what, for how long and with which
optimizers. `flatbench/protocols/` has those that come with flatbench, by name; any other is given
by its path: `flatbench run --protocol mine.toml`. docs/project has one with its own optimizer.

**A protocol file runs code.** What its references name is imported and called, as a script would.
Read a stranger's protocol before you run it.

## References

Where flatbench's own names end, a reference goes on:

- `"torch.optim:RMSprop"`, `"lion_pytorch:Lion"`: an object of a package that is installed;
- `"./lion.py:Lion"`: an object in a file, relative to the protocol's. The file may import others of
  its folder;
- a name that an installed package has registered as an entry point of the group
  `flatbench.components`; it comes before a name of flatbench's own.

Options go in a table and are handed over as they are, after a check against the signature. A value
`{{ ref = "torch.optim:SGD" }}` is what the reference names. Lists become tuples.

The text of a reference and its options are part of a cell's hash, by which a gate knows whether it
speaks of the same thing. The code behind them, a version or a file's content, is part of a run's
key and of its provenance: an edited optimizer trains again, and is held to the old baseline.

## Names

Names of rows, architectures, data sets and protocols hold lower-case letters, digits and any of
`. + _ -`; they become parts of case ids and of file names. flatbench's own are

- optimizers: {optimizers};
- networks: {networks};
- data sets: {data_sets}.

{tables}

## Sources of data

`data.source` is one of

- `{{ npz = "mine.npz" }}`, `{{ folder = "images" }}`,
  `{{ torchvision = "KMNIST", options = {{ ... }} }}`;
- a reference to a function, `"./mydata.py:load"`, or with options
  `{{ function = "./mydata.py:load", options = {{ ... }} }}`.

## Rows of an architecture

A table `architectures.NAME` in a row changes the row on that architecture: any key of the row, and
options one by one.

```toml
[optimizers.sgd]
optimizer = "sgd"
lr = 0.1
architectures.vgg16 = {{ lr = 0.03 }}
```

`base` is an old spelling of `optimizer`.

## Perturbations

`perturbation = {{ method = "sam", rho = 0.1 }}` is the long form of `rho`, `adaptive` and `eta`.
Other methods of the SAM family have the long form alone, with `rho` and, but for `momentum-sam`,
`adaptive` and `eta`, and keys of their own. [optim.md](optim.md) says what each does.

{methods}
"""


def page() -> str:
    """Return docs/protocols.md."""
    tables = "\n\n".join(
        f"## `{heading}`\n\n{inspect.getdoc(cls)}\n\n{table(cls, left_out)}"
        if heading.startswith("[")
        else f"## {heading}\n\n{table(cls, left_out)}"
        for heading, cls, left_out in TABLES
    ).replace("``", "`")
    return PAGE.format(
        optimizers=", ".join(OPTIMIZERS),
        networks=", ".join(ARCHITECTURES),
        data_sets=", ".join(DATA_SETS),
        tables=tables,
        methods=methods(),
    )

"""Cases: one training run each, and the grid of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from flatbench import components
from flatbench.errors import UsageError
from flatbench.models import ARCHITECTURES
from flatbench.protocols.protocol import LOSS, OPTIMIZERS, Architecture, Protocol, Row
from flatbench.protocols.reading import load
from flatbench.text import did_you_mean

_T = TypeVar("_T")


@dataclass(frozen=True)
class Case:
    """One training run: a cell of the table and a seed."""

    protocol: Protocol
    architecture: str
    optimizer: str
    seed: int

    @property
    def id(self) -> str:
        """For example "digits/resnet18/adam+sam/seed0"."""
        return f"{self.protocol.name}/{self.architecture}/{self.optimizer}/seed{self.seed}"

    @property
    def row(self) -> Row:
        """The optimizer's settings on this architecture."""
        return self.protocol.optimizer(self.optimizer, self.architecture)

    @property
    def epochs(self) -> int:
        """The row's own number of epochs, or the protocol's."""
        return self.row.epochs or self.protocol.training.epochs

    @property
    def architecture_settings(self) -> Architecture:
        """What the architecture's name stands for."""
        return self.protocol.model.architecture(self.architecture)

    def references(self) -> tuple[str, ...]:
        """Return every reference to code that is not flatbench's, each once."""
        row, network = self.row, self.architecture_settings
        source, metric = self.protocol.data.source, self.protocol.training.metric
        named = [
            row.optimizer,
            row.groups,
            network.build,
            self.protocol.training.loss,
            source.what if source is not None and source.kind == "function" else None,
            metric.ref if metric is not None else None,
        ]
        options = [row.options, network.options, source.options if source is not None else {}]
        ours = (*OPTIMIZERS, *ARCHITECTURES, LOSS)
        # A package may have registered a name of ours, which then is the package's.
        found = [
            text
            for text in named
            if text is not None and (text not in ours or components.is_registered(text))
        ]
        return tuple(dict.fromkeys([*found, *components.references(options)]))

    def cell_hash(self) -> str:
        """Return the hash of everything in the protocol that bears on this case's result."""
        return self.protocol.cell_hash(self.optimizer, self.architecture)


def grid(
    protocol: Protocol,
    architectures: Sequence[str] | None = None,
    optimizers: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Case]:
    """Return the cases of a protocol, or of a selection from it, seed by seed.

    The seed is the slowest index: a grid that is cut short has whole tables to show.

    Raises:
        UsageError: an architecture or optimizer that the protocol does not have, or a name or
            seed given twice.
    """
    rows = tuple(protocol.optimizers)
    return [
        Case(protocol, architecture, optimizer, seed)
        for seed in _distinct("--seeds", seeds or protocol.seeds)
        for architecture in selected(
            "--architectures", architectures, protocol.model.names, protocol
        )
        for optimizer in selected("--optimizers", optimizers, rows, protocol)
    ]


def from_id(text: str, protocol: str | None = None) -> Case:
    """Return the case of an id such as "digits/resnet18/adam+sam/seed0".

    Args:
        text: the id.
        protocol: the protocol's file, where it is not one that comes with flatbench.

    Raises:
        UsageError: the text is no case id, or its protocol has no such case.
    """
    found = re.fullmatch(r"([^/]+)/([^/]+)/([^/]+)/seed([0-9]{1,18})", text)
    if found is None:
        raise UsageError(
            "case must be PROTOCOL/ARCHITECTURE/OPTIMIZER/seedN, "
            f"as flatbench list --protocol NAME prints it, got {text!r}"
        )
    name, architecture, optimizer, seed = found.groups()
    settings = load(protocol or name)
    if settings.name != name:
        raise UsageError(f"case {text!r}: --protocol {protocol} is named {settings.name!r}")
    return grid(settings, [architecture], [optimizer], [int(seed)])[0]


def selected(
    option: str, wanted: Sequence[str] | None, has: Sequence[str], protocol: Protocol
) -> Sequence[str]:
    """Return the names that an option asks for, or all that a protocol has.

    Raises:
        UsageError: a name that the protocol does not have, or one given twice.
    """
    for name in wanted or ():
        if name not in has:
            raise UsageError(
                f"{option} must be among {', '.join(has)} for protocol {protocol.name!r}, "
                f"got {name!r}{did_you_mean(name, has)}"
            )
    return _distinct(option, wanted or has)


def _distinct(option: str, values: Sequence[_T]) -> Sequence[_T]:
    for value, count in Counter(values).items():
        if count > 1:
            raise UsageError(f"{option}: {value} is given more than once")
    return values

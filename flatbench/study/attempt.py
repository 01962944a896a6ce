"""`flatbench try`: an optimizer of one's own beside a protocol's rows, on equal terms."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatbench import components
from flatbench.errors import UsageError
from flatbench.execution import Machine
from flatbench.protocols.cases import Case, grid, selected
from flatbench.protocols.protocol import OPTIMIZERS, Protocol, Row
from flatbench.protocols.reading import PROTOCOLS, SHORT_OPTIONS, read_row
from flatbench.protocols.schema import Reader
from flatbench.protocols.tuning import Choice, Range, Tuning, read_space, with_values
from flatbench.records.provenance import describe
from flatbench.records.published import published
from flatbench.records.record import Record
from flatbench.records.sections import Section, sections
from flatbench.records.store import Store
from flatbench.study.answer import Answer, answer
from flatbench.study.equal_terms import questions_of
from flatbench.study.runs import train
from flatbench.study.tune import Tuned, tune
from flatbench.study.tuning_report import edges_text, outcome_text, values_text
from flatbench.text import ranges
from flatbench.training import devices
from flatbench.training.optimizers import OURS

SOURCE = "try"
DEFAULT_SPACE: Mapping[str, Range] = {
    "lr": Range(1e-5, 1.0),
    "weight_decay": Range(1e-6, 1e-1),
    "rho": Range(1e-2, 1.0),
}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What is asked for: an optimizer, how it is tuned, and what it is compared with."""

    reference: str  # as a protocol's row has it; a file is relative to the current folder
    protocol: Protocol
    name: str | None = None  # of its row; None: the class's own
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    space: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # as [tuning.space] has it
    is_tuned: bool = True
    trials: int | None = None  # None: the protocol's own, which its rows had too
    architectures: Sequence[str] | None = None  # None: the protocol's first
    seeds: Sequence[int] | None = None  # None: the protocol's
    against: Sequence[str] | None = None  # None: all rows
    trains_references: bool = False


class Untrainable(Exception):
    """No trial of an optimizer came to an end, so that there is nothing to compare."""


@dataclass(frozen=True)
class Attempt:
    """What came of it."""

    protocol: Protocol  # with the rows that were added
    records: tuple[Record, ...]  # of all rows that were compared
    section: Section
    answer: Answer

    @property
    def completed(self) -> bool:
        """Whether mine completed with any seed."""
        return _completed(self.records, self.answer.mine)

    def case(self, row: str) -> Case:
        """Return a case of a row, on the first architecture that was compared on."""
        return Case(self.protocol, self.section.architectures[0], row, self.section.seeds[0])

    def adam(self) -> Case:
        """Return a case of the protocol's Adam, or of one with its usual values."""
        if "adam" in self.protocol.optimizers:
            return self.case("adam")
        row = read_row({"optimizer": "adam", "lr": 1e-3}, "adam", SOURCE)
        rows = {**self.protocol.optimizers, "adam": row}
        case = self.case(self.answer.mine)
        return dataclasses.replace(
            case, optimizer="adam", protocol=dataclasses.replace(self.protocol, optimizers=rows)
        )


def attempt(request: Request, machine: Machine, store: Store, say: Say) -> Attempt:
    """Tune and train an optimizer, and compare it with the rows of a protocol.

    Args:
        request: what is asked for.
        machine: where it trains.
        store: keeps its records; finished ones are taken as they are.
        say: takes each line that says what is being done.

    Raises:
        UsageError: the optimizer, its options or the protocol can't be used.
        Untrainable: every trial lost a seed.
    """
    row, protocol = with_mine(request)
    name = row.name
    architectures = tuple(request.architectures or protocol.model.names[:1])
    seeds = tuple(request.seeds or request.protocol.seeds)
    against = selected(
        "--against", request.against, tuple(request.protocol.optimizers), request.protocol
    )
    # Whatever is wrong with a name is said before anything trains.
    mine = grid(protocol, architectures, [name], seeds)
    others = grid(protocol, architectures, against, seeds)
    if protocol.tuning is not None:
        _check_seeds(seeds, protocol.tuning)
    say(
        f"{request.reference} as row {name!r} of protocol {protocol.name} on "
        f"{', '.join(architectures)}, seeds {ranges(seeds)}, beside {', '.join(against)}"
    )
    left = [a for a in protocol.model.names if a not in architectures]
    if left and request.architectures is None:
        say(f"not on {', '.join(left)}: --architectures {','.join(protocol.model.names)}")
    if protocol.tuning is not None:
        say(_tuning_text(request, protocol.tuning, name))
        protocol = _tuned(protocol, name, architectures, machine, store, say)
        mine = grid(protocol, architectures, [name], seeds)
    elif request.is_tuned:
        say(f"nothing to tune: of {', '.join(DEFAULT_SPACE)} it takes none but --options has it")
    else:
        say("not tuned, as --no-tuning asks: the other rows may have been")
    known = None if request.trains_references else published(request.protocol)
    shipped = {record.id: record for record in known or ()}
    records = [shipped[case.id] for case in others if case.id in shipped]
    missing = [case for case in others if case.id not in shipped]
    _say_whose(records, known, len(missing), _made_here(protocol, machine), say)
    records += train([*mine, *missing], machine, store)
    protocol, longer, questions = questions_of(
        protocol, request.protocol, name, against, architectures, records
    )
    for longest, architecture in longer:
        epochs = Case(protocol, architecture, longest, 0).epochs
        say(f"{longest} on {architecture}: {epochs} epochs, for as many gradients")
    more = [c for (row_name, a) in longer for c in grid(protocol, [a], [row_name], seeds)]
    records += [shipped[c.id] for c in more if c.id in shipped]
    records += train([c for c in more if c.id not in shipped], machine, store)
    (section,) = sections(records, [protocol])
    return Attempt(protocol, tuple(records), section, answer(section, name, questions))


def _completed(records: Iterable[Record], row: str) -> bool:
    return any(r.optimizer == row and r.status == "completed" for r in records)


def name_of(request: Request) -> str:
    """Return the name of mine's row: the one that was given, or its class's in lower case."""
    return request.name or request.reference.rpartition(":")[2].rpartition(".")[2].lower()


def with_mine(request: Request) -> tuple[Row, Protocol]:
    """Return mine's row, and the protocol with it and with its tuning.

    Raises:
        UsageError: its class, name, options or space can't be used, or there is no tuning to take.
    """
    protocol = request.protocol
    reference, folder = _from_here(request.reference, protocol)
    is_ours = reference in OPTIMIZERS and not components.is_registered(reference)
    if not components.is_known(reference, OPTIMIZERS):
        raise UsageError(
            f"{SOURCE}: the optimizer must be one of {', '.join(OPTIMIZERS)}, or "
            f"{components.FORMS}, got {request.reference!r}{_hint(request.reference)}"
        )
    component = components.find(reference, folder, OURS, SOURCE)
    name = name_of(request)
    if name in protocol.optimizers:
        raise UsageError(
            f"{SOURCE}: {name!r} is a row of protocol {protocol.name!r}; give another --name"
        )
    space = _space(request, component) if request.is_tuned else {}
    if not is_ours:
        tried = dict.fromkeys(space) | dict(request.options)
        components.arguments(component, tried, f"{SOURCE}: --options", positional=1)
    table: dict[str, Any] = {"optimizer": reference, "options": {}}
    middle = {"lr": math.sqrt(DEFAULT_SPACE["lr"].low)} if is_ours and "lr" in space else {}
    for key, value in (middle | dict(request.options)).items():
        into = table if is_ours and key in SHORT_OPTIONS else table["options"]
        into[key] = value
    row = read_row(table, name, SOURCE)
    tuning = None
    if space:
        if protocol.tuning is None and request.trials is None:
            raise UsageError(
                f"protocol {protocol.name!r}: table [tuning] is missing, which says how many "
                "trials its rows had; give --trials N, or --no-tuning with --options"
            )
        if protocol.data.validation == 0:
            raise UsageError(
                f"protocol {protocol.name!r}: data.validation must be above 0 to tune on, got 0; "
                "give --no-tuning, with --options"
            )
        given = protocol.tuning
        tuning = Tuning(
            request.trials or (given.trials if given else 0),
            given.seeds if given else (1000, 1001),
            {name: read_space(Reader(SOURCE), space, row, "--tune")},
        )
    return row, dataclasses.replace(
        protocol,
        folder=folder,
        optimizers={**protocol.optimizers, name: row},
        tuning=tuning,
    )


def _hint(reference: str) -> str:
    path, _, name = reference.partition(":")
    there = name and Path(path).is_file()
    return f" (did you mean './{reference}'?)" if there else ""


def _from_here(reference: str, protocol: Protocol) -> tuple[str, Path]:
    """Return a reference and the folder that it is relative to, for a protocol that has it.

    A protocol that comes with flatbench refers to no file. Another one may, so the reference must
    be relative to that one's folder.
    """
    here = Path.cwd()
    if protocol.folder == PROTOCOLS.resolve():
        return reference, here
    path, colon, attribute = reference.rpartition(":")
    if not colon or not path.startswith(("./", "../")):
        return reference, protocol.folder
    relative = Path(os.path.relpath(here / path, protocol.folder)).as_posix()
    dotted = relative if relative.startswith("../") else f"./{relative}"
    return f"{dotted}:{attribute}", protocol.folder


def _space(request: Request, component: components.Component) -> dict[str, Any]:
    """Return what is tuned, as ``[tuning.space]`` has it."""
    if request.space:
        both = [name for name in request.space if name in request.options]
        if both:
            raise UsageError(f"{SOURCE}: {both[0]!r} must stand in --options or --tune, not both")
        return dict(request.space)
    return {
        name: str(found)
        for name, found in DEFAULT_SPACE.items()
        if components.takes(component, name) and name not in request.options
    }


def _check_seeds(seeds: Iterable[int], tuning: Tuning) -> None:
    for seed in seeds:
        if seed in tuning.seeds:
            raise UsageError(
                f"--seeds must be none of those that are tuned with, {ranges(tuning.seeds)}, "
                f"got {seed}"
            )


def _tuning_text(request: Request, tuning: Tuning, name: str) -> str:
    space = ", ".join(f"{key} in {_shown(found)}" for key, found in tuning.space[name].items())
    theirs = request.protocol.tuning
    if theirs is None:
        budget = "how many the other rows had is not known"
    elif theirs.trials == tuning.trials:
        budget = "as many as the other rows have"
    else:
        budget = f"where the other rows have {theirs.trials}"
    return (
        f"tuning on the validation part: {space}; {tuning.trials} trials with seeds "
        f"{ranges(tuning.seeds)}, {budget}"
    )


def _tuned(
    protocol: Protocol,
    name: str,
    architectures: Sequence[str],
    machine: Machine,
    store: Store,
    say: Say,
) -> Protocol:
    """Return the protocol with mine's winning values."""
    assert protocol.tuning is not None
    found = tune(protocol, [name], architectures, machine=machine, store=store)
    overrides: dict[tuple[str, str], Row] = dict(protocol.overrides)
    for architecture in architectures:
        best = found.best(name, architecture)
        if best is None:
            raise Untrainable(
                f"{name} on {architecture}: no trial completed all its seeds: {_reason(found)}"
            )
        overrides[name, architecture] = with_values(protocol.optimizers[name], best.values)
        say(f"  {architecture}: {values_text(best.values)}: {outcome_text(best)} on validation")
    for line in edges_text(found):
        say(f"  warning: {line}")
    first = overrides.pop((name, architectures[0]))
    return dataclasses.replace(
        protocol, optimizers={**protocol.optimizers, name: first}, overrides=overrides, tuning=None
    )


def _reason(found: Tuned) -> str:
    return next((r.reason for r in found.records if r.reason), "no reason given")


def _shown(found: Range | Choice) -> str:
    return str(found) if isinstance(found, Range) else ", ".join(map(str, found))


def _say_whose(
    found: Sequence[Record],
    known: Sequence[Record] | None,
    missing: int,
    here: Mapping[str, Any],
    say: Say,
) -> None:
    """Say where the reference rows' records come from.

    Args:
        found: those of them that are published.
        known: all that are published of the protocol; None where none is wanted.
        missing: how many must be trained.
        here: the provenance of a run here.
        say: takes each line.
    """
    if found:
        made = [*dict.fromkeys(_made_with(r.provenance) for r in found)]
        same = made == [_made_with(here)]
        say(
            f"the other rows: {len(found)} published runs of the same protocol, made with "
            f"{'; '.join(made)}; {'as here' if same else f'here: {_made_with(here)}'}; "
            "--train-references trains them here"
        )
    if missing:
        why = ""
        if known is not None:
            why = ", which are not published"
        if known == []:
            why += ": no published run is of a protocol with this name and content"
        say(f"the other rows: {missing} runs to train here{why}")


def _made_here(protocol: Protocol, machine: Machine) -> Mapping[str, Any]:
    return describe(devices.find(machine.device), protocol.training.precision)


def _made_with(made: Mapping[str, Any]) -> str:
    commit = str(made.get("commit") or "unknown")[:12]
    return (
        f"flatbench {made.get('flatbench_version')} (commit {commit}, sources "
        f"{made.get('source_hash')}), torch {made.get('torch')}, {made.get('device')}"
    )

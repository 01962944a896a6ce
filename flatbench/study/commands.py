"""The commands of a study, as the command line takes them: their options, and what runs.

What imports torch or pandas is imported by the command that needs it.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flatbench import options as shared
from flatbench.options import MACHINE, RESULTS, SELECTION, TRAINING, assignment, count, names
from flatbench.protocols.reading import load
from flatbench.text import markdown_text

if TYPE_CHECKING:
    from flatbench.study.answer import Answer

EXAMPLES: Final = {
    "tune": "flatbench tune digits --optimizers adam,adam+sam",
    "try": "flatbench try ./lion.py:Lion --tune lr=1e-5..1e-2 weight_decay=0,0.01,0.1",
}


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the commands to the command line."""
    _add_tune(commands)
    _add_try(commands)


def _add_tune(commands: argparse._SubParsersAction[Any]) -> None:
    tune = commands.add_parser("tune", help="choose hyperparameters on the validation part")
    tune.add_argument("protocol", help="a name, or the path of a .toml file, with a [tuning]")
    shared.add(
        tune.add_argument,
        {k: SELECTION[k] for k in ("architectures", "optimizers")},
        MACHINE,
        RESULTS,
    )
    shared.add(tune.add_argument, {"workers": TRAINING["workers"]})
    tune.add_argument("--trials", type=count, help="a row and architecture (default: [tuning]'s)")
    tune.add_argument(
        "--output", type=Path, help="the winners' protocol (default: beside the report)"
    )
    tune.set_defaults(command=_tune)


def _tune(options: argparse.Namespace) -> int:
    from flatbench.files import write_atomically
    from flatbench.records.store import Store
    from flatbench.study import tuning_report, winners
    from flatbench.study.runs import machine_of
    from flatbench.study.trials import tuning_of
    from flatbench.study.tune import tune

    protocol = load(options.protocol)
    if options.trials is not None:
        tuning = dataclasses.replace(tuning_of(protocol), trials=options.trials)
        protocol = dataclasses.replace(protocol, tuning=tuning)
    found = tune(
        protocol,
        options.optimizers,
        options.architectures,
        machine=machine_of(options),
        store=Store(options.results, resume=True),
    )
    folder = options.results / f"{protocol.name}-tuning"
    output = options.output or folder / f"{protocol.name}-tuned.toml"
    if not found.without_winner:
        winners.write(found, output)
    write_atomically(folder / "report.md", tuning_report.markdown(found).encode())
    tuning_report.write_figures(found, folder / "figures")
    print("\n".join(tuning_report.summary_lines(found)))
    for line in tuning_report.edges_text(found):
        print(f"warning: {line}")
    print(f"report: {folder / 'report.md'}")
    if found.without_winner:
        row, architecture = found.without_winner[0]
        where = f"{protocol.name}/{architecture}/{row}"
        print(f"flatbench: {where}: no trial completed all its seeds", file=sys.stderr)
        return 1
    print(f"next: flatbench run --protocol {output}")
    return 0


def _add_try(commands: argparse._SubParsersAction[Any]) -> None:
    attempt = commands.add_parser("try", help="is this optimizer better than a protocol's rows?")
    attempt.add_argument("optimizer", help="./lion.py:Lion, package.module:Class, or a name")
    many: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}
    attempt.add_argument(
        "--options", **many, type=assignment, metavar="NAME=VALUE", help="fixed, of its class"
    )
    attempt.add_argument(
        "--tune",
        **many,
        type=space,
        metavar="NAME=LOW..HIGH|NAME=A,B,C",
        help="default: lr, weight_decay and rho, those that the class takes and --options leaves",
    )
    attempt.add_argument("--no-tuning", action="store_true", help="train it as --options say")
    attempt.add_argument("--trials", type=count, help="default: as many as the other rows had")
    attempt.add_argument("--name", help="of its row (default: its class's name)")
    attempt.add_argument("--against", type=names, help="rows to compare with (default: all)")
    attempt.add_argument(
        "--train-references", action="store_true", help="rather than take published records"
    )
    attempt.add_argument(
        "--require",
        action="append",
        type=better_than,
        default=[],
        metavar="better-than=ROW",
        help="exit with 1 unless it is, in every comparison",
    )
    kept = {name: option for name, option in SELECTION.items() if name != "optimizers"}
    kept["architectures"] = {**kept["architectures"], "help": "default: the protocol's first"}
    shared.add(attempt.add_argument, kept, MACHINE, RESULTS, {"workers": TRAINING["workers"]})
    attempt.set_defaults(command=_try)


def space(text: str) -> tuple[str, Any]:
    """Parse NAME=LOW..HIGH, or NAME=A,B,C."""
    name, equals, value = text.partition("=")
    if not name.strip() or not equals:
        must_be = "must be NAME=LOW..HIGH or NAME=A,B,C"
        raise argparse.ArgumentTypeError(f"{must_be}, got {text!r}")
    if ".." in value:
        return name.strip(), value
    return name.strip(), [assignment(f"{name}={part}")[1] for part in value.split(",")]


def better_than(text: str) -> str:
    """Parse better-than=ROW and return the row."""
    kind, equals, row = text.partition("=")
    if kind != "better-than" or not equals or not row:
        raise argparse.ArgumentTypeError(f"must be better-than=ROW, got {text!r}")
    return row


def _try(options: argparse.Namespace) -> int:
    from flatbench import report
    from flatbench.errors import UsageError
    from flatbench.files import write_atomically, write_json
    from flatbench.records.store import Store
    from flatbench.study import cost, sentences
    from flatbench.study.attempt import Request, Untrainable, attempt, name_of
    from flatbench.study.runs import machine_of

    protocol = load(options.protocol)
    if options.no_tuning and (options.tune or options.trials):
        given = "--tune" if options.tune else "--trials"
        raise UsageError(f"{given} must be left out with --no-tuning")
    request = Request(
        options.optimizer,
        protocol,
        name=options.name,
        options=dict(options.options),
        space=dict(options.tune),
        is_tuned=not options.no_tuning,
        trials=options.trials,
        architectures=options.architectures,
        seeds=options.seeds,
        against=options.against,
        trains_references=options.train_references,
    )
    for row in options.require:
        if row not in (options.against or protocol.optimizers):
            rows = ", ".join(options.against or protocol.optimizers)
            raise UsageError(f"--require better-than must be one of {rows}, got {row!r}")
    machine, folder = machine_of(options), options.results / name_of(request)
    store = Store(folder, resume=True)
    try:
        found = attempt(request, machine, store, lambda line: print(line, flush=True))
    except Untrainable as error:
        print(f"flatbench: {error}", file=sys.stderr)
        return 1
    mine, outcome = found.answer.mine, found.section.outcome
    said = sentences.lines(found.answer, outcome)
    if found.completed:
        own = found.case(mine)
        said.append(cost.beside(own, found.adam(), machine).sentence())
    print("\n".join(said))
    others = sentences.flatness_lines(found.answer, outcome)
    listed, more = ("".join(f"- {markdown_text(x.strip())}\n" for x in xs) for xs in (said, others))
    whole = report.render(found.records, protocols=[found.protocol])
    text = f"# Is {mine} better?\n\n{listed}\n## By the other measures\n\n{more}\n{whole}"
    write_json(folder / "answer.json", found.answer.to_json())
    write_atomically(folder / "report.md", text.encode())
    print(f"report: {folder / 'report.md'}")
    return _verdict(found.answer, options.require, found.completed)


def _verdict(found: Answer, required: Sequence[str], completed: bool) -> int:
    from flatbench.study.answer import require

    short = [why for row in required if (why := require(found, row)) is not None]
    if not completed:
        short.append(f"{found.mine} came to no end with any seed")
    for line in short:
        print(f"flatbench: {line}", file=sys.stderr)
    return 1 if short else 0

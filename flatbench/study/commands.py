"""The commands of a study, as the command line takes them: their options, and what runs.

What imports torch or pandas is imported by the command that needs it.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from flatbench import options as shared
from flatbench.errors import UsageError
from flatbench.options import (
    GATE,
    GRID,
    MACHINE,
    RESULTS,
    SELECTION,
    WORKERS,
    assignment,
    count,
    names,
    natural,
)
from flatbench.protocols.cases import grid
from flatbench.protocols.protocol import Measure, Protocol
from flatbench.protocols.reading import load, read_sharpness
from flatbench.records.quantities import NORMALISED
from flatbench.text import did_you_mean, markdown_text

if TYPE_CHECKING:
    from flatbench.study.answer import Answer

EXAMPLES: Final = {
    "gate": "flatbench gate --protocol mine.toml --baseline mine.baseline.json.gz",
    "tune": "flatbench tune digits --optimizers adam,adam+sam",
    "try": "flatbench try ./lion.py:Lion --tune lr=1e-5..1e-2 weight_decay=0,0.01,0.1",
    "check": "flatbench check ./mysam.py:MySAM --options rho=0.1",
    "sharpness": "flatbench sharpness --model ./net.py:build --weights w.safetensors --data my.npz",
}


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the commands to the command line."""
    _add_gate(commands)
    _add_tune(commands)
    _add_try(commands)
    _add_check(commands)
    _add_sharpness(commands)


def _add_gate(commands: argparse._SubParsersAction[Any]) -> None:
    gate = commands.add_parser("gate", help="train a grid and hold it to a baseline, as CI does")
    shared.add(gate.add_argument, SELECTION, MACHINE, WORKERS, RESULTS)
    gate.add_argument(
        "--baseline",
        type=Path,
        help="records (JSON, .json.gz, a folder), or thresholds (default: PROTOCOL.thresholds.toml "
        "beside the protocol)",
    )
    gate.add_argument("--details", metavar="MARKDOWN", help="the last line of gate-comment.md")
    shared.add(gate.add_argument, {"resume": GRID["resume"]}, GATE)
    gate.set_defaults(command=_gate)


def _gate(options: argparse.Namespace) -> int:
    chosen = (options.architectures, options.optimizers, options.seeds)
    cases = grid(load(options.protocol), *chosen)  # a slip in it is told before torch is there
    from flatbench.execution import machine_of
    from flatbench.gate import verdict
    from flatbench.records.store import Store
    from flatbench.study import gating

    found = gating.gate(
        cases,
        options.baseline,
        machine_of(partial(getattr, options)),
        Store(options.results, resume=options.resume),
        power=options.require_power,
        details=options.details,
    )
    folder = options.results / cases[0].protocol.name
    print(f"every check: {folder / 'gate.md'}\n{verdict.text(found)}")
    return found.exit_code


def _add_tune(commands: argparse._SubParsersAction[Any]) -> None:
    tune = commands.add_parser("tune", help="choose hyperparameters on the validation part")
    tune.add_argument("protocol", help="a name, or the path of a .toml file, with a [tuning]")
    shared.add(
        tune.add_argument,
        {k: SELECTION[k] for k in ("architectures", "optimizers")},
        MACHINE,
        RESULTS,
    )
    shared.add(tune.add_argument, WORKERS)
    tune.add_argument("--trials", type=count, help="a row and architecture (default: [tuning]'s)")
    tune.add_argument(
        "--output",
        type=Path,
        help="the winners' protocol (default: beside the report, or PROTOCOL if it names files)",
    )
    tune.set_defaults(command=_tune)


def _tune(options: argparse.Namespace) -> int:
    from flatbench.execution import machine_of
    from flatbench.files import check_writable, write_atomically
    from flatbench.records.store import Store
    from flatbench.study import tuning_report, winners
    from flatbench.study.trials import tuning_of
    from flatbench.study.tune import tune

    protocol = load(options.protocol)
    if options.trials is not None:
        tuning = dataclasses.replace(tuning_of(protocol), trials=options.trials)
        protocol = dataclasses.replace(protocol, tuning=tuning)
    folder = options.results / f"{protocol.name}-tuning"
    # Whatever is wrong with the output is said before anything trains.
    output = winners.place(protocol, options.output, folder)
    check_writable(output)
    found = tune(
        protocol,
        options.optimizers,
        options.architectures,
        machine=machine_of(partial(getattr, options)),
        store=Store(options.results, resume=True),
    )
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
    shared.add(attempt.add_argument, kept, MACHINE, WORKERS, RESULTS)
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
    from flatbench.execution import machine_of
    from flatbench.files import write_atomically, write_json
    from flatbench.records.store import Store
    from flatbench.study import cost, sentences
    from flatbench.study.attempt import Request, Untrainable, attempt, name_of

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
    machine, folder = machine_of(partial(getattr, options)), options.results / name_of(request)
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


def _add_check(commands: argparse._SubParsersAction[Any]) -> None:
    check = commands.add_parser("check", help="does a SAM optimizer do what SAM says?")
    check.add_argument("optimizer", help="./mysam.py:MySAM, or package.module:Class")
    check.add_argument(
        "--options",
        nargs="+",
        action="extend",
        default=[],
        type=assignment,
        metavar="NAME=VALUE",
        help="of its class; a base optimizer that it needs is torch's SGD if none is given",
    )
    check.set_defaults(command=_check)


def _check(options: argparse.Namespace) -> int:
    from tabulate import tabulate

    from flatbench.study.conformance import check, is_wrong

    lines = check(options.optimizer, dict(options.options))
    print(tabulate([(x.name, x.verdict, x.detail) for x in lines], tablefmt="plain"))
    wrong = sum(map(is_wrong, lines))
    if not wrong:
        return 0
    what = f"{wrong} of {len(lines)} properties fail"
    print(f"flatbench: {options.optimizer}: {what}", file=sys.stderr)
    return 1


def _add_sharpness(commands: argparse._SubParsersAction[Any]) -> None:
    sharp = commands.add_parser("sharpness", help="measure a network that is already trained")
    add = sharp.add_argument
    add("--weights", type=Path, required=True, help=".safetensors, or a state_dict of torch.save")
    add("--model", help="./net.py:build, package.module:build, or a network of flatbench's")
    add("--model-options", nargs="+", action="extend", default=[], type=assignment, metavar="N=V")
    add("--width", type=count, help="of a network of flatbench's (default: 64)")
    add("--data", help="an .npz file, or a data set of flatbench's")
    add(
        "--no-normalisation",
        action="store_true",
        help="leave inputs as they are; else they are normalised as flatbench trains on them",
    )
    add("--loss", help="a reference to a function (default: cross-entropy)")
    add("--protocol", help="in place of --model and --data: network, data and [sharpness] of it")
    add("--architecture", help="of the protocol (default: its first)")
    add("--seed", type=natural, help="whose label noise the labels have (default: true labels)")
    add("--measures", type=names, help=f"comma-separated (default: all without {NORMALISED})")
    add("--examples", type=count, help="training examples measured on (default: 256)")
    add("--examples-seed", type=natural, help="which examples those are (default: 0)")
    for name, what in (
        ("rho", "radius of the ascents"),
        ("adaptive-rho", "radius of the adaptive ascent, relative to |w|"),
        ("sigma", "noise of average_sharpness"),
        ("adaptive-sigma", "its noise relative to |w|"),
    ):
        add(f"--{name}", type=float, help=what)
    add("--batchnorm", choices=("eval", "train"), help="statistics of BatchNorm (default: eval)")
    shared.add(add, MACHINE)
    add("--output", type=Path, help="write everything here as JSON")
    sharp.set_defaults(command=_sharpness)


def _sharpness(options: argparse.Namespace) -> int:
    from flatbench.execution import Machine
    from flatbench.files import check_writable, write_json
    from flatbench.study import trained

    if options.output is not None:
        check_writable(options.output)
    protocol = _measured_protocol(options)
    found = trained.measure(
        protocol,
        options.architecture or protocol.model.names[0],
        options.weights,
        options.measures or get_args(Measure),
        Machine(options.device, data_dir=options.data_dir),
        seed=options.seed,
        normalises=not options.no_normalisation,
    )
    print(trained.text(found), flush=True)
    if options.output is not None:
        write_json(options.output, dataclasses.asdict(found))
    failed = [v for v in found.values if v.failure is not None]
    for v in failed:
        print(f"flatbench: {v.name} could not be measured: {v.failure}", file=sys.stderr)
    return 1 if failed else 0


def _measured_protocol(options: argparse.Namespace) -> Protocol:
    """Return the protocol that says what `sharpness` measures."""
    measures, asked = get_args(Measure), options.measures or ()
    known = (*measures, *(f"{name}{NORMALISED}" for name in measures))
    for name in asked:
        if name not in known:
            hint = did_you_mean(name, known)
            raise UsageError(
                f"--measures must be among {', '.join(measures)}, or one of them with {NORMALISED} "
                f"added, got {name!r}{hint}"
            )
        if asked.count(name) > 1:
            raise UsageError(f"--measures: {name} is given more than once")
    keys = ("examples", "examples_seed", "rho", "adaptive_rho", "sigma", "adaptive_sigma")
    settings = {key: v for key in (*keys, "batchnorm") if (v := getattr(options, key)) is not None}
    if options.protocol is None:
        if options.model is None or options.data is None:
            raise UsageError("--model and --data must be given, or --protocol")
        for name in ("architecture", "seed"):
            if getattr(options, name) is not None:
                raise UsageError(f"--{name} must be left out without --protocol")
        from flatbench.study.trained import protocol_of

        return protocol_of(
            options.model,
            dict(options.model_options),
            options.data,
            options.width or 64,
            settings,
            options.loss,
        )
    for name in ("model", "data", "loss", "width", "model_options", "no_normalisation"):
        if getattr(options, name):
            option = name.replace("_", "-")
            raise UsageError(f"--{option} must be left out with --protocol")
    protocol = load(options.protocol)
    rule = read_sharpness({**vars(protocol.sharpness), **settings}, "--protocol")
    return dataclasses.replace(protocol, sharpness=rule)

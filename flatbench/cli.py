"""flatbench: the command line. Exit 0 fine, 1 a case or the gate failed, 2 unusable input.

Ctrl-C, SIGTERM and SIGHUP end a command in one line, 128 + the signal its exit code; finished cases
and checkpoints are kept. A reader of its output that goes (`| head -1`) ends nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from flatbench import __version__, files, process
from flatbench.errors import UsageError
from flatbench.options import (
    GATE,
    MACHINE,
    RESULTS,
    SELECTION,
    TRAINING,
    WORKERS,
    add,
    assignment,
    count,
    names,
)
from flatbench.protocols.cases import Case, from_id, grid
from flatbench.protocols.reading import available, load
from flatbench.study import commands as study
from flatbench.text import did_you_mean, plain

# Modules that import torch or pandas are imported by the command that needs them: `list` and
# `--help` answer at once.


PACKED = ".json.gz"
FORMATS = {"markdown": (".md", ".markdown", ""), "html": (".html", ".htm"), "latex": (".tex",)}
EXAMPLES = {
    "list": "flatbench list --protocol digits",
    "run": "flatbench run --protocol mine.toml --optimizers sgd,lion --seeds 0-4",
    "info": "flatbench info --device cuda",
    "download": "flatbench download cifar10 --data-dir data",
    "report": "flatbench report results/mine --output mine.html",
    "compare": "flatbench compare before/mine results/mine",
    "landscape": "flatbench landscape digits/vgg16/adam/seed0 digits/vgg16/adam+sam/seed0",
    "baseline": "flatbench baseline baseline/mine --output mine.thresholds.toml",
    **study.EXAMPLES,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    process.open_streams()
    try:
        with process.ended_by_signals():
            options = _parser().parse_args(arguments)
            return int(options.command(options))
    except UsageError as error:
        return _unusable(str(error))
    except OSError as error:  # a disk that is full, a folder that is somebody else's
        return _unusable(files.said(error))
    except process.Ended as end:
        print(f"flatbench: {end}", file=sys.stderr)
        return end.exit_code
    except KeyboardInterrupt:
        print("flatbench: interrupted", file=sys.stderr)
        return 130


def _unusable(why: str) -> int:
    print(f"flatbench: {plain(why)}", file=sys.stderr)
    return 2


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all others of the command line are."""

    commands: tuple[argparse.ArgumentParser, ...] = ()  # the parsers of its commands

    def error(self, message: str) -> NoReturn:
        """Raise the mistake instead of printing the usage above it."""
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if choice is not None:
            message += did_you_mean(choice[1], re.findall(r"[\w.+-]+", choice[2]))
        option = re.search(r"unrecognized arguments: (--[^ =]+)", message)
        if option is not None:
            known = {o for p in (self, *self.commands) for o in p._option_string_actions}
            message += did_you_mean(option[1], known - {option[1]})  # another command's
        raise UsageError(f"{message}; see {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="flatbench", description=__doc__)
    parser.add_argument("--version", action="version", version=f"flatbench {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _training_commands(commands)
    _reading_commands(commands)
    study.add(commands)
    parser.commands = tuple(commands.choices.values())
    for name, command in commands.choices.items():
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.epilog = f"for example:\n  {EXAMPLES[name]}"
    return parser


def _training_commands(commands: argparse._SubParsersAction[_Parser]) -> None:
    listing = commands.add_parser("list", help="list protocols, or the cases of one")
    add(listing.add_argument, SELECTION)
    listing.set_defaults(command=_list, protocol=None)

    run = commands.add_parser("run", help="train cases and write their records; no thresholds")
    add(run.add_argument, SELECTION, MACHINE, WORKERS, RESULTS, TRAINING)
    run.add_argument("--fresh", action="store_true", help="train finished cases again")
    run.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)  # as it is now
    run.set_defaults(command=_run)

    info = commands.add_parser("info", help="show what this machine can do, for a bug report")
    info.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (default)")
    info.set_defaults(command=_info)

    download = commands.add_parser("download", help="fetch a data set")
    download.add_argument(
        "name", help="fashion-mnist, cifar10, cifar100, or a class of torchvision.datasets: KMNIST"
    )
    download.add_argument("--data-dir", type=Path, required=True, help="where to")
    download.add_argument(
        "--option",
        action="append",
        type=assignment,
        default=[],
        metavar="NAME=VALUE",
        help="of that class, as split=letters of EMNIST; may be given more than once",
    )
    download.set_defaults(command=_download)


def _reading_commands(commands: argparse._SubParsersAction[_Parser]) -> None:
    report = commands.add_parser("report", help="render records as tables, or as an HTML page")
    report.add_argument("paths", nargs="+", type=Path, help="JSON files, or folders of them")
    report.add_argument(
        "--format", choices=tuple(FORMATS), help="default: by --output's ending, else markdown"
    )
    report.add_argument("--output", type=Path, help="write here instead of standard output")
    report.add_argument("--figures", type=Path, help="write every figure into this folder as well")
    report.add_argument("--target", type=float, help="of the time to accuracy, percent")
    report.set_defaults(command=_report)

    compare = commands.add_parser("compare", help="has anything become worse than a baseline?")
    compare.add_argument("baseline", type=Path, help="records (JSON, a folder), or thresholds")
    compare.add_argument("current", nargs="+", type=Path, help="JSON files, or folders of them")
    compare.add_argument("--alarm", type=float, help="false-alarm rate of all limits together")
    compare.add_argument("--summary", type=Path, help="write every check here as markdown")
    add(compare.add_argument, GATE)
    compare.set_defaults(command=_compare)

    landscape = commands.add_parser("landscape", help="draw the loss around finished cases")
    landscape.add_argument("cases", nargs="+", metavar="CASE", help="as digits/vgg16/sgd+sam/seed0")
    landscape.add_argument("--protocol", help="the .toml file, if it does not come with flatbench")
    landscape.add_argument(
        "--directions",
        choices=("random", "hessian", "line", "spectrum"),
        default="random",
        help="filter-normalised; top Hessian eigenvectors; from one case to another; or, in place "
        "of the loss, the density of the Hessian's eigenvalues",
    )
    landscape.add_argument("--dimensions", type=int, choices=(1, 2), help="default: 2; a line's: 1")
    landscape.add_argument("--points", type=int, help="along an axis (default: 21)")
    landscape.add_argument("--span", type=float, help="largest step (default: 1; a line's: 0.25)")
    landscape.add_argument(
        "--seed", type=int, default=0, help="of directions, or of a spectrum's probes (default: 0)"
    )
    add(landscape.add_argument, MACHINE, RESULTS)
    landscape.add_argument("--output", type=Path, help="default: RESULTS/PROTOCOL/landscapes")
    landscape.set_defaults(command=_landscape)

    baseline = commands.add_parser(
        "baseline", help="derive thresholds from many seeds' records, or pack the records"
    )
    baseline.add_argument("paths", nargs="*", type=Path, help="JSON files, or folders of them")
    baseline.add_argument(
        "--reference", metavar="PROTOCOL", help="from its published results: mean − 3 std"
    )
    baseline.add_argument(
        "--output",
        type=Path,
        required=True,
        help=f"thresholds to write, or a file that ends in {PACKED}: the records, in one file to "
        "commit and compare with",
    )
    baseline.add_argument("--level", type=float, help="of each one-sided bound")
    baseline.add_argument(
        "--measures", type=names, help="comma-separated (default: test_accuracy,sam_sharpness)"
    )
    baseline.add_argument(
        "--grid-seeds", type=count, metavar="N", help="of the grids that it will hold (default: 3)"
    )
    baseline.set_defaults(command=_baseline)


def _cases(options: argparse.Namespace) -> list[Case]:
    return grid(load(options.protocol), options.architectures, options.optimizers, options.seeds)


def _list(options: argparse.Namespace) -> int:
    if options.protocol is None:
        for name in available():
            print(f"{name:20} {load(name).description}")
    else:
        print("\n".join(case.id for case in _cases(options)))
    return 0


def _run(options: argparse.Namespace) -> int:
    from flatbench import execution
    from flatbench.records.store import Store
    from flatbench.study.runs import train

    cases = _cases(options)
    store = Store(options.results, resume=not options.fresh, keep_weights=options.keep_weights)
    machine = execution.machine_of(partial(getattr, options))
    records = train(cases, machine, store, partial(print, flush=True))
    folder = options.results / cases[0].protocol.name
    print(f"records: {folder / 'records'}\nnext: flatbench report {folder}")
    return 1 if any(record.status != "completed" for record in records) else 0


def _info(options: argparse.Namespace) -> int:
    from flatbench.study import info

    found = info.look(options.device)
    print(found.text, flush=True)
    # "auto" asks what there is; whoever names a GPU wants to know whether it will do
    if options.device == "auto" or found.where.type == "cpu" or found.why_not_fused is None:
        return 0
    why_not = found.why_not_fused
    print(f"flatbench: the fused step cannot run on {found.where}: {why_not}", file=sys.stderr)
    return 1


def _download(options: argparse.Namespace) -> int:
    from flatbench import data

    data.download(options.name, options.data_dir, dict(options.option))
    return 0


def _report(options: argparse.Namespace) -> int:
    from flatbench import report
    from flatbench.records import reading

    if options.target is not None and not 0 <= options.target <= 100:
        raise UsageError(f"--target must be a number from 0 to 100, got {options.target}")
    form = options.format or _format_of(options.output)
    records = reading.collect(options.paths)
    linked = None
    if options.figures is not None and options.output is not None:
        linked = Path(os.path.relpath(options.figures, options.output.parent)).as_posix()
    text = report.render(records, form, target=options.target, figures=linked)
    if options.figures is not None:
        from flatbench.report import figures

        figures.write(records, options.figures)
    if options.output is None:
        print(text)
    else:
        files.write_atomically(options.output, text.encode())
    return 0


def _format_of(output: Path | None) -> str:
    """Return the format that a file's ending asks for."""
    ending = "" if output is None else output.suffix.lower()
    for form, endings in FORMATS.items():
        if ending in endings:
            return form
    known = ", ".join(e for endings in FORMATS.values() for e in endings if e)
    raise UsageError(f"--output must end in one of {known}, or --format be given, got {output}")


def _baseline(options: argparse.Namespace) -> int:
    from flatbench import gate
    from flatbench.records import reading
    from flatbench.records.published import pack
    from flatbench.records.sections import sections

    if options.reference is not None:
        if options.paths or options.level or options.measures or options.grid_seeds:
            raise UsageError("--reference must stand without records and any option but --output")
        thresholds = gate.from_reference(load(options.reference))
        gate.write_thresholds(options.output, thresholds)
        return 0
    records = reading.collect(options.paths)
    if options.output.name.endswith(PACKED):
        for name in ("level", "measures", "grid_seeds"):
            if getattr(options, name) is not None:
                option = name.replace("_", "-")
                raise UsageError(f"--{option} must be left out where --output ends in {PACKED}")
        # what could not be compared with is refused now
        kept = [record for section in sections(records) for record in section.records]
        files.write_atomically(options.output, pack(kept))
        return 0
    level = gate.LEVEL if options.level is None else options.level
    seeds = options.grid_seeds or gate.GRID_SEEDS
    made = gate.derive(records, level=level, grid_seeds=seeds, measures=options.measures)
    gate.write_thresholds(options.output, made)
    return 0


def _compare(options: argparse.Namespace) -> int:
    from flatbench.gate import compare, verdict
    from flatbench.records import reading

    alarm = compare.ALARM if options.alarm is None else options.alarm
    baseline = compare.read_baseline(options.baseline)
    found = compare.against(baseline, reading.collect(options.current), alarm)
    found = verdict.demand(found, options.require_power)
    print(verdict.text(found))
    verdict.add_to_step_summary(found)
    if options.summary is not None:
        files.write_atomically(options.summary, verdict.markdown(found).encode())
    return found.exit_code


def _landscape(options: argparse.Namespace) -> int:
    from flatbench.landscape.drawing import View, draw, draw_spectra
    from flatbench.records.store import Store
    from flatbench.training import devices

    cases = [from_id(text, options.protocol) for text in options.cases]
    store = Store(options.results)
    output = options.output or options.results / cases[0].protocol.name / "landscapes"
    place = {"where": devices.find(options.device), "data_dir": options.data_dir}
    if options.directions == "spectrum":
        for name in ("dimensions", "points", "span"):
            if (given := getattr(options, name)) is not None:
                raise UsageError(
                    f"--{name} must be left out with --directions spectrum, got {given}"
                )
        drawn = draw_spectra(cases, options.seed, store, output, **place)
    else:
        is_line = options.directions == "line"
        view = View(
            kind=options.directions,
            dimensions=options.dimensions or (1 if is_line else 2),
            points=options.points if options.points is not None else 21,
            span=options.span if options.span is not None else 0.25 if is_line else 1.0,
            seed=options.seed,
        )
        drawn = draw(cases, view, store, output, **place)
    print("\n".join(map(str, drawn)))
    return 0

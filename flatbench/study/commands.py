"""The commands of a study, as the command line takes them: their options, and what runs.

What imports torch or pandas is imported by the command that needs it.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any, Final

from flatbench import options as shared
from flatbench.options import MACHINE, RESULTS, SELECTION, TRAINING, count
from flatbench.protocols.reading import load

EXAMPLES: Final = {
    "tune": "flatbench tune digits --optimizers adam,adam+sam",
}


def add(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the commands to the command line."""
    _add_tune(commands)


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

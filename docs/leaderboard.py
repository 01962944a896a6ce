"""docs/leaderboard.md: which optimizer is best, as far as the committed records tell."""

from __future__ import annotations

import itertools
from pathlib import Path

from tabulate import tabulate

from docs.submissions import TRIALS, check, check_tuning, files_of
from flatbench.protocols.protocol import Protocol
from flatbench.protocols.reading import load
from flatbench.records.quantities import quantity
from flatbench.records.reading import read
from flatbench.records.sections import Section, sections
from flatbench.report.flatness import headlines
from flatbench.report.numbers import Numbers
from flatbench.report.places import Place, places
from flatbench.report.tables import MISSING, outcome_places, usual_count, value_cell
from flatbench.study.trials import tuning_of
from flatbench.text import decimals, markdown_text

RESULTS = Path(__file__).parents[1] / "results"
FIRST = ("torch-optim", "family")  # then the others, by name
INTRODUCTION = """# Leaderboard

Made by `tox -e docs` from the committed records alone; not edited by hand. A click on a column's
head sorts by it.

A **place** says what the seeds can tell. All pairs of rows of a table are compared by seed (paired
t-test, Holm's adjustment for all pairs). Of ten rows, one that is told worse than two others and
better than none has one of the places 3–10. In 95 of 100 such tables every row's true place is
among those that it is given. So rows with overlapping places are ties, whatever their means say.

Accuracy is that on the test part, in percent: the mean ± the sample standard deviation over the
seeds. Flatness is the largest eigenvalue of the Hessian, plain and with normalised logits: place 1
is the flattest. A flatter minimum is not a better one by itself: a network that has learned little
is flat, too. **Gradients** is how many a training evaluates, as flatbench counts them. No row of a
table takes more than the number in its title. One that takes fewer had less to work with.
"""
SUBMIT = """## Hand in a row

A row is handed in as a pull request with its records. It holds

1. the row in the protocol's file: `[optimizers.NAME]`, which names a class of a package on PyPI,
   and its `[tuning.space.NAME]` of two hyperparameters;
2. its trials, and the values of the best one in the protocol:

   ```bash
   flatbench tune torch-optim --optimizers NAME --results trials
   flatbench baseline trials/torch-optim-tuning \\
       --output results/torch-optim-tuning/trials-NAME.json.gz
   ```

3. its records with the protocol's seeds, trained once, by committed code:

   ```bash
   flatbench run --protocol torch-optim --optimizers NAME --results runs
   flatbench baseline runs/torch-optim --output results/torch-optim/NAME.json.gz
   ```

4. this page, as `tox -e docs` makes it anew.

The command that makes the page checks all records on every change. Each seed of the protocol must
be there, trained by committed code under the protocol as it stands. No training may take more
gradients than the table allows. All trials must be there, on the validation part with seeds of
their own, and the row must have the values of the best. Records of another machine are welcome: its
speed is not ranked. What cannot be checked from records is that they are what the code gives: a
reviewer trains one seed of the row again.
"""


def page() -> str:
    """Return docs/leaderboard.md.

    Raises:
        UsageError: a committed record does not fit; see `docs.submissions`.
    """
    names = {path.parent.name for path in RESULTS.glob("*/benchmark.json")}
    ordered = [name for name in FIRST if name in names] + sorted(names.difference(FIRST))
    return "\n".join([INTRODUCTION, *(chapter(load(name), RESULTS) for name in ordered), SUBMIT])


def chapter(protocol: Protocol, results: Path) -> str:
    """Return the tables of one protocol, one for each architecture."""
    files = {path: read(path) for path in files_of(results / protocol.name)}
    allowed = check(protocol, files)
    tuning = results / f"{protocol.name}-tuning"
    links = [
        f"[report](../results/{protocol.name}/report.md)",
        *(f"[{path.name}](../results/{protocol.name}/{path.name})" for path in files),
        f"[protocol](../flatbench/protocols/{protocol.name}.toml)",
        f"[tuning](../results/{tuning.name}/report.md)",
    ]
    text = f"{markdown_text(protocol.description)}. {', '.join(links)}."
    if any(tuning.glob(TRIALS)):
        trainings = check_tuning(protocol, tuning)
        text += (
            f" Every row's values are those of the best of {tuning_of(protocol).trials} trials"
            f" ({trainings} trainings, checked)."
        )
    (section,) = sections(itertools.chain.from_iterable(files.values()))
    made = [f"## {protocol.name}\n", f"{text}\n"]
    for architecture in section.architectures:
        made += [
            f"### {architecture}, at most {allowed:,} gradients ({protocol.name})\n",
            f"{table(section, architecture)}\n",
        ]
    return "\n".join(made)


def table(section: Section, architecture: str) -> str:
    """Return a table of all rows, the highest mean first, with their places."""
    numbers = Numbers(section)
    measures = [section.outcome.name, *headlines(numbers)]
    rows = list(section.optimizers)
    placed = [places(section, architecture, rows, quantity(name)) for name in measures]
    cells = [numbers.cells(name) for name in measures]
    outcome = cells[0]

    def mean(row: str) -> float:
        value = outcome[architecture, row].summary.mean
        return -float("inf") if value is None else value

    usual = usual_count(cell.summary.n for cell in outcome.values())

    def digits_of(column: int, value: float | None) -> int:
        """Return the decimals of a cell: a sharpness has three digits, whatever its size."""
        if column == 0 or value is None:
            return outcome_places(numbers)
        return decimals([value])

    lines = []
    for row in sorted(rows, key=mean, reverse=section.outcome.better == "higher"):
        line = [markdown_text(row)]
        for column, (place, found) in enumerate(zip(placed, cells, strict=True)):
            cell = found[architecture, row]
            digits = digits_of(column, cell.summary.mean)
            line += [_place(place.get(row)), value_cell(cell, usual, digits, strong=False).text]
        counts = section.values(architecture, row, "gradient_evaluations").values()
        line.append(f"{max(counts):,}" if counts else MISSING)
        lines.append(line)
    heads = ["accuracy", "λmax", "λmax, normalised logits"]
    columns = [part for head in heads[: len(measures)] for part in ("place", head)]
    return tabulate(
        lines,
        ["optimizer", *columns, "gradients"],
        tablefmt="pipe",
        disable_numparse=True,
        colalign=("left", *("right" for _ in range(len(columns) + 1))),
    ) + (f"\n\nn = {usual} seeds unless a cell says otherwise.")


def _place(found: Place | None) -> str:
    return MISSING if found is None else str(found)

"""The sharpness of every row: a table for each architecture, a line for each measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from flatbench.records.quantities import CLEAN, NORMALISED, quantity
from flatbench.report.comparisons import Question, compared, headline
from flatbench.report.numbers import Numbers
from flatbench.report.tables import Table, described, usual_count, value_cell
from flatbench.text import decimals

UNTOLD: Final = "≈"


@dataclass(frozen=True)
class Kind:
    """A kind of measures: their names end in ``suffix``."""

    adjective: str
    noun: str
    suffix: str

    def counted(self, count: int) -> str:
        """Return "6 plain measures", "1 measure with true labels"."""
        plural = self.noun if count == 1 else self.noun.replace("measure", "measures")
        return " ".join(part for part in (str(count), self.adjective, plural) if part)


PLAIN = Kind("plain", "measure", "")
KINDS: Final = (
    PLAIN,
    Kind("", "measure with normalised logits", NORMALISED),
    Kind("", "measure with true labels", CLEAN),
)


def kind_of(measure: str) -> Kind:
    """Return the kind of a measure, by its name; what has both endings is of the last."""
    return next((k for k in KINDS[1:] if measure.endswith(k.suffix)), PLAIN)


def headlines(numbers: Numbers) -> list[str]:
    """Return the measures that stand for all: a plain one, and one with normalised logits."""
    found = []
    for kind in KINDS[:2]:
        measures = {m.removesuffix(kind.suffix): m for m in numbers.measures if kind_of(m) is kind}
        first = headline(measures)
        if first in measures:
            found.append(measures[first])
    return found


def sharpness_tables(numbers: Numbers) -> list[Table]:
    """Return a table for each architecture: measures × rows, the lowest mean of a line in bold."""
    return [_table(numbers, architecture) for architecture in numbers.section.architectures]


def _table(numbers: Numbers, architecture: str) -> Table:
    section = numbers.section
    rows = [row for row in section.optimizers if section.cell(architecture, row)]
    measures = sorted(numbers.measures, key=lambda measure: KINDS.index(kind_of(measure)))
    cells = {
        (measure, row): cell
        for measure in measures
        for (where, row), cell in numbers.cells(measure).items()
        if where == architecture
    }
    by_row = {row: usual_count(cells[m, row].summary.n for m in measures) for row in rows}
    usual = usual_count(by_row.values())
    lines = []
    for measure in measures:
        means = {row: cells[measure, row].summary.mean for row in rows}
        known = {row: mean for row, mean in means.items() if mean is not None}
        if not known:
            continue
        places = decimals([*known.values()], digits=2)
        lowest = min(known, key=known.__getitem__)
        higher = _higher(numbers, measure, architecture, lowest, [*known])
        made = []
        for row in rows:
            is_lowest = row == lowest and len(known) > 1
            cell = value_cell(cells[measure, row], by_row[row], places, is_lowest)
            if usual > 1 and row in known and row not in (lowest, *higher):
                cell = replace(cell, text=f"{cell.text} {UNTOLD}")
            made.append(cell)
        lines.append((quantity(measure).heading, tuple(made)))
    spread = "mean ± sample standard deviation over seeds" if usual > 1 else "one seed's value"
    note = f"Cells: {spread}; n = {usual} unless said otherwise. Bold: a line's lowest mean"
    if usual > 1:
        note += (
            f"; {UNTOLD}: not told from it (paired t-test of the logarithms by seed, Holm-adjusted "
            "for the line). The lowest was chosen by these same numbers: read it as a hint."
        )
    else:
        note += "; one seed says nothing about the spread."
    return Table(
        f"Sharpness on {architecture}: {described(section, usual)}",
        note,
        "measure",
        tuple(row if by_row[row] in (usual, 0) else f"{row} (n = {by_row[row]})" for row in rows),
        tuple(lines),
    )


def _higher(
    numbers: Numbers, measure: str, architecture: str, lowest: str, rows: Sequence[str]
) -> set[str]:
    """Return the rows that are told to be sharper than the one whose mean is lowest."""
    questions = [Question(architecture, row, lowest, "", lowest) for row in rows if row != lowest]
    found = compared(numbers.section, quantity(measure), questions)
    return {c.question.mine for c in found if c.verdict == "worse"}

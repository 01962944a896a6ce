"""What a tuning found: tables in markdown, and maps of what was tried."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import ticker
from matplotlib.figure import Figure

from flatbench.protocols.tuning import Range
from flatbench.report import style
from flatbench.report.formats.markdown import table
from flatbench.report.panels import legend, whole_numbers
from flatbench.report.tables import MISSING, Cell, Table
from flatbench.stats import summary
from flatbench.study.trials import tuning_of
from flatbench.study.tune import Trial, Tuned, expected_best
from flatbench.text import figure_text, markdown_text, ranges


def values_text(values: Mapping[str, Any]) -> str:
    """Return hyperparameters as "lr = 0.03, rho = 0.1"."""
    return ", ".join(
        f"{name} = {value:g}" if isinstance(value, float) else f"{name} = {value}"
        for name, value in values.items()
    )


def outcome_text(trial: Trial) -> str:
    """Return a trial's mean ± std and what it lost."""
    found = summary(trial.outcomes)
    if found.mean is None:
        return f"{trial.lost} lost"
    spread = "" if found.std is None else f" ± {found.std:.2f}"
    return f"{found.mean:.2f}{spread}" + (f" ({trial.lost} lost)" if trial.lost else "")


def winners_table(tuned: Tuned) -> Table:
    """Return the table of winners: a line for each row and architecture."""
    tuning = tuning_of(tuned.protocol)
    rows = []
    for (row, architecture), trials in tuned.trials.items():
        best = tuned.best(row, architecture)
        lost = sum(trial.lost > 0 for trial in trials)
        edges = ", ".join(tuned.edges(row, architecture))
        found = (
            (MISSING, MISSING, MISSING)
            if best is None
            else (values_text(best.values), outcome_text(best), edges or "no")
        )
        rows.append((f"{row}, {architecture}", tuple(map(Cell, (*found, str(lost))))))
    name = tuned.outcome.titled("validation")
    return Table(
        f"Winners of {tuned.protocol.name}",
        f"Of {tuning.trials} trials each, with seeds {ranges(tuning.seeds)}, the one whose mean "
        "less its standard error is best. Mean ± sample standard deviation over the seeds. At an "
        "edge: in the outer tenth of its range (logarithmic), or at an end of a choice; a better "
        "value may lie beyond it. Lost: trials with a seed that diverged or failed. None can win.",
        "row",
        ("values", name, "at an edge", "lost"),
        tuple(rows),
    )


def budget_table(tuned: Tuned) -> Table:
    """Return the expected best after k trials, a line for each row and architecture."""
    trials = tuning_of(tuned.protocol).trials
    budgets = sorted({2**i for i in range(trials.bit_length()) if 2**i <= trials} | {trials})
    rows = []
    for (row, architecture), found in tuned.trials.items():
        best = _budget(found)
        cells = tuple(
            Cell(f"{best[k - 1]:.2f}", float(best[k - 1])) if k <= len(best) else Cell(MISSING)
            for k in budgets
        )
        rows.append((f"{row}, {architecture}", cells))
    return Table(
        f"Expected best {tuned.outcome.titled('validation')} after k trials: {tuned.protocol.name}",
        "The mean, over all sets of k of the trials without a lost seed, of the best mean in it "
        "(Dodge et al. 2019, in the unbiased form of Tang et al. 2020): what a smaller budget "
        "would have bought.",
        "row",
        tuple(f"k = {k}" for k in budgets),
        tuple(rows),
    )


def _budget(trials: Iterable[Trial]) -> list[float]:
    whole = [t for t in trials if not t.lost and t.outcomes]
    sign = 1 if not whole or whole[0].higher_is_better else -1
    means = [sign * sum(t.outcomes) / len(t.outcomes) for t in whole]
    return [sign * float(v) for v in expected_best(means)] if means else []


def markdown(tuned: Tuned) -> str:
    """Return the report as GitHub's markdown."""
    parts = [
        f"## Tuning of protocol {markdown_text(tuned.protocol.name)}\n",
        "Measured on the **validation** part, not on the test part.\n",
        table(winners_table(tuned)),
        table(budget_table(tuned)),
    ]
    for (row, architecture), trials in tuned.trials.items():
        best = tuned.best(row, architecture)
        made = Table(
            f"{row} on {architecture}",
            "In bold: the winner.",
            "trial",
            (*tuning_of(tuned.protocol).space[row], tuned.outcome.titled("validation")),
            tuple(
                (
                    f"{trial.number}",
                    (
                        *(Cell(_value(value)) for value in trial.values.values()),
                        Cell(outcome_text(trial), strong=trial is best),
                    ),
                )
                for trial in trials
            ),
        )
        summary_line = markdown_text(f"All trials of {row} on {architecture}")
        parts.append(f"<details><summary>{summary_line}</summary>\n\n{table(made)}\n</details>\n")
    return "\n".join(parts)


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def edges_text(tuned: Tuned) -> list[str]:
    """Return a warning for each winner that stands at an edge."""
    return [
        f"{row} on {architecture}: {name} = {_value(best.values[name])} stands at an edge of "
        f"{_space(space[name])}: a better value may lie beyond it"
        for (row, architecture) in tuned.trials
        if (best := tuned.best(row, architecture)) is not None
        for space in [tuning_of(tuned.protocol).space[row]]
        for name in tuned.edges(row, architecture)
    ]


def _space(found: Any) -> str:
    return str(found) if isinstance(found, Range) else ", ".join(map(_value, found))


def maps(tuned: Tuned) -> Figure:
    """Draw what every trial gave over its first two numbers: rho × lr of a SAM row.

    A column for each architecture, a line of panels for each row. The winner has a ring, and a
    trial that lost a seed is a cross.
    """
    rows, columns = tuned.rows, tuned.architectures
    with mpl.rc_context(style.RC):
        figure = Figure(figsize=(style.PAGE, 1.7 * len(rows) + 0.3))
        panels = figure.subplots(len(rows), len(columns), squeeze=False)
        for line, row in zip(panels, rows, strict=True):
            for axes, architecture in zip(line, columns, strict=True):
                _map(figure, axes, tuned, row, architecture)
    return figure


def _map(figure: Figure, axes: Any, tuned: Tuned, row: str, architecture: str) -> None:
    space = tuning_of(tuned.protocol).space[row]
    numeric = [
        name
        for name, found in space.items()
        if isinstance(found, Range) or all(type(v) in (int, float) for v in found)
    ]
    # of a SAM row lr and rho are what decides
    names = sorted(
        numeric, key=lambda name: ("lr", "rho").index(name) if name in ("lr", "rho") else 2
    )
    trials, best = tuned.trials[row, architecture], tuned.best(row, architecture)
    axes.set_title(figure_text(f"{row}, {architecture}"))
    if not names:
        axes.set_axis_off()
        return
    whole = [t for t in trials if not t.lost and t.outcomes]
    means = [sum(t.outcomes) / len(t.outcomes) for t in whole]
    horizontal, vertical = names[0], names[1] if len(names) > 1 else None

    def places(found: Iterable[Trial]) -> tuple[list[float], list[float]]:
        listed = list(found)
        second = [
            t.values[vertical] if vertical else m for t, m in zip(listed, means, strict=False)
        ]
        return [t.values[horizontal] for t in listed], second

    if whole:
        drawn = axes.scatter(*places(whole), c=means, cmap=style.COLOURS, s=22)
        figure.colorbar(drawn, ax=axes)
    if vertical and (lost := [t for t in trials if t.lost]):
        axes.scatter(
            *[[t.values[n] for t in lost] for n in (horizontal, vertical)],
            c=style.GUIDE,
            marker="x",
            s=14,
        )
    if best is not None:
        at = whole.index(best)
        x, y = places(whole)
        axes.scatter([x[at]], [y[at]], s=90, facecolors="none", edgecolors=style.INK)
    axes.set_xlabel(figure_text(horizontal))
    axes.set_ylabel(figure_text(vertical or tuned.outcome.titled("validation")))
    for name, axis in ((horizontal, axes.xaxis), (vertical, axes.yaxis)):
        if name is not None and isinstance(space[name], Range):
            getattr(axes, f"set_{axis.axis_name}scale")("log")
            axis.set_minor_formatter(ticker.NullFormatter())  # or they overlap over two decades


def budgets(tuned: Tuned) -> Figure:
    """Draw the expected best against the number of trials: one panel an architecture."""
    looks = style.looks(tuned.rows)
    with mpl.rc_context(style.RC):
        figure = Figure(figsize=(style.PAGE, 2.6))
        panels = figure.subplots(1, len(tuned.architectures), squeeze=False)[0]
        for axes, architecture in zip(panels, tuned.architectures, strict=True):
            for row in tuned.rows:
                best = _budget(tuned.trials[row, architecture])
                axes.plot(
                    range(1, len(best) + 1),
                    best,
                    color=looks[row].colour,
                    linestyle=looks[row].line,
                    marker=looks[row].marker,
                    markerfacecolor=looks[row].face,
                    label=figure_text(row),
                )
            axes.set_title(figure_text(architecture))
            axes.set_xlabel("trials")
            whole_numbers(axes.xaxis)
        panels[0].set_ylabel(f"expected best {tuned.outcome.titled('validation')}")
        legend(figure, panels)
    return figure


def write_figures(tuned: Tuned, folder: Path) -> list[Path]:
    """Write the maps and the budgets into a folder, and return the paths."""
    return [
        *style.write_all(maps(tuned), folder, "trials"),
        *style.write_all(budgets(tuned), folder, "expected-best"),
    ]


def summary_lines(tuned: Tuned) -> list[str]:
    """Return a line for each row and architecture: the winner, and what it gave."""
    lines = []
    for row, architecture in tuned.trials:
        best = tuned.best(row, architecture)
        if best is None:
            lines.append(f"{row} on {architecture}: no trial completed all its seeds")
            continue
        found = f"{outcome_text(best)}{' %' if tuned.outcome.unit == '%' else ''}"
        lines.append(f"{row} on {architecture}: {values_text(best.values)}: {found}")
    return lines

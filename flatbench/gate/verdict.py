"""What a gate says: every check, in markdown and as lines for a terminal."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tabulate import tabulate

from flatbench.text import markdown_text, plain

Result = Literal["passed", "failed", "can't check"]


@dataclass(frozen=True)
class Row:
    """One measure in a check, in words."""

    what: str
    baseline: str
    now: str
    limit: str
    finds: str  # what is found 9 times out of 10


@dataclass(frozen=True)
class Outcome:
    """One check: what was checked, how it ended, and a line that says what was measured."""

    name: str
    result: Result
    line: str
    rows: tuple[Row, ...] = ()
    # Of a cell's outcome: the drop that is found 9 times out of 10, inf if none is.
    drop: float | None = None

    @property
    def passed(self) -> bool:
        """Whether it was checked, and nothing is worse."""
        return self.result == "passed"

    @property
    def failed(self) -> bool:
        """Whether something is worse."""
        return self.result == "failed"


@dataclass(frozen=True)
class Verdict:
    """All checks of one gate, and what it did not check."""

    title: str
    outcomes: tuple[Outcome, ...]
    notes: tuple[str, ...]
    false_alarm_rate: float  # how often, at most, a whole grid without a regression fails

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The checks that failed."""
        return self._with("failed")

    @property
    def blind(self) -> tuple[Outcome, ...]:
        """The checks that could not have failed, and so say nothing."""
        return self._with("can't check")

    def _with(self, result: Result) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.result == result)

    @property
    def result(self) -> Literal["pass", "fail", "can't tell"]:
        """The verdict: fail if a check failed, else can't tell if one could not have failed."""
        if self.failures:
            return "fail"
        return "can't tell" if self.blind or not self.outcomes else "pass"

    @property
    def exit_code(self) -> int:
        """1 with a failure, else 0. (2, unusable input, is a `UsageError`.)"""
        return 1 if self.failures else 0


def demand(verdict: Verdict, points: float | None) -> Verdict:
    """Return a verdict in which what ``--require-power`` asks for and is not there has failed."""
    outcomes = tuple(demanded(outcome, points) for outcome in verdict.outcomes)
    return dataclasses.replace(verdict, outcomes=outcomes)


def demanded(outcome: Outcome, points: float | None) -> Outcome:
    """Return an outcome, failed if it is weaker than ``--require-power`` asks for.

    That is a check that could not have failed, and one of a cell's accuracy that finds a drop of
    so many points less often than 9 times out of 10. Without ``points`` nothing is asked for.
    """
    if points is None or outcome.failed:
        return outcome
    asked = f"--require-power {points:g}"
    if outcome.result == "can't check":
        line = f"can't check {outcome.line}; with {asked} that is a failure"
    elif outcome.drop is not None and outcome.drop > points:
        found = "no drop" if math.isinf(outcome.drop) else f"a drop of {outcome.drop:.1f} points"
        line = (
            f"{outcome.name} keeps its limit, but the check is too weak: it finds {found} 9 times "
            f"out of 10, and {asked} was asked for; more seeds find smaller drops"
        )
    else:
        return outcome
    return dataclasses.replace(outcome, result="failed", line=line)


def markdown(verdict: Verdict) -> str:
    """Return a verdict as GitHub's markdown: the failures first, all else folded away."""
    parts = [
        f"## {markdown_text(verdict.title)}: {_counted(verdict)}\n",
        f"Without a regression a whole grid fails at most {percent(verdict.false_alarm_rate)} "
        "of the time (diverged and failed runs apart).\n",
    ]
    if verdict.failures:
        parts.append("".join(f"- {markdown_text(o.line)}\n" for o in verdict.failures))
    blind = [outcome.line for outcome in verdict.blind]
    passed = [outcome.line for outcome in verdict.outcomes if outcome.passed]
    for heading, lines in (
        ("Could not have failed", blind),
        ("Passed", passed),
        ("Not checked", verdict.notes),
    ):
        if lines:
            listed = "".join(f"- {markdown_text(line)}\n" for line in lines)
            parts.append(
                f"<details><summary>{heading} ({len(lines)})</summary>\n\n{listed}\n</details>\n"
            )
    return "\n".join(parts)


def text(verdict: Verdict, *, brief: bool = False) -> str:
    """Return a verdict for a terminal; what matters most comes last, the verdict itself at the end.

    The checks of cells that passed are a table; all else is a line each. The brief form has no more
    of what passed than the accuracies, and no failures: it follows tests that have told them.
    """
    passed = [o for o in verdict.outcomes if o.passed and (o.drop is not None or not brief)]
    lines = [f"passed: {plain(outcome.line)}" for outcome in passed if not outcome.rows]
    rows = [row for outcome in passed for row in outcome.rows]
    lines += [table(rows)] if rows else []
    lines += [f"not checked: {plain(note)}" for note in verdict.notes]
    lines += [f"can't check: {plain(outcome.line)}" for outcome in verdict.blind]
    lines += [f"FAILED {plain(outcome.line)}" for outcome in verdict.failures if not brief]
    lines.append(f"{plain(verdict.title)}: {_counted(verdict)}")
    if verdict.outcomes:
        rate = percent(verdict.false_alarm_rate)
        lines[-1] += f"; a grid without a regression fails at most {rate} of the time"
    return "\n".join(lines)


def table(rows: Iterable[Row]) -> str:
    """Return checks as a table for a terminal."""
    return tabulate(
        [[plain(cell) for cell in dataclasses.astuple(row)] for row in rows],
        ("passed", "baseline", "now", "limit", "finds 9 times out of 10"),
        tablefmt="plain",
        disable_numparse=True,
    )


def _counted(verdict: Verdict) -> str:
    failed, blind, total = (len(o) for o in (verdict.failures, verdict.blind, verdict.outcomes))
    if not total:
        return "can't tell: nothing was checked"
    said = f"{failed} of {total} checks failed" if failed else f"none of {total} checks failed"
    if blind:
        said += f", {'and' if failed else 'but'} {blind} could not have failed"
    return f"{verdict.result}: {said}"


def percent(rate: float) -> str:
    """Return a rate as "4.8 %"."""
    return f"{100 * rate:.1f} %"


def add_to_step_summary(summary: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Append markdown to the file named by ``GITHUB_STEP_SUMMARY``; return whether one is."""
    path = environment.get("GITHUB_STEP_SUMMARY")
    if not path:
        return False
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(summary + "\n")
    return True

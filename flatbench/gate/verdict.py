"""What a gate says: every check, in markdown and as lines for a terminal."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from tabulate import tabulate

from flatbench.text import markdown_text, plain

Result = Literal["passed", "failed", "can't check"]

STEP_SUMMARY: Final = 2**20
"""Bytes that a step's summary may have on GitHub; a longer one is not shown at all.

https://docs.github.com/en/actions/using-workflows/workflow-commands-for-github-actions#step-isolation-and-limits
"""

COMMENT: Final = 64_000
"""Bytes of a comment. GitHub takes 65,536 characters: whoever posts it may write a line above."""

LONGEST: Final = 1_000
"""Characters of a line where the text is bounded: a failure's reason may be of any length."""


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

    @property
    def sentence(self) -> str:
        """The verdict and how many checks it is of: "pass: none of 12 checks failed"."""
        failed, blind, total = (len(o) for o in (self.failures, self.blind, self.outcomes))
        if not total:
            return "can't tell: nothing was checked"
        said = f"{failed} of {total} checks failed" if failed else f"none of {total} checks failed"
        if blind:
            said += f", {'and' if failed else 'but'} {blind} could not have failed"
        return f"{self.result}: {said}"

    def to_json(self) -> dict[str, Any]:
        """Return the verdict, every check and what was not checked, for a program to read."""
        return {
            "verdict": self.result,
            "sentence": self.sentence,
            "title": self.title,
            "false_alarm_rate": self.false_alarm_rate,
            "checks": [{"name": o.name, "result": o.result, "line": o.line} for o in self.outcomes],
            "not_checked": list(self.notes),
        }


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


def markdown(verdict: Verdict, most: int | None = None, details: str | None = None) -> str:
    """Return a verdict as GitHub's markdown.

    The verdict comes first, then the failures and a table of what the runs are judged by; all else
    is folded away.

    Args:
        verdict: what a gate said.
        most: bytes that the text may have. Each list takes at most half of what is left, so what
            passed cannot crowd out what failed; what does not fit is counted, and long lines are
            cut. None means no limit.
        details: markdown for the last line: where the rest is.
    """
    head = (
        f"## {markdown_text(_cut(verdict.title, most))}: {verdict.sentence}\n\n"
        f"Without a regression a whole grid fails at most {percent(verdict.false_alarm_rate)} "
        "of the time (diverged and failed runs apart).\n"
    )
    end = "" if details is None else f"\n{details}\n"
    # what stands around the lists, and the line that counts what is left out, take the difference
    room = math.inf if most is None else most - len((head + end).encode()) - 1_024

    def listed(lines: Iterable[str]) -> list[str]:
        return [f"- {markdown_text(_cut(line, most))}" for line in lines]

    lists = {
        "Failed": listed(o.line for o in verdict.failures),
        "Table": _table_lines(verdict, most),
        "Could not have failed": listed(o.line for o in verdict.blind),
        "Passed": listed(o.line for o in verdict.outcomes if o.passed),
        "Not checked": listed(verdict.notes),
    }
    parts = [head]
    for heading, lines in lists.items():
        if not lines:
            continue
        kept = _within(lines, room / 2)
        room -= sum(len(line.encode()) + 1 for line in kept)
        text = "\n".join(kept)
        if heading not in ("Failed", "Table"):
            opening = f"<details><summary>{heading} ({len(lines)})</summary>"
            text = f"{opening}\n\n{text}\n\n</details>"
        parts.append(f"{text}\n")
    return "\n".join(parts) + end


def _table_lines(verdict: Verdict, most: int | None) -> list[str]:
    """Return the lines of a table: the failures, then all other checks of a cell's accuracy."""
    order: tuple[Result, ...] = ("failed", "can't check", "passed")
    rows = [
        [*(markdown_text(_cut(cell, most)) for cell in dataclasses.astuple(row)), result]
        for result in order
        for outcome in verdict.outcomes
        if outcome.result == result and (outcome.failed or outcome.drop is not None)
        for row in outcome.rows
    ]
    header = ("check", "baseline", "now", "limit", "finds 9 times out of 10", "result")
    made = tabulate(rows, header, tablefmt="pipe", disable_numparse=True)
    return made.splitlines() if rows else []


def _cut(line: str, most: int | None) -> str:
    return line if most is None or len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def _within(lines: list[str], room: float) -> list[str]:
    """Return as many lines as have room, in bytes, and if need be one that counts the others."""
    used = 0
    for i, line in enumerate(lines):
        used += len(line.encode()) + 1
        if used > room:
            return [*lines[:i], "", f"and {len(lines) - i:,} more"]
    return lines


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
    lines.append(f"{plain(verdict.title)}: {verdict.sentence}")
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


def percent(rate: float) -> str:
    """Return a rate as "4.8 %"."""
    return f"{100 * rate:.1f} %"


def add_to_step_summary(
    verdict: Verdict,
    details: str | None = None,
    environment: Mapping[str, str] = os.environ,
) -> bool:
    """Append a verdict to the file named by ``GITHUB_STEP_SUMMARY``; return whether one is.

    What is there already, and then what GitHub shows, leave the room that it has.
    """
    name = environment.get("GITHUB_STEP_SUMMARY")
    if not name:
        return False
    path = Path(name)
    used = path.stat().st_size if path.exists() else 0
    with path.open("a", encoding="utf-8") as file:
        file.write(markdown(verdict, STEP_SUMMARY - used - 1, details) + "\n")
    return True

"""What a gate says: every check, in markdown and as lines for a terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flatbench.text import markdown_text, plain


@dataclass(frozen=True)
class Outcome:
    """One check: what was checked, whether it passed, and a line that says what was measured."""

    name: str
    passed: bool
    line: str


@dataclass(frozen=True)
class Verdict:
    """All checks of one gate, and what it did not check."""

    title: str
    outcomes: tuple[Outcome, ...]
    notes: tuple[str, ...]
    false_alarm_rate: float  # how often, at most, a whole grid without a regression fails

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The checks that did not pass."""
        return tuple(outcome for outcome in self.outcomes if not outcome.passed)

    @property
    def exit_code(self) -> int:
        """0 without a failure, 1 with one. (2, unusable input, is a `UsageError`.)"""
        return 1 if self.failures else 0


def markdown(verdict: Verdict) -> str:
    """Return a verdict as GitHub's markdown: the failures first, all else folded away."""
    failed, total = len(verdict.failures), len(verdict.outcomes)
    result = f"{failed} of {total} checks failed" if failed else f"all {total} checks passed"
    parts = [
        f"## {markdown_text(verdict.title)}: {result}\n",
        f"Without a regression a whole grid fails at most {percent(verdict.false_alarm_rate)} "
        "of the time (diverged and failed runs apart).\n",
    ]
    if failed:
        parts.append("".join(f"- {markdown_text(o.line)}\n" for o in verdict.failures))
    passed = [outcome.line for outcome in verdict.outcomes if outcome.passed]
    for heading, lines in (("Passed", passed), ("Not checked", verdict.notes)):
        if lines:
            listed = "".join(f"- {markdown_text(line)}\n" for line in lines)
            parts.append(
                f"<details><summary>{heading} ({len(lines)})</summary>\n\n{listed}\n</details>\n"
            )
    return "\n".join(parts)


def text(verdict: Verdict) -> str:
    """Return a verdict for a terminal: one line for each failure and note, then a summary."""
    lines = [f"FAILED {plain(outcome.line)}" for outcome in verdict.failures]
    lines += [f"not checked: {plain(note)}" for note in verdict.notes]
    failed, total = len(verdict.failures), len(verdict.outcomes)
    lines.append(
        f"{plain(verdict.title)}: {failed} of {total} checks failed; "
        f"a grid without a regression fails at most {percent(verdict.false_alarm_rate)} of the time"
    )
    return "\n".join(lines)


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

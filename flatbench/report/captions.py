"""Which figures a section has, and what each shows in words. `figures` draws them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from flatbench.records.quantities import SAM_SHARPNESS, in_training, quantity
from flatbench.report.flatness import headlines
from flatbench.report.numbers import Numbers
from flatbench.report.ranking import correlation, tau_text

GAINS: Final = "gains"
COST: Final = "cost"
PRICE: Final = "price"
OUTCOME: Final = "outcome-"  # opens the name of the outcome against a measure
GAP: Final = "gap-"  # opens the name of a measure against the generalization gap


@dataclass(frozen=True)
class Caption:
    """What a figure shows, in words."""

    title: str
    words: str


def stem(protocol: str, name: str) -> str:
    """Return the name of a figure's file, without its ending."""
    return re.sub(r"[^A-Za-z0-9+_-]", "_", f"{protocol}-{name}")


def names(numbers: Numbers) -> list[str]:
    """Return the names of a section's figures; that of a curve is its quantity's."""
    section, outcome = numbers.section, numbers.section.outcome
    found = []
    if any(gain.paired is not None for gain in numbers.pair_gains):
        found.append(GAINS)
    completed = numbers.frame[numbers.frame["status"] == "completed"]
    has_outcome = completed[outcome.name].notna()
    found += [
        f"{OUTCOME}{measure}"
        for measure in headlines(numbers)
        if (has_outcome & completed[measure].notna()).sum() >= 2
    ]
    runs = [r for r in section.records if r.status == "completed" and r.history]
    if runs and all(epoch.gradient_evaluations for r in runs for epoch in r.history):
        found += [COST, PRICE]
    if any(record.history for record in section.records):
        found += [outcome.name, SAM_SHARPNESS]
    trained = completed[in_training(outcome)].notna()
    found += [
        f"{GAP}{measure}"
        for measure in numbers.measures
        if (trained & completed[measure].notna()).sum() >= 2
    ]
    return found


def caption(numbers: Numbers, name: str) -> Caption:
    """Return what a figure shows."""
    part = numbers.section.evaluation
    outcome = numbers.section.outcome.titled(part)
    if name == GAINS:
        return Caption(
            f"Gain in {outcome}",
            "Mean difference by seed and its 95 % t-interval, in the colour of the first row. "
            "Filled: at equal epochs; hollow: at equal gradients. Right of the line the first row "
            "is better.",
        )
    if name.startswith(OUTCOME):
        return Caption(
            f"{outcome} against {_inside(name.removeprefix(OUTCOME))}",
            "Small: a run; large: the mean of a row. Upwards is better, to the left is flatter.",
        )
    if name == COST:
        return Caption(
            f"{outcome} by gradients spent",
            "Line: mean over the seeds, with its 95 % t-interval. Below: gradients until the "
            "target that the dotted line marks, a point a run, a bar at their mean; × marks a run "
            "that did not reach it.",
        )
    if name == PRICE:
        return Caption(
            f"{outcome} by what the training took",
            "Mean over the seeds, with its 95 % t-interval; rows of the same price stand side by "
            "side. A line joins the rows of a base that are no variant of another row: above it "
            "is better than the base for longer. Seconds hold for the hardware below alone.",
        )
    if name.startswith(GAP):
        found = correlation(numbers, name.removeprefix(GAP), "gap")
        tau = "undefined" if found is None else tau_text(found)
        return Caption(
            f"{quantity(name.removeprefix(GAP)).heading} against the generalization gap",
            f"The gap: training accuracy, of the labels trained on, less {part} accuracy. One "
            f"point a run. Kendall's τ: {tau}.",
        )
    return Caption(
        f"{quantity(name).titled(part)} by epoch",
        "Line: mean over the seeds; band: ± sample standard deviation.",
    )


def _inside(measure: str) -> str:
    """Return a measure's title as it stands inside a sentence."""
    title = quantity(measure).heading
    return title if title[:2].isupper() else title[0].lower() + title[1:]

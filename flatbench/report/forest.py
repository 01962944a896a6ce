"""The gains and their intervals side by side: which there are, and as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from flatbench.report.numbers import Gain, Numbers

WIDTH: Final = 41  # signs between the ends of a text's axis


def listed_gains(numbers: Numbers) -> dict[str, list[tuple[Gain, bool]]]:
    """Return the gains of every architecture that has any, each with whether gradients are equal.

    A gain stands once: with as many gradients where it is both.
    """
    found: dict[str, list[tuple[Gain, bool]]] = {}
    equal = numbers.equal_compute
    at_equal_gradients = {(g.architecture, g.row, g.base) for g in equal}
    listed = [
        *((g, False) for g in numbers.pair_gains),
        *((g, True) for g in equal),
    ]
    order = list(numbers.section.optimizers)
    for gain, is_equal in sorted(listed, key=lambda of: (order.index(of[0].row), of[1])):
        if is_equal or (gain.architecture, gain.row, gain.base) not in at_equal_gradients:
            found.setdefault(gain.architecture, []).append((gain, is_equal))
    return {a: found[a] for a in numbers.section.architectures if a in found}


def forest_text(numbers: Numbers) -> list[str]:
    """Return the same as lines of text: ``─`` is the interval, ``●`` or ``○`` the mean.

    ○ stands for equal gradients. Nothing is returned without an interval.
    """
    listed = [of for gains in listed_gains(numbers).values() for of in gains]
    ends = [
        end
        for gain, _ in listed
        if gain.paired is not None and gain.paired.interval is not None
        for end in (gain.paired.interval.low, gain.paired.interval.high)
    ]
    if not ends:
        return []
    low, high = min(0.0, *ends), max(0.0, *ends)
    if high == low:
        return []

    def place(value: float) -> int:
        return round((WIDTH - 1) * (value - low) / (high - low))

    names = [f"{gain.row} − {gain.base}, {gain.architecture}" for gain, _ in listed]
    longest = max(map(len, names))
    lines = []
    for name, (gain, is_equal) in zip(names, listed, strict=True):
        bar = [" "] * WIDTH
        bar[place(0.0)] = "│"
        if gain.paired is not None:
            if gain.paired.interval is not None:
                first, last = place(gain.paired.interval.low), place(gain.paired.interval.high)
                bar[first : last + 1] = _crossed(bar[first : last + 1])
            bar[place(gain.paired.mean)] = "○" if is_equal else "●"
        lines.append(f"{name:<{longest}}  {''.join(bar).rstrip()}")
    axis = f"{'':<{longest}}  {low:<+{WIDTH // 2}.1f}{high:>+{WIDTH - WIDTH // 2}.1f}"
    return [*lines, axis.replace("-", "−")]


def _crossed(signs: Sequence[str]) -> list[str]:
    """Return an interval's line, which crosses that of zero."""
    return ["┼" if sign == "│" else "─" for sign in signs]

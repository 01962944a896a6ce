"""The words of a comparison: one line of what was found, how surely, and what could have shown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from flatbench.records.quantities import Quantity, quantity
from flatbench.report.comparisons import Comparison
from flatbench.report.numbers import ALPHA
from flatbench.text import number, ranges

OF_SHARPNESS: Mapping[str, str] = {"better": "flatter", "worse": "sharper"}
OF_ACCURACY: Mapping[str, str] = {"better": "more accurate", "worse": "less accurate"}


@dataclass(frozen=True)
class Finding:
    """A comparison in a list that tells its terms and its measure; ``str`` gives the sentence."""

    about: str  # "adam+sam − adam on vgg16"
    numbers: str  # the gain, its interval, and what could have shown
    verdict: str
    sign: int  # 1 where the first row is told to be better, −1 where the second is, else 0

    def __str__(self) -> str:
        """Return the sentence."""
        return f"{self.about}: {self.numbers}: {self.verdict}"


def finding(found: Comparison, outcome: Quantity) -> Finding:
    """Return a comparison's words for a list of such."""
    q = found.question
    about = f"{q.mine} {'/' if found.is_of_logarithms else '−'} {q.reference} on {q.architecture}"
    n = _seeds(found)
    if found.gain is None:
        return Finding(about, "no seed that has both", found.verdict, 0)
    if found.verdict == "the same":
        return Finding(about, f"equal bit for bit in {n}", found.verdict, 0)
    gain = _amount(found, found.gain, outcome, sign=True)
    numbers = ", ".join([f"{gain}{_unit(found, outcome)}", *_interval(found, outcome)])
    shown = _shown(found, outcome).removesuffix(_unit(found, outcome))
    numbers += f"; {n} could have shown {shown}" if shown else f"; no test of {n}"
    sign = {"better": 1, "worse": -1}.get(found.verdict, 0)
    return Finding(about, numbers, f"{verdict(found, outcome)}{_why(found)}", sign)


def sentence(found: Comparison, outcome: Quantity) -> str:
    """Return a comparison in one line that stands alone."""
    q = found.question
    where = f"{q.architecture}, {q.terms}"
    title, n = _title(found), _seeds(found)
    if found.gain is None:
        return f"{where}: {q.mine} − {q.reference}: no seed that has both: can't tell"
    if found.verdict == "the same":
        of = f" in {title}" if found.is_of_logarithms else ""
        return f"{where}: {q.mine} equals {q.reference}{of}, bit for bit, in {n}: the same"
    gain = _amount(found, found.gain, outcome, sign=True)
    parts = [
        f"{where}: {q.mine} has {gain} {q.reference}'s {title}"
        if found.is_of_logarithms
        else f"{where}: {q.mine} − {q.reference}: {gain}{_unit(found, outcome)}",
        *_interval(found, outcome),
        f"no test of {n}" if found.p is None else _p(found.p),
    ]
    if shown := _shown(found, outcome):
        parts.append(f"{n} would have shown {shown} 9 times out of 10")
    word = verdict(found, outcome) if found.is_of_logarithms else found.verdict
    return f"{', '.join(parts)}: {word}{_why(found)}"


def verdict(found: Comparison, outcome: Quantity) -> str:
    """Return the verdict in the words of its measure."""
    if found.is_of_logarithms:
        return OF_SHARPNESS.get(found.verdict, found.verdict)
    return OF_ACCURACY.get(found.verdict, found.verdict) if outcome.unit == "%" else found.verdict


def _seeds(found: Comparison) -> str:
    return f"{len(found.seeds)} seed{'s' if len(found.seeds) > 1 else ''}"


def _amount(found: Comparison, gain: float, outcome: Quantity, *, sign: bool = False) -> str:
    """Return a gain, or the ratio that a gain of logarithms stands for."""
    if found.is_of_logarithms:
        return f"{math.exp(-gain):.3g} ×"
    return number(gain, 2 if outcome.unit == "%" else 4, sign=sign)


def _interval(found: Comparison, outcome: Quantity) -> list[str]:
    """Return the interval of the gain in words; nothing of a gain without one."""
    if found.interval is None:
        return []
    ends = [found.interval.low, found.interval.high]
    if found.is_of_logarithms:  # the larger gain is the smaller ratio
        ends.reverse()
    low, high = (_amount(found, end, outcome, sign=True) for end in ends)
    return [f"95 % from {low} to {high}"]


def _shown(found: Comparison, outcome: Quantity) -> str:
    """Return the gain that would have been told, or nothing where there is no test."""
    if found.detectable is None:
        return ""
    if found.is_of_logarithms:
        factor = math.exp(found.detectable)
        return f"a factor of {factor:.3g}" if factor < 1000 else "a factor above 1000"
    return f"{_amount(found, found.detectable, outcome)}{_unit(found, outcome)}"


def _unit(found: Comparison, outcome: Quantity) -> str:
    return " points" if outcome.unit == "%" and not found.is_of_logarithms else ""


def _title(found: Comparison) -> str:
    title = quantity(found.measure).titled()
    return title if title[:2].isupper() else title[0].lower() + title[1:]


def _p(p: float) -> str:
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def _why(found: Comparison) -> str:
    """Return what is missing, where that alone keeps a difference from a verdict."""
    if found.verdict != "can't tell" or found.p is None or found.p >= ALPHA:
        return ""
    if found.unmeasured:
        return f", since seeds {ranges(found.unmeasured)} have no value above 0"
    q = found.question
    row, lost = (q.mine, found.lost) if found.lost else (q.reference, found.reference_lost)
    return f", since {row} came to no end with seeds {ranges(lost)}"

"""Numbers and foreign strings as text that is safe to print."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence

# What starts a markdown construct: emphasis, code, links, tags, entities, table cells, maths; a
# heading, quotation or list at the start. A sign in running text, as in "p < 0.05", does not.
_MARKDOWN = re.compile(
    r"([\\`*|\[\]~$]|<(?=[A-Za-z/!?])|&(?=[#A-Za-z])|(?<!\w)_|_(?!\w)|^[#>]|^[-+](?=\s))"
)

# What GitHub makes a link or a mention of, which a comment in its midst ends.
_LINKED = re.compile(r"(@|:(?=//)|\bwww\.)", re.IGNORECASE)

# What LaTeX reads as a command, and the signs that flatbench's own tables use.
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "×": r"$\times$",
    "→": r"$\to$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "ρ": r"$\rho$",
    "τ": r"$\tau$",
    "ε": r"$\varepsilon$",
    "‖": r"$\|$",
    "∇": r"$\nabla$",
    "–": "--",
    "—": "---",
}


def plain(text: str) -> str:
    """Return one printable line, with anything else (newlines, control and bidi signs) escaped.

    A name from a file must not start a new table row, move the terminal's cursor, or fail to
    encode (lone surrogates).
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def markdown_text(text: str) -> str:
    r"""Return a foreign string as markdown that shows it and does nothing else.

    Underscores inside words stay: they are plain text in GitHub's markdown and common in names.
    """
    shown = _MARKDOWN.sub(r"\\\1", plain(text)) or " "
    return _LINKED.sub(r"\1<!-- -->", shown)


def latex_text(text: str) -> str:
    """Return a string as LaTeX that shows it and does nothing else."""
    shown = "".join(_LATEX.get(c, c) for c in plain(text))
    # behind the end of a table's row, these two would belong to its \\\\
    return f"{{}}{shown}" if shown[:1] in ("[", "*") else shown


def figure_text(text: str) -> str:
    """Return a foreign string as matplotlib shows it, not as mathematics."""
    return plain(text).replace("$", r"\$")


def ranges(numbers: Iterable[int]) -> str:
    """Return whole numbers as "0, 1, 2" or, from four in a row on, "0–9"."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(
        f"{run[0]}–{run[-1]}" if len(run) > 3 else ", ".join(map(str, run)) for run in runs
    )


def decimals(values: Sequence[float], digits: int = 3) -> int:
    """Return how many decimals show ``digits`` digits of the smallest non-zero value; at most 6."""
    sizes = [abs(value) for value in values if value != 0]
    if not sizes:
        return digits - 1
    return min(max(digits - 1 - math.floor(math.log10(min(sizes))), 0), 6)


def number(value: float, places: int, *, sign: bool = False) -> str:
    """Return a number with ``places`` decimals, or in powers of ten where it would show as zero."""
    plus = "+" if sign else ""
    if value != 0 and abs(value) < 0.5 * 10.0**-places:
        text = f"{value:{plus}.1e}"
    else:
        text = f"{value:{plus}.{places}f}"
    return text.replace("-", "−") if sign else text


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" with the nearest of the known names, or nothing."""
    if len(name) > 100:  # it would take long, and is none of them
        return ""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""

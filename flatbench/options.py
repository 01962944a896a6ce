"""The options that the command line and pytest share: each is defined and read here alone."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

Options = Mapping[str, Mapping[str, Any]]  # an option's name -> the arguments of `add_argument`

RESULTS_FOLDER: Final = Path("results")
DIGITS: Final = 18  # of a whole number: any such number has a place in 64 bits
MOST_SEEDS: Final = 10_000
PUBLISHED: Final = "PUBLISHED.md"  # a file that says that what lies beside it is published


def names(text: str) -> tuple[str, ...]:
    """Parse "sgd,sgd+sam"."""
    parts = tuple(part.strip() for part in text.split(","))
    if not all(parts):
        raise argparse.ArgumentTypeError(f"must be names separated by commas, got {text!r}")
    return parts


def seeds(text: str) -> tuple[int, ...]:
    """Parse "0,1,2", "0-9" or a mixture of the two."""
    found: list[range] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last if dash else first)
        if not all(map(_is_whole, ends)) or int(ends[0]) > int(ends[1]):
            raise argparse.ArgumentTypeError(f"must be a list such as 0,1,2 or 0-9, {_found(text)}")
        found.append(range(int(ends[0]), int(ends[1]) + 1))
    number = sum(map(len, found))
    if number > MOST_SEEDS:
        raise argparse.ArgumentTypeError(f"must be at most {MOST_SEEDS:,} seeds, got {number:,}")
    return tuple(seed for seeds in found for seed in seeds)


def count(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not _is_whole(text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, {_found(text)}")
    return int(text)


def points(text: str) -> float:
    """Parse a number of points of accuracy above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 100:
        raise argparse.ArgumentTypeError(f"must be a number between 0 and 100, got {text!r}")
    return value


def natural(text: str) -> int:
    """Parse a whole number of at least 0."""
    if not _is_whole(text):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0, {_found(text)}")
    return int(text)


def assignment(text: str) -> tuple[str, Any]:
    """Parse NAME=VALUE: a number, truth value, list or table as TOML has it, or else a string."""
    name, equals, value = text.partition("=")
    if not name.strip() or not equals:
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, got {text!r}")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()


def _is_whole(text: str) -> bool:
    return len(text) <= DIGITS and text.isascii() and text.isdecimal()


def _found(text: str) -> str:
    if len(text) <= DIGITS:
        return f"got {text!r}"
    return f"of at most {DIGITS} digits, got {text[:40]!r} ({len(text)} characters)"


def results_folder(text: str) -> Path:
    """Return the folder of results; of "", the default: ``results``, or ``results/local`` in it.

    The latter is so where what lies in ``results`` is published, which a `PUBLISHED` there says:
    whoever tries something must not overwrite it.
    """
    if text:
        return Path(text)
    return RESULTS_FOLDER / "local" if (RESULTS_FOLDER / PUBLISHED).exists() else RESULTS_FOLDER


SELECTION: Final[Options] = {
    "protocol": {"default": "digits", "help": "a name, or the path of a .toml file"},
    "architectures": {"type": names, "help": "comma-separated (default: all)"},
    "optimizers": {"type": names, "help": "comma-separated (default: all)"},
    "seeds": {"type": seeds, "help": "as 0,1,2 or 0-9 (default: the protocol's)"},
}
MACHINE: Final[Options] = {
    "device": {"default": "auto", "help": "cpu, cuda, cuda:N or auto (default)"},
    "data-dir": {"type": Path, "help": "the folder of the data sets"},
}
RESULTS: Final[Options] = {
    "results": {
        "type": results_folder,
        "default": "",
        "help": f"default: results, or results/local where results holds {PUBLISHED}",
    },
}
WORKERS: Final[Options] = {
    "workers": {"type": count, "help": "processes (default: one a core, or one a GPU)"},
    "workers-per-gpu": {"type": count, "default": 1, "help": "that share a GPU (default: 1)"},
    "engine": {
        "choices": ("local", "ray"),
        "default": "local",
        "help": "this machine (default), or a Ray cluster: pip install flatbench[ray]",
    },
    "address": {
        "help": "of the Ray cluster: auto, or HOST:PORT (default: one on this machine, stopped "
        "afterwards)",
    },
}
TRAINING: Final[Options] = {
    "keep-weights": {"action": "store_true", "help": "keep the final weights"},
}
GATE: Final[Options] = {
    "require-power": {
        "type": points,
        "metavar": "POINTS",
        "help": "fail unless every check could have failed, and finds in each cell a drop in "
        "accuracy of so many points 9 times out of 10",
    },
}
GRID: Final[Options] = {
    "resume": {"action": "store_true", "help": "take finished cases, and go on with killed ones"},
    "thresholds": {
        "type": Path,
        "help": "default: benchmarks/thresholds/PROTOCOL.toml, or PROTOCOL.thresholds.toml beside "
        "the protocol, where one of them is there",
    },
    "require-thresholds": {
        "action": "store_true",
        "help": "refuse to run where no thresholds are there, instead of saying so",
    },
    "gate": {
        "type": Path,
        "help": "compare the grid with this baseline: records, or thresholds",
    },
}
PYTEST: Final = (SELECTION, MACHINE, WORKERS, RESULTS, TRAINING, GRID, GATE)


def add(to: Callable[..., object], *groups: Options) -> None:
    """Add options as ``--NAME`` by argparse's `add_argument`."""
    for options in groups:
        for name, arguments in options.items():
            to(f"--{name}", **arguments)


def add_prefixed(to: Callable[..., object], *groups: Options) -> None:
    """Add options as ``--flatbench-NAME`` by pytest's `addoption`."""
    for options in groups:
        for name, arguments in options.items():
            to(f"--flatbench-{name}", **arguments, dest=_dest(name))


def add_short(to: Callable[..., object], *groups: Options) -> None:
    """Add ``--NAME`` as another spelling of ``--flatbench-NAME``."""
    for options in groups:
        for name, arguments in options.items():
            to(f"--{name}", **arguments, dest=_dest(name))


def _dest(name: str) -> str:
    return f"flatbench_{name.replace('-', '_')}"

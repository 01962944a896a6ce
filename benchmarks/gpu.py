"""The first hour on a GPU, in parts: tests, engine, sanitizer, step, trainer.

    python3 -m benchmarks.gpu [--part PART] [--output FOLDER] [--data-dir FOLDER] [--again]
    python3 -m benchmarks.gpu join FOLDER...

Each part ends within 8 minutes, and writes what it found as ``PART.json`` and ``PART.md`` into
``results/gpu/CARD``, or into the folder that --output names. A part that has passed on the same
card, sources and versions is not run again. Without --part all run in turn and are joined: a table
of what passed, and one page, ``gpu.md``. Nothing is installed or fetched, and nothing is written
outside the checkout and that folder.

Exit 0: every part passed; the sanitizer may be skipped. 1: a part did not pass. 2: no GPU,
something that is needed is missing, or the input is unusable.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import gpu_parts
from benchmarks.gpu_pages import IDENTITY, exit_code, join, page, read
from benchmarks.gpu_parts import PARTS, ROOT, Ran, Result, Setting, TimedOut
from flatbench.errors import UsageError
from flatbench.files import write_atomically, write_json

# What the parts import, by the name to import and the name to install.
PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "triton": "triton",
    "numpy": "numpy",
    "scipy": "scipy",
    "pandas": "pandas",
    "sklearn": "scikit-learn",
    "safetensors": "safetensors",
    "tabulate": "tabulate",
    "PIL": "pillow",
    "pytest": "pytest",
    "pytest_benchmark": "pytest-benchmark",
    "hypothesis": "hypothesis",
}
OLDEST_TORCH = (2, 9)
TAIL = 20  # lines of the output of a command that failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts, or join what they have written; return the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if given[:1] == ["join"]:
            return join(_join_parser().parse_args(given[1:]).folders)
        return _run(_parser().parse_args(given))
    except UsageError as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("benchmarks.gpu: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--part", choices=tuple(PARTS), help="default: all, in this order")
    parser.add_argument("--output", type=Path, help="default: results/gpu/CARD")
    parser.add_argument("--data-dir", type=Path, help="where data sets are kept")
    parser.add_argument("--again", action="store_true", help="run what has passed already, too")
    return parser


def _join_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.gpu join")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of one card each")
    return parser


def _run(options: argparse.Namespace) -> int:
    lacking = missing()
    if lacking:
        raise UsageError(f"missing: {', '.join(lacking)}")
    import torch

    if not torch.cuda.is_available():
        raise UsageError(f"no GPU: torch {torch.__version__} finds no CUDA device")
    here = machine(torch.device("cuda"))
    output = options.output or ROOT / "results" / "gpu" / slug(here["card"])
    data_dir = options.data_dir and options.data_dir.resolve()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{output}: cannot be made: {error.strerror}") from None
    if not os.access(output, os.W_OK):
        raise UsageError(f"{output}: cannot be written to")
    wanted = [options.part] if options.part else list(PARTS)
    found = [run_part(part, output, here, data_dir, options.again) for part in wanted]
    return join([output]) if options.part is None else exit_code(found)


def missing() -> list[str]:
    """Return what the parts need and this environment lacks."""
    lacking = [] if sys.version_info >= (3, 11) else ["Python 3.11 or newer"]
    lacking += [name for module, name in PACKAGES.items() if not importlib.util.find_spec(module)]
    if "torch" in lacking:
        return lacking  # without it nothing of flatbench's can look further
    torch = importlib.metadata.version("torch")
    if tuple(int(part) for part in re.findall(r"\d+", torch)[:2]) < OLDEST_TORCH:
        lacking.append(f"torch {'.'.join(map(str, OLDEST_TORCH))} or newer, not {torch}")
    from flatbench.optim.availability import COMPILERS, c_compiler

    if c_compiler() is None:
        lacking.append(f"a C compiler ({' or '.join(COMPILERS)}, or set CC)")
    return lacking


def machine(where: Any) -> dict[str, Any]:
    """Return what a part's result depends on: card, driver, versions, sources."""
    import torch

    from flatbench.records import provenance

    said = provenance.describe(where, "")
    capability = torch.cuda.get_device_capability(where) if where.type == "cuda" else None
    return {
        "card": said["device"],
        "compute_capability": capability and ".".join(map(str, capability)),
        "driver": said["driver"],
        "torch": said["torch"],
        "triton": importlib.metadata.version("triton"),
        "python": platform.python_version(),
        "source_hash": said["source_hash"],
        "suite_hash": suite_hash(),
        "commit": said["commit"],
        "dirty": said["dirty"],
    }


@functools.cache
def suite_hash() -> str:
    """Return 12 hex digits of the SHA-256 of what the parts run: package, tests, benchmarks."""
    digest = hashlib.sha256()
    folders = ("flatbench", "tests", "benchmarks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    for path in sorted([*files, *(ROOT / "flatbench").rglob("*.toml"), ROOT / "conftest.py"]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def slug(name: str) -> str:
    """Return a card's name as a folder's: "nvidia-h100-80gb-hbm3"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def run_part(
    part: str,
    output: Path,
    here: dict[str, Any],
    data_dir: Path | None = None,
    again: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Run a part, unless it has passed before; write and return its JSON.

    ``settings`` are `Setting`'s, of a smaller part than a GPU's.
    """
    before = None if again else passed_before(output / f"{part}.json", here)
    if before is not None:
        print(f"{part}: passed before, not run again", flush=True)
        return before
    commands: list[str] = []
    with tempfile.TemporaryDirectory(prefix=".", dir=output, ignore_cleanup_errors=True) as folder:
        setting = Setting(Path(folder).resolve(), data_dir=data_dir, **settings)
        start = time.monotonic()

        def run(command: Sequence[str], **extra: str) -> Ran:
            commands.append(shown(command, setting.scratch, extra))
            print(f"{part}: {commands[-1]}", flush=True)
            return gpu_parts.run(command, setting, start + setting.limit, **extra)

        try:
            result = PARTS[part](setting, run)
        except TimedOut as error:
            result = Result("timed out", f"ended after {setting.limit:g} s", output=str(error))
        found = {
            "part": part,
            "outcome": result.outcome,
            "summary": result.summary,
            **here,
            "command": commands,
            "seconds": round(time.monotonic() - start, 1),
            "details": {
                "tables": {title: rows for title, rows in result.tables.items() if rows},
                "notes": result.notes,
                "output": result.output.splitlines()[-TAIL:],
            },
        }
        table: dict[str, Any] = without_paths(found, setting)
    write_json(output / f"{part}.json", table)
    write_atomically(output / f"{part}.md", page(table).encode())
    print(f"{part}: {table['outcome']} in {table['seconds']} s: {table['summary']}", flush=True)
    return table


def passed_before(path: Path, here: dict[str, Any]) -> dict[str, Any] | None:
    """Return a part's JSON if it passed on this card with these sources and versions."""
    try:
        table = read(path)
    except UsageError:  # not there, or damaged: to be written anew
        return None
    same = all(table.get(key) == here[key] for key in IDENTITY)
    return table if same and table["outcome"] == "passed" else None


def shown(command: Sequence[str], scratch: Path, extra: dict[str, str]) -> str:
    """Return a command as a person would type it: without what serves this program alone."""
    words = [word for word in command if str(scratch) not in word]
    words = ["python3" if word == sys.executable else word for word in words]
    words[0] = Path(words[0]).name
    return " ".join([*(f"{name}={value}" for name, value in extra.items()), shlex.join(words)])


def without_paths(value: Any, setting: Setting) -> Any:
    """Return JSON without the absolute paths of this machine."""
    if isinstance(value, dict):
        return {key: without_paths(part, setting) for key, part in value.items()}
    if isinstance(value, list):
        return [without_paths(part, setting) for part in value]
    if not isinstance(value, str):
        return value
    text = value.replace(str(setting.scratch), "SCRATCH").replace(f"{ROOT}/", "")
    text = text.replace(str(setting.data_dir), "DATA") if setting.data_dir else text
    text = text.replace(str(ROOT), ".")
    return re.sub(r"(?<![\w:/.~*])/(?:[\w.+@-]+/)+", "…/", text)


if __name__ == "__main__":
    # so that whatever ends this program ends the part's command with it
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())

"""What the parts of `benchmarks.gpu` have written: their JSON, a page of each, and all joined."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts import PARTS
from flatbench.errors import UsageError
from flatbench.files import write_atomically

# A part that passed stands for one that would be run, if these are the same.
IDENTITY = ("card", "compute_capability", "driver", "torch", "triton", "python", "suite_hash")


def read(path: Path) -> dict[str, Any]:
    """Read a part's JSON.

    Raises:
        UsageError: it cannot be read, or is something else.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path}: is not JSON: {error}") from None
    needed = {"part", "outcome", "summary", "command", "seconds", "details", *IDENTITY}
    if not isinstance(table, dict) or needed - table.keys():
        raise UsageError(f"{path}: must be the JSON of a part, as benchmarks.gpu writes it")
    found: dict[str, Any] = table
    return found


def page(table: dict[str, Any], heading: str = "#") -> str:
    """Return a part's page in markdown."""
    from tabulate import tabulate

    details = table["details"]
    commit = f"{table['commit']}{' and changes' if table['dirty'] else ''}"
    about = [
        ("card", f"{table['card']}, compute capability {table['compute_capability']}"),
        ("driver", table["driver"]),
        ("torch", table["torch"]),
        ("triton", table["triton"]),
        ("python", table["python"]),
        ("flatbench", f"commit {commit}, sources {table['source_hash']}"),
        ("seconds", table["seconds"]),
    ]
    parts = [
        f"{heading} {table['part']}: {table['outcome']}",
        f"{table['summary']}.",
        tabulate(about, headers=("", ""), tablefmt="github", disable_numparse=True),
        *(f"    {command}" for command in table["command"]),
    ]
    for title, rows in details["tables"].items():
        cells = [{key: _cell(value) for key, value in row.items()} for row in rows]
        parts += [f"{heading}# {title}", tabulate(cells, headers="keys", tablefmt="github")]
    parts += details["notes"]
    if details["output"]:
        parts += ["The end of the output:", "\n".join(f"    {x}" for x in details["output"])]
    return "\n\n".join(parts) + "\n"


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}") if abs(value) < 1e4 else round(value)
    return value.replace("|", r"\|") if isinstance(value, str) else value


def join(folders: Sequence[Path]) -> int:
    """Print one table of what passed in the folders; write it and all pages to the first one.

    Raises:
        UsageError: a folder holds no part's JSON, or one that is damaged.
    """
    if not importlib.util.find_spec("tabulate"):
        raise UsageError("missing: tabulate")
    from tabulate import tabulate

    columns = ("part", "outcome", "seconds", "summary", "suite_hash")
    tables, rows = [], []
    for folder in folders:
        found = [read(path) for part in PARTS if (path := folder / f"{part}.json").exists()]
        if not found:
            raise UsageError(f"{folder}: holds no part's JSON, such as tests.json")
        tables += found
        card = found[0]["card"]
        rows += [[card, *(table[key] for key in columns)] for table in found]
        left = [part for part in PARTS if part not in {table["part"] for table in found}]
        rows += [[card, part, "not run", None, None, None] for part in left]
    headers = ("card", *columns[:-1], "sources")
    whole = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    print(whole)
    pages = [page(table, "##") for table in tables]
    written = "\n".join(["# flatbench on a GPU\n", f"{whole}\n", *pages])
    write_atomically(folders[0] / "gpu.md", written.encode())
    return exit_code(tables)


def exit_code(tables: Sequence[dict[str, Any]]) -> int:
    """Return 0 if every part passed; the sanitizer may be skipped."""
    fine = {(part, "passed") for part in PARTS} | {("sanitizer", "skipped")}
    return 0 if all((table["part"], table["outcome"]) in fine for table in tables) else 1

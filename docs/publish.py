"""Renew what the package ships of the published results: ``python -m docs.publish``."""

from __future__ import annotations

from pathlib import Path

from flatbench.files import write_atomically
from flatbench.records.published import FOLDER, pack

RESULTS = Path(__file__).parents[1] / "results"
NAMES = ("digits",)  # whose records `flatbench try` compares with

if __name__ == "__main__":
    for name in NAMES:
        write_atomically(FOLDER / f"{name}.json.gz", pack(RESULTS, name))

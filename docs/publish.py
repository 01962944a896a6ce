"""Renew what is packed of the results: ``python -m docs.publish [BASELINE]``.

The package ships the published records, of which `flatbench try` takes the rows that it compares
with. BASELINE, a folder of the records behind benchmarks/thresholds/digits.toml, becomes
results/digits/baseline.json.gz, from which docs/gate.md is made.
"""

from __future__ import annotations

import sys
from pathlib import Path

from flatbench.files import write_atomically
from flatbench.records.published import FOLDER, pack
from flatbench.records.reading import collect, read

RESULTS = Path(__file__).parents[1] / "results"
BASELINE = RESULTS / "digits" / "baseline.json.gz"
NAMES = ("digits",)  # whose records `flatbench try` compares with

if __name__ == "__main__":
    for name in NAMES:
        packed = pack(read(RESULTS / name / "benchmark.json"))
        write_atomically(FOLDER / f"{name}.json.gz", packed)
    if sys.argv[1:]:
        write_atomically(BASELINE, pack(collect(map(Path, sys.argv[1:]))))

"""Pack what the package ships of the published results: ``python -m docs.publish``.

`flatbench try` takes the rows from it that it compares with. Other records are packed by
``flatbench baseline``, with an output that ends in .json.gz.
"""

from __future__ import annotations

from pathlib import Path

from flatbench.files import write_atomically
from flatbench.records.published import FOLDER, pack
from flatbench.records.reading import read

RESULTS = Path(__file__).parents[1] / "results"
NAMES = ("digits",)

if __name__ == "__main__":
    for name in NAMES:
        content = pack(read(RESULTS / name / "benchmark.json"))
        write_atomically(FOLDER / f"{name}.json.gz", content)

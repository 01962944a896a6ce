"""Pack records: ``python -m docs.publish [PACKED RECORDS...]``.

Without arguments, what the package ships of the published results, of which `flatbench try` takes
the rows that it compares with. With them, RECORDS, files or folders, become PACKED, a .json.gz
file.
"""

from __future__ import annotations

import sys
from pathlib import Path

from flatbench.files import write_atomically
from flatbench.records.published import FOLDER, pack
from flatbench.records.reading import collect, read

RESULTS = Path(__file__).parents[1] / "results"
NAMES = ("digits",)

if __name__ == "__main__":
    if sys.argv[1:]:
        packed, *paths = map(Path, sys.argv[1:])
        write_atomically(packed, pack(collect(paths)))
    else:
        for name in NAMES:
            content = pack(read(RESULTS / name / "benchmark.json"))
            write_atomically(FOLDER / f"{name}.json.gz", content)

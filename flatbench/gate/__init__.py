"""The gate: has anything become worse, and could it have been found?

`derive` makes thresholds of many seeds, `thresholds` is their file, and `check` holds records to
them; `compare` holds records to other records. Both take a measure on its scale (`scales`), with
the spread of its seeds (`spread`), to a limit that knows what it finds (`limits`). `verdict` says
how it all ended.
"""

from flatbench.gate.check import check_case, check_cells, check_pairs, judge
from flatbench.gate.derive import derive, from_reference
from flatbench.gate.thresholds import (
    GRID_SEEDS,
    LEVEL,
    Bound,
    CellThreshold,
    PairThreshold,
    Thresholds,
    beside,
    read_thresholds,
    without_thresholds,
    write_thresholds,
)

__all__ = [
    "GRID_SEEDS",
    "LEVEL",
    "Bound",
    "CellThreshold",
    "PairThreshold",
    "Thresholds",
    "beside",
    "check_case",
    "check_cells",
    "check_pairs",
    "derive",
    "from_reference",
    "judge",
    "read_thresholds",
    "without_thresholds",
    "write_thresholds",
]

"""The gate: thresholds derived from many seeds, checks against them, and comparisons."""

from flatbench.gate.check import check_case, check_cells, check_pairs, judge
from flatbench.gate.derive import LEVEL, derive, from_reference
from flatbench.gate.thresholds import (
    Bound,
    CellThreshold,
    PairThreshold,
    Thresholds,
    read_thresholds,
    without_thresholds,
    write_thresholds,
)

__all__ = [
    "LEVEL",
    "Bound",
    "CellThreshold",
    "PairThreshold",
    "Thresholds",
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

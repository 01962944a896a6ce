"""The gate: thresholds derived from many seeds, what fails against them, and comparisons."""

from flatbench.gate.thresholds import (
    LEVEL,
    MEASURES,
    Bound,
    CellThreshold,
    PairThreshold,
    Thresholds,
    check_case,
    check_pairs,
    derive,
    from_reference,
    judge,
    read_thresholds,
    unbounded,
    write_thresholds,
)

__all__ = [
    "LEVEL",
    "MEASURES",
    "Bound",
    "CellThreshold",
    "PairThreshold",
    "Thresholds",
    "check_case",
    "check_pairs",
    "derive",
    "from_reference",
    "judge",
    "read_thresholds",
    "unbounded",
    "write_thresholds",
]

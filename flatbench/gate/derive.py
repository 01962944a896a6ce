"""Thresholds derived from many seeds, or from published results.

A bound is a one-sided prediction limit for one new seed (`flatbench.stats.prediction_limit`): a
lower one for the test accuracy, an upper one for every sharpness. It is taken on the scale that
`flatbench.gate.scales` gives the measure: the logarithm of a sharpness, and of an accuracy's error.

The default level, 0.999 a bound, is chosen for a whole grid: 4 rows x 2 architectures x 3 seeds
make 24 cases, each with 2 bounds, and the means over the seeds of 8 cells are held to 2 more. So by
Bonferroni's inequality a grid without a regression fails with a probability of at most 64 x 0.001 =
6.4 %. A pair is asserted once in a grid, and its mean over few seeds is known less well: its level
is 0.99, so each asserted pair adds at most 1 %. `Thresholds.false_alarm_rate` gives the number for
any grid.

No bound is made for a cell that diverged or failed in the baseline, for a measure that had the
same value under every seed (the spread is unknown then), or for one that some seed lacks. Such a
cell asserts no more than that its run completes; `flatbench.gate.check.unbounded` lists it with
the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

from scipy import stats

from flatbench.errors import UsageError
from flatbench.gate.limits import limit_point
from flatbench.gate.scales import scaling_of
from flatbench.gate.thresholds import (
    GRID_SEEDS,
    LEVEL,
    LEVELS,
    Bound,
    CellThreshold,
    PairThreshold,
    Thresholds,
)
from flatbench.protocols.protocol import Protocol
from flatbench.records.quantities import (
    SAM_SHARPNESS,
    TEST_ACCURACY,
    is_standard_error,
    quantity,
    results_of,
)
from flatbench.records.record import Record
from flatbench.records.sections import Section, sections
from flatbench.stats import prediction_bound, summary, without_rounding
from flatbench.text import plain

PAIR_LEVEL = 0.99
MINIMUM_SEEDS = 10  # docs/gate.md, "Power": limits from few seeds lie too far out to find much
REFERENCE_STDS = 3.0  # below a published mean


def derive(
    records: Iterable[Record],
    level: float = LEVEL,
    pair_level: float = PAIR_LEVEL,
    grid_seeds: int = GRID_SEEDS,
    measures: Sequence[str] | None = None,
) -> Thresholds:
    """Derive thresholds from the records of one protocol, at least 10 seeds in every cell.

    Args:
        records: the baseline's runs.
        level: the level of each bound of a case, in (0.5, 1).
        pair_level: the level of each bound of a pair's mean difference, in (0.5, 1).
        grid_seeds: the number of new seeds that a pair's mean difference will be taken over.
        measures: ``test_accuracy`` (bounded below) and any sharpness (bounded above): the
            record's ``sam_sharpness`` or keys of its ``sharpness``.

    Raises:
        UsageError: no record, several protocols, fewer seeds than 10 in a cell, a record that
            does not say what protocol content or commit it comes from, an unknown measure, or a
            standard error.
    """
    grouped = sections(records)
    if len(grouped) != 1:
        names = ", ".join(plain(s.protocol) for s in grouped) or "no record"
        raise UsageError(f"a baseline must be one protocol's records, got those of {names}")
    section = grouped[0]
    label = plain(section.protocol)
    for name, value in (("level", level), ("pair_level", pair_level)):
        if not 0.5 < value < 1:
            raise UsageError(f"{name} must be {LEVELS.must_be}, got {value}")
    # Checks need the hashes to see that the protocol changed, and name the code.
    for key in ("common_hash", "cell_hash"):
        if not all(isinstance(r.provenance.get(key), str) for r in section.records):
            raise UsageError(f"{label}: a record of the baseline does not say provenance.{key}")
    code = [_code(record) for record in section.records]
    if None in code:
        raise UsageError(
            f"{label}: a record of the baseline does not say what code made it: provenance must "
            "have commit, or flatbench_version and source_hash"
        )
    for name in (section.protocol, *section.architectures, *section.optimizers):
        if plain(name) != name:
            raise UsageError(f"{plain(name)}: a name in a baseline must be printable")
    for cell_key, cell in section.cells.items():
        if len(cell) < MINIMUM_SEEDS:
            raise UsageError(
                f"{label}/{'/'.join(cell_key)}: {len(cell)} seed(s) in the baseline; "
                f"at least {MINIMUM_SEEDS} are needed"
            )
    if measures is None:
        measures = (section.outcome.name, SAM_SHARPNESS)
    _check_measures(section, measures)
    return Thresholds(
        protocol=section.protocol,
        evaluation="validation" if section.evaluation == "validation" else "test",
        common_hash=section.records[0].provenance["common_hash"],
        level=level,
        pair_level=pair_level,
        seeds=section.seeds,
        grid_seeds=grid_seeds,
        commit=", ".join(dict.fromkeys(map(str, code))),
        cells={key: _cell(cell, level, measures) for key, cell in section.cells.items()},
        pairs=dict(_pairs(section, pair_level, grid_seeds)),
    )


def from_reference(protocol: Protocol) -> Thresholds:
    """Return thresholds from published results: each mean less three standard deviations.

    With n seeds, three standard deviations are the prediction bound of one new seed at the level
    F(3 / sqrt(1 + 1/n)), F Student's distribution function with n − 1 degrees of freedom. So few
    seeds allow no higher one: it is 0.94 for n = 3.

    Raises:
        UsageError: the protocol has no ``[reference]``, or one of a single seed.
    """
    reference = protocol.reference
    if reference is None or reference.seeds < 2:
        found = "no [reference]" if reference is None else f"reference.seeds = {reference.seeds}"
        raise UsageError(
            f"--reference: protocol {protocol.name} must have published results of at least "
            f"2 seeds, got {found}"
        )
    n = reference.seeds
    # Linear: a published mean and std are on no other scale.
    cells = {
        (architecture, row): CellThreshold(
            n,
            protocol.cell_hash(row, architecture),
            {TEST_ACCURACY: Bound("at_least", mean - REFERENCE_STDS * std, "linear", mean, std)},
        )
        for architecture, rows in reference.test_accuracy.items()
        for row, (mean, std) in rows.items()
    }
    return Thresholds(
        protocol=protocol.name,
        evaluation=protocol.data.evaluation,
        common_hash=protocol.common_hash(),
        level=float(stats.t.cdf(REFERENCE_STDS / math.sqrt(1 + 1 / n), n - 1)),
        pair_level=PAIR_LEVEL,
        seeds=(),
        grid_seeds=n,
        commit=reference.source,
        cells=cells,
        pairs={},
    )


def _check_measures(section: Section, measures: Sequence[str]) -> None:
    label = plain(section.protocol)
    for measure in measures:
        if is_standard_error(measure):
            raise UsageError(
                f"{label}: {plain(measure)!r} is a standard error, of which neither side is worse: "
                "what is bounded must be a measure"
            )
        if not any(measure in results_of(record) for record in section.records):
            raise UsageError(f"{label}: no record in the baseline measured {plain(measure)!r}")


def _code(record: Record) -> str | None:
    """Return what code made a record, or None where it does not say.

    That is the commit, with "+dirty" after one of a dirty tree. An installed package has no commit:
    the version and the hash of what trains stand in for it.
    """
    said = {key: plain(v) for key, v in record.provenance.items() if isinstance(v, str)}
    if "commit" in said:
        return "commit " + said["commit"][:12] + "+dirty" * bool(record.provenance.get("dirty"))
    if {"flatbench_version", "source_hash"} <= said.keys():
        return f"flatbench {said['flatbench_version']}, sources {said['source_hash']}"
    return None


def _cell(cell: Sequence[Record], level: float, measures: Sequence[str]) -> CellThreshold:
    """Return the bounds of a cell, and for each measure without one the first reason why."""
    bounds: dict[str, Bound] = {}
    unbounded: dict[str, str] = {}
    lost = sum(record.status != "completed" for record in cell)
    for measure in measures:
        values = [v for r in cell if (v := results_of(r).get(measure)) is not None]
        if lost:
            unbounded[measure] = f"{lost} of {len(cell)} seeds diverged or failed"
        elif len(values) < len(cell):
            unbounded[measure] = f"{len(cell) - len(values)} of {len(cell)} seeds have no value"
        elif len(set(without_rounding(values))) == 1:
            unbounded[measure] = f"all {len(cell)} seeds have the value {values[0]}"
        else:
            bounds[measure] = _bound(measure, values, level)
    return CellThreshold(len(cell), cell[0].provenance["cell_hash"], bounds, unbounded)


def _bound(measure: str, values: Sequence[float], level: float) -> Bound:
    scaling = scaling_of(measure, values)
    s = summary(scaling.points(values))
    mean, std = s.mean or 0.0, max(s.std or 0.0, scaling.least_std)
    limit = scaling.value(limit_point(scaling, mean, std, s.n, 1, level))
    side: Literal["at_least", "at_most"]
    side = "at_least" if quantity(measure).better == "higher" else "at_most"
    return Bound(side, limit, scaling.scale, mean, std, scaling.offset)


def _pairs(
    section: Section, level: float, grid_seeds: int
) -> Iterable[tuple[tuple[str, str], PairThreshold]]:
    for architecture in section.architectures:
        for row, base in section.base_of.items():
            # Differences take both signs, so they stay on the linear scale. Pairing by seed takes
            # out what a seed does to both rows alike.
            found = without_rounding([*section.gains(architecture, row, base).values()])
            if len(found) >= MINIMUM_SEEDS and min(found) < max(found):
                s = summary(found)
                limit = prediction_bound(found, level, "lower", grid_seeds)
                yield (
                    (architecture, row),
                    PairThreshold(base, s.n, s.mean or 0.0, s.std or 0.0, limit),
                )

"""What fails against thresholds: one line a failure."""

from __future__ import annotations

import math
from collections.abc import Iterable

from flatbench.gate.measured import paired_differences, records_by_cell
from flatbench.gate.scales import unscaled
from flatbench.gate.thresholds import Bound, Thresholds
from flatbench.gate.verdict import Outcome, Verdict
from flatbench.records.quantities import results_of
from flatbench.records.record import Record
from flatbench.records.sections import sections
from flatbench.text import plain


def check_case(record: Record, thresholds: Thresholds) -> list[str]:
    """Return what fails in one record, one line each; nothing where all is well.

    A run that diverged or failed fails. A cell without a baseline asserts no more than that; see
    `unbounded`.
    """
    changed = _protocol_changed(record, thresholds) or _row_changed(record, thresholds)
    if changed:
        return [changed]
    if record.status != "completed":
        return [f"{plain(record.id)}: {record.status}: {plain(record.reason or 'no reason given')}"]
    cell = thresholds.cells.get((record.architecture, record.optimizer))
    if cell is None:
        return []
    measured = results_of(record)
    failures = []
    for measure, bound in cell.bounds.items():
        value = measured.get(measure)
        if value is None:
            failures.append(
                f"{plain(record.id)}: {plain(measure)} was not measured; "
                f"baseline: {_basis(cell.n, thresholds)}"
            )
        elif not bound.keeps(value):
            side = "below" if bound.side == "at_least" else "above"
            kind = "lower" if bound.side == "at_least" else "upper"
            failures.append(
                f"{plain(record.id)}: {plain(measure)} {_shown(value)} is {side} "
                f"{_shown(bound.limit)}, the {kind} prediction bound of one new seed; "
                f"baseline: {_typical(bound)} over {_basis(cell.n, thresholds)}"
            )
    return failures


def check_pairs(records: Iterable[Record], thresholds: Thresholds) -> list[str]:
    """Return, one line each, the pairs whose mean difference is not positive but should be.

    A pair is asserted where the baseline predicts it positive and at least as many seeds of both
    rows completed as the prediction is for; a run that did not complete fails on its own.

    Raises:
        UsageError: records that cannot share a table; see `flatbench.records.sections`.
    """
    failures = []
    for section in sections(records):
        changed = _protocol_changed(section.records[0], thresholds)
        if changed:
            failures.append(changed)
            continue
        by_cell = records_by_cell(section)
        for (architecture, row), pair in thresholds.pairs.items():
            sam = by_cell.get((architecture, row), [])
            base = by_cell.get((architecture, pair.base), [])
            if any(_row_changed(record, thresholds) for record in (*sam, *base)):
                continue  # each of its cases fails for that
            differences = paired_differences(sam, base)
            if not pair.positive or len(differences) < thresholds.grid_seeds:
                continue
            mean = sum(differences) / len(differences)
            if mean <= 0:
                failures.append(
                    f"{plain(f'{section.protocol}/{architecture}: {row} − {pair.base}')}: "
                    f"mean paired difference in test_accuracy {mean:+.2f} over "
                    f"{len(differences)} seeds is not above 0; baseline: {pair.mean:+.2f} ± "
                    f"{pair.std:.2f}, bound {pair.limit:+.2f}, over "
                    f"{_basis(pair.n, thresholds, thresholds.pair_level)}"
                )
    return failures


def judge(records: Iterable[Record], thresholds: Thresholds) -> Verdict:
    """Check a whole grid: every case, every pair, and what there is no baseline for.

    Raises:
        UsageError: records that cannot share a table; see `flatbench.records.sections`.
    """
    listed = list(records)
    cases = [(record, "; ".join(check_case(record, thresholds))) for record in listed]
    outcomes = [
        Outcome(plain(r.id), not failed, failed or f"{plain(r.id)}: keeps its bounds")
        for r, failed in cases
    ]
    pairs = check_pairs(listed, thresholds)
    outcomes += [Outcome(line.partition(": mean")[0], False, line) for line in pairs]
    return Verdict(
        f"Thresholds of {thresholds.protocol}",
        tuple(outcomes),
        tuple(unbounded(listed, thresholds)),
        thresholds.false_alarm_rate,
    )


def unbounded(records: Iterable[Record], thresholds: Thresholds) -> list[str]:
    """Return, one line each, the cells or measures of these records that nothing is asserted of."""
    lines = []
    for architecture, row in dict.fromkeys((r.architecture, r.optimizer) for r in records):
        where = plain(f"{thresholds.protocol}/{architecture}/{row}")
        cell = thresholds.cells.get((architecture, row))
        if cell is None:
            lines.append(f"{where}: no baseline")
            continue
        lines += [f"{where}: no baseline for {m}: {why}" for m, why in cell.unbounded.items()]
    return lines


def _protocol_changed(record: Record, thresholds: Thresholds) -> str | None:
    """Return why the thresholds do not speak of a record's protocol, if they do not."""
    where = plain(record.id)
    if record.protocol != thresholds.protocol:
        return f"{where}: the thresholds are of protocol {plain(thresholds.protocol)}"
    if record.evaluation != thresholds.evaluation:
        return (
            f"{where}: measured on the {record.evaluation} part, "
            f"the baseline on the {thresholds.evaluation} part"
        )
    found = record.provenance.get("common_hash")
    if found == thresholds.common_hash or (found is None and record.status == "failed"):
        return None
    return (
        f"{where}: the protocol changed since the baseline (content {plain(str(found))}, "
        f"baseline {plain(thresholds.common_hash)}); renew it: {thresholds.renewal}"
    )


def _row_changed(record: Record, thresholds: Thresholds) -> str | None:
    """Return why the thresholds do not speak of a record's cell, if they do not."""
    cell = thresholds.cells.get((record.architecture, record.optimizer))
    found = record.provenance.get("cell_hash")
    if cell is None or found == cell.cell_hash or (found is None and record.status == "failed"):
        return None
    return (
        f"{plain(record.id)}: the row's settings changed since the baseline (content "
        f"{plain(str(found))}, baseline {plain(cell.cell_hash)}); renew it: {thresholds.renewal}"
    )


def _typical(bound: Bound) -> str:
    middle = _shown(unscaled(bound.mean, bound.scale))
    if bound.scale == "linear":
        return f"{middle} ± {_shown(bound.std)}"
    return (
        f"{middle}{' with the error' * (bound.scale == 'log-error')} ×/÷ {math.exp(bound.std):.3g}"
    )


def _basis(n: int, thresholds: Thresholds, level: float | None = None) -> str:
    level = thresholds.level if level is None else level
    source = f"commit {thresholds.commit}" if thresholds.seeds else thresholds.commit
    return f"{n} seeds, level {level:g}, {plain(source)}"


def _shown(value: float) -> str:
    return f"{value:.4g}"

"""Checks of cases and pairs against thresholds; each check is one outcome with one line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from flatbench.gate.scales import unscaled
from flatbench.gate.thresholds import Bound, PairThreshold, Thresholds
from flatbench.gate.verdict import Outcome, Verdict
from flatbench.records.quantities import results_of
from flatbench.records.record import Record
from flatbench.records.sections import sections
from flatbench.text import plain


def check_case(record: Record, thresholds: Thresholds) -> Outcome:
    """Check one record against its cell's bounds; the line says everything that fails.

    A run that diverged or failed fails the check. A cell without bounds asserts no more than that
    its run completes; see `unbounded`.
    """
    where = plain(record.id)
    failures = list(_case_failures(record, thresholds))
    if failures:
        return Outcome(where, False, "; ".join(failures))
    cell = thresholds.cells.get((record.architecture, record.optimizer))
    kept = "keeps its bounds" if cell is not None and cell.bounds else "completed; has no bounds"
    return Outcome(where, True, f"{where}: {kept}")


def _case_failures(record: Record, thresholds: Thresholds) -> Iterable[str]:
    # Bounds of other settings say nothing about this run, so the change is its only failure.
    changed = _protocol_changed(record, thresholds) or _row_changed(record, thresholds)
    if changed:
        yield changed
        return
    where = plain(record.id)
    if record.status != "completed":
        yield f"{where}: {record.status}: {plain(record.reason or 'no reason given')}"
        return
    cell = thresholds.cells.get((record.architecture, record.optimizer))
    if cell is None:
        return
    measured = results_of(record)
    for measure, bound in cell.bounds.items():
        value = measured.get(measure)
        if value is None:
            yield (
                f"{where}: {plain(measure)} was not measured; "
                f"baseline: {_basis(cell.n, thresholds)}"
            )
        elif not bound.keeps(value):
            side = "below" if bound.side == "at_least" else "above"
            kind = "lower" if bound.side == "at_least" else "upper"
            yield (
                f"{where}: {plain(measure)} {_shown(value)} is {side} "
                f"{_shown(bound.limit)}, the {kind} prediction bound of one new seed; "
                f"baseline: {_typical(bound)} over {_basis(cell.n, thresholds)}"
            )


def check_pairs(records: Iterable[Record], thresholds: Thresholds) -> list[Outcome]:
    """Check that the mean difference of each asserted pair is above 0.

    A pair is asserted where its baseline's limit is above 0 and both rows completed at least
    ``grid_seeds`` seeds in common, the number that the limit is for. A run that did not complete
    fails by itself, in `check_case`. Where the protocol changed since the baseline, one outcome
    says so for all its pairs.

    Raises:
        UsageError: records that cannot share a table; see `flatbench.records.sections`.
    """
    outcomes = []
    for section in sections(records):
        changed = _protocol_changed(section.records[0], thresholds)
        if changed:
            outcomes.append(Outcome(plain(section.protocol), False, changed))
            continue
        for (architecture, row), pair in thresholds.pairs.items():
            both = (*section.cell(architecture, row), *section.cell(architecture, pair.base))
            if any(_row_changed(record, thresholds) for record in both):
                continue  # each of its cases fails for that
            found = section.gains(architecture, row, pair.base)
            # Over fewer seeds the mean spreads more than the limit allows for.
            if pair.positive and len(found) >= thresholds.grid_seeds:
                name = plain(f"{section.protocol}/{architecture}: {row} − {pair.base}")
                gain = [*found.values()]
                outcome = section.outcome
                what = "difference" if outcome.better == "higher" else "improvement"
                of = f"{what} in {outcome.name}"
                form = ".2f" if outcome.unit == "%" else ".4g"
                outcomes.append(_pair_outcome(name, of, form, gain, pair, thresholds))
    return outcomes


def _pair_outcome(
    name: str,
    of: str,
    form: str,
    found: Sequence[float],
    pair: PairThreshold,
    thresholds: Thresholds,
) -> Outcome:
    mean = sum(found) / len(found)
    passed = mean > 0  # the sign alone is asserted; the limit says how sure the baseline is of it
    line = (
        f"{name}: mean paired {of} {mean:+{form}} over "
        f"{len(found)} seeds is {'' if passed else 'not '}above 0; baseline: "
        f"{pair.mean:+{form}} ± {pair.std:{form}}, bound {pair.limit:+{form}}, over "
        f"{_basis(pair.n, thresholds, thresholds.pair_level)}"
    )
    return Outcome(name, passed, line)


def judge(records: Iterable[Record], thresholds: Thresholds) -> Verdict:
    """Check a whole grid: every case, every pair, and what there is no baseline for.

    Raises:
        UsageError: records that cannot share a table; see `flatbench.records.sections`.
    """
    listed = list(records)
    cases = [check_case(record, thresholds) for record in listed]
    return Verdict(
        f"Thresholds of {thresholds.protocol}",
        (*cases, *check_pairs(listed, thresholds)),
        tuple(unbounded(listed, thresholds)),
        thresholds.false_alarm_rate,
    )


def unbounded(records: Iterable[Record], thresholds: Thresholds) -> list[str]:
    """Return one line for each cell or measure of these records that has no bound."""
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
    """Return why the thresholds do not apply to a record's protocol, or None if they do."""
    where = plain(record.id)
    if record.protocol != thresholds.protocol:
        return f"{where}: the thresholds are of protocol {plain(thresholds.protocol)}"
    if record.evaluation != thresholds.evaluation:
        return (
            f"{where}: measured on the {record.evaluation} part, "
            f"the baseline on the {thresholds.evaluation} part"
        )
    found = record.provenance.get("common_hash")
    # A worker that died may not have told its hash; its record fails for the status.
    if found == thresholds.common_hash or (found is None and record.status == "failed"):
        return None
    return (
        f"{where}: the protocol changed since the baseline (content {plain(str(found))}, "
        f"baseline {plain(thresholds.common_hash)}); renew it: {thresholds.renewal}"
    )


def _row_changed(record: Record, thresholds: Thresholds) -> str | None:
    """Return why the thresholds do not apply to a record's cell, or None if they do."""
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
    return f"{n} seeds, level {level:g}, {plain(thresholds.code)}"


def _shown(value: float) -> str:
    return f"{value:.4g}"

"""Checks of cases and pairs against thresholds; each check is one outcome with one line."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from scipy.stats import norm

from flatbench.gate.limits import FOUND, Limit, chance, kept, power, row_of, shown
from flatbench.gate.scales import Scaling
from flatbench.gate.thresholds import Bound, PairThreshold, Thresholds
from flatbench.gate.verdict import Outcome, Row, Verdict
from flatbench.records.quantities import results_of
from flatbench.records.record import Record
from flatbench.records.sections import sections
from flatbench.stats import EQUAL
from flatbench.text import plain


def check_case(record: Record, thresholds: Thresholds) -> Outcome:
    """Check one record against its cell's bounds; the line says everything that fails.

    A run that diverged or failed fails the check. A cell without bounds asserts no more than that
    its run completes. What checks nothing is counted once for a cell, by `check_cells`.
    """
    where = plain(record.id)
    # Bounds of other settings say nothing about this run, so the change is its only failure.
    failure = _protocol_changed(record, thresholds) or _row_changed(record, thresholds)
    if failure is None and record.status != "completed":
        failure = f"{where}: {record.status}: {plain(record.reason or 'no reason given')}"
    if failure is not None:
        return Outcome(where, "failed", failure)
    cell = thresholds.cells.get((record.architecture, record.optimizer))
    if cell is None or not cell.bounds:
        return Outcome(where, "passed", f"{where}: completed; has no bounds")
    measured = results_of(record)
    failures, numbers = [], []
    guessed = chance(thresholds.protocol, thresholds.common_hash)
    for measure, bound in cell.bounds.items():
        limit = _limit(measure, bound, cell.n, 1, thresholds.level, guessed)
        value = measured.get(measure)
        if value is None:
            failures.append(
                f"{where}: {plain(measure)} was not measured; "
                f"baseline: {_basis(cell.n, thresholds)}"
            )
        elif limit.keeps([value]):
            row = row_of(where, limit, [value])
            numbers.append(
                f"{plain(measure)} {row.now} is {row.limit}, baseline {row.baseline}, "
                f"{f'finds {row.finds}' if limit.blind is None else limit.blind}"
            )
        else:
            failures.append(_worse(f"{where}: {plain(measure)}", value, limit, bound, thresholds))
    if failures:
        return Outcome(where, "failed", "; ".join(failures))
    return Outcome(where, "passed", f"{where}: {'; '.join(numbers)}")


def _worse(where: str, value: float, limit: Limit, bound: Bound, thresholds: Thresholds) -> str:
    """Return what is said of a value, or of a cell's mean, that is beyond its limit."""
    of = "one new seed" if limit.new == 1 else f"the mean of {limit.new} new seeds"
    kind = "lower" if bound.side == "at_least" else "upper"
    over = "" if limit.new == 1 else f" over {limit.new} seeds"
    if limit.by_collapse:
        what = f"no more than {shown(limit.value or 0.0)}, half of the baseline's accuracy"
    else:
        side = "below" if bound.side == "at_least" else "above"
        what = f"{side} {shown(limit.value or 0.0)}, the {kind} prediction bound of {of}"
    return (
        f"{where} {shown(value)}{over} is {what}; baseline: {_typical(bound)} over "
        f"{_basis(limit.n, thresholds)}; {power(limit.finds)}"
    )


def check_cells(records: Iterable[Record], thresholds: Thresholds) -> list[Outcome]:
    """Check each cell's mean over its seeds, which finds smaller drops than any seed by itself.

    A cell or a measure without a bound, and a bound so wide that it checks nothing, can't be
    checked, and an outcome says so. Records of other settings have failed in `check_case`.

    Raises:
        UsageError: records that cannot share a table; see `flatbench.records.sections`.
    """
    outcomes: list[Outcome] = []
    guessed = chance(thresholds.protocol, thresholds.common_hash)
    for section in sections(records):
        if _protocol_changed(section.records[0], thresholds):
            continue
        for key, runs in section.cells.items():
            where = plain(f"{section.protocol}/{'/'.join(key)}")
            cell = thresholds.cells.get(key)
            if cell is None:
                outcomes.append(Outcome(where, "can't check", f"{where}: no baseline"))
                continue
            if any(_row_changed(run, thresholds) for run in runs):
                continue
            outcomes += [
                Outcome(
                    f"{where}: {plain(m)}",
                    "can't check",
                    f"{where}: no baseline for {plain(m)}: {plain(why)}",
                )
                for m, why in cell.unbounded.items()
            ]
            for measure, bound in cell.bounds.items():
                found = [v for r in runs if (v := results_of(r).get(measure)) is not None]
                if found:
                    limit = _limit(measure, bound, cell.n, len(found), thresholds.level, guessed)
                    outcomes.append(_cell(f"{where}: {measure}", found, limit, bound, thresholds))
    return outcomes


def _cell(
    where: str, found: Sequence[float], limit: Limit, bound: Bound, thresholds: Thresholds
) -> Outcome:
    row = row_of(where, limit, found)
    if not limit.keeps(found):
        mean = limit.scaling.value(limit.mean_of(found))
        return Outcome(
            where, "failed", _worse(plain(where), mean, limit, bound, thresholds), (row,)
        )
    return kept(where, row, limit)


def _limit(
    measure: str, bound: Bound, n: int, new: int, level: float, guessed: float | None
) -> Limit:
    """Return the limit of the mean of ``new`` seeds by a bound of one new seed."""
    scaling = Scaling(measure, bound.scale, bound.offset)
    given = bound.limit if new == 1 else None
    limit = Limit(scaling, bound.mean, bound.std, n, new, level, given=given, chance=guessed)
    if limit.collapse is None:
        return limit
    # Each of n values lies within (n − 1) / sqrt(n) std of their mean (Samuelson's inequality):
    # beyond it, no seed of the baseline has collapsed.
    (collapsed,) = scaling.points([limit.collapse])
    reach = bound.std * (n - 1) / math.sqrt(n)
    near = scaling.worse * (collapsed - bound.mean) <= reach
    return dataclasses.replace(limit, may_collapse=near)


def check_pairs(records: Iterable[Record], thresholds: Thresholds) -> list[Outcome]:
    """Check that the mean difference of each asserted pair is above 0.

    A pair is asserted where its baseline's limit is above 0. It can't be checked, and an outcome
    says so, where the rows completed fewer than ``grid_seeds`` seeds in common, the number that the
    limit is for. A run that did not complete fails by itself, in `check_case`. Where the protocol
    changed since the baseline, one outcome says so for all its pairs.

    Raises:
        UsageError: records that cannot share a table; see `flatbench.records.sections`.
    """
    outcomes = []
    for section in sections(records):
        changed = _protocol_changed(section.records[0], thresholds)
        if changed:
            outcomes.append(Outcome(plain(section.protocol), "failed", changed))
            continue
        for (architecture, row), pair in thresholds.pairs.items():
            both = (*section.cell(architecture, row), *section.cell(architecture, pair.base))
            if any(_row_changed(record, thresholds) for record in both):
                continue  # each of its cases fails for that
            if not pair.positive or not all(
                section.cell(architecture, name) for name in (row, pair.base)
            ):
                continue
            found = section.gains(architecture, row, pair.base)
            name = plain(f"{section.protocol}/{architecture}: {row} − {pair.base}")
            # Over fewer seeds the mean spreads more than the limit allows for.
            if len(found) < thresholds.grid_seeds:
                line = (
                    f"{name}: a gain is asserted over {thresholds.grid_seeds} seeds, "
                    f"of which both completed {len(found)}"
                )
                outcomes.append(Outcome(name, "can't check", line))
            else:
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
    # The sign alone is asserted; the limit says how sure the baseline is of it. What rounding
    # leaves of gains and losses that cancel is no gain.
    passed = mean > EQUAL * max(map(abs, found))
    # A gain of this many std of the mean below 0 comes out below 0 at the rate of FOUND.
    drop = pair.mean + float(norm.ppf(FOUND)) * pair.std / math.sqrt(len(found))
    finds = f"a drop of {drop:{form}}{' points' * (form == '.2f')}"
    line = (
        f"{name}: mean paired {of} {mean:+{form}} over "
        f"{len(found)} seeds is {'' if passed else 'not '}above 0; baseline: "
        f"{pair.mean:+{form}} ± {pair.std:{form}}, bound {pair.limit:+{form}}, over "
        f"{_basis(pair.n, thresholds, thresholds.pair_level)}; {power(finds)}"
    )
    rows = (Row(name, f"{pair.mean:+{form}}", f"{mean:+{form}}", "above 0", finds),)
    return Outcome(name, "passed" if passed else "failed", line, rows)


def judge(records: Iterable[Record], thresholds: Thresholds) -> Verdict:
    """Check a whole grid: every case, every cell's means, every pair.

    Raises:
        UsageError: records that cannot share a table; see `flatbench.records.sections`.
    """
    listed = list(records)
    cases = [check_case(record, thresholds) for record in listed]
    return Verdict(
        f"Thresholds of {thresholds.protocol}",
        (*cases, *check_cells(listed, thresholds), *check_pairs(listed, thresholds)),
        tuple(
            f"{plain('/'.join((thresholds.protocol, *key)))}: has thresholds, but was not run"
            for key in thresholds.cells
            if key not in {(r.architecture, r.optimizer) for r in listed}
        ),
        thresholds.false_alarm_rate,
    )


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
    # the measure matters on no scale but the linear one, where the value is the point
    middle = shown(
        bound.mean
        if bound.scale == "linear"
        else Scaling("", bound.scale, bound.offset).value(bound.mean)
    )
    if bound.scale == "linear":
        return f"{middle} ± {shown(bound.std)}"
    return (
        f"{middle}{' with the error' * (bound.scale == 'log-error')} ×/÷ {math.exp(bound.std):.3g}"
    )


def _basis(n: int, thresholds: Thresholds, level: float | None = None) -> str:
    level = thresholds.level if level is None else level
    return f"{n} seeds, level {level:g}, {plain(thresholds.code)}"

"""The grid: each case trains in a worker, and its record must keep to the thresholds.

    pytest benchmarks [--protocol NAME] [--architectures …] [--optimizers …] [--seeds …]
                      [--gate BASELINE]

The time that pytest-benchmark shows for a case is the training time that its worker measured, not
the time that the test waited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from flatbench import gate
from flatbench.errors import UsageError
from flatbench.gate import compare, verdict
from flatbench.protocols.cases import Case
from flatbench.records.record import Record


class TrainingClock:
    """A timer that goes on by what is added to it; what pytest-benchmark's marker takes."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


clock = TrainingClock()


@pytest.mark.benchmark(group="generalization", timer=clock)
def test_generalization(
    benchmark: BenchmarkFixture,
    grid_case: Case,
    record_of: Callable[[Case], Record],
    thresholds: gate.Thresholds | None,
) -> None:
    def train() -> Record:
        record = record_of(grid_case)
        clock.now += record.seconds or 0.0
        return record

    record: Record = benchmark.pedantic(train, rounds=1)  # type: ignore[no-untyped-call]
    benchmark.extra_info["record"] = record.to_json()
    if record.status != "completed":
        pytest.fail(f"{record.id}: {record.reason}", pytrace=False)
    if thresholds is not None:
        _fail_with([gate.check_case(record, thresholds)])


def test_sam_against_base(
    sam_pair: tuple[str, str],
    finished_records: list[Record],
    thresholds: gate.Thresholds | None,
) -> None:
    """The mean difference SAM − base over the seeds is positive where the baseline says so."""
    if thresholds is None:
        pytest.skip("no thresholds: no baseline says what to expect")
    architecture, row = sam_pair
    here = [r for r in finished_records if r.architecture == architecture]
    base = next((r.base_row for r in here if r.optimizer == row), None)
    pair = [r for r in here if r.optimizer in (row, base)]
    seeds = [{r.seed for r in pair if r.optimizer == name} for name in (row, base)]
    if not seeds[0] & seeds[1]:
        pytest.skip(f"no seed of both {row} and its base was selected")
    outcomes = gate.check_pairs(pair, thresholds)
    if not outcomes:
        pytest.skip(
            f"nothing is asserted of {row} − {base}: the baseline doesn't say that it is positive, "
            f"or fewer than {thresholds.grid_seeds} seeds of both completed"
        )
    _fail_with(outcomes)


def test_gate(gate_baseline: compare.Baseline, finished_records: list[Record]) -> None:
    """Nothing has become worse than in the baseline that --gate names."""
    try:
        found = compare.against(gate_baseline, finished_records)
    except UsageError as error:
        pytest.fail(str(error), pytrace=False)
    verdict.add_to_step_summary(verdict.markdown(found))
    _fail_with(found.outcomes)


def _fail_with(outcomes: Iterable[verdict.Outcome]) -> None:
    lines = [outcome.line for outcome in outcomes if not outcome.passed]
    if lines:
        pytest.fail("\n".join(lines), pytrace=False)

"""The grid as tests: each case trains in a worker, and its record must keep to the thresholds.

A file of one's own collects them by one line::

    from flatbench.pytest_grid import *

The time that pytest-benchmark shows for a case is the training time that its worker measured, not
the time that the test waited.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from flatbench.errors import UsageError

if TYPE_CHECKING:
    from flatbench.gate import Thresholds
    from flatbench.gate.compare import Baseline
    from flatbench.protocols.cases import Case
    from flatbench.records.record import Record

__all__ = ["test_against", "test_cell", "test_gate", "test_generalization"]


class TrainingClock:
    """A timer that goes on by what is added to it; what pytest-benchmark's marker takes."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the seconds added so far."""
        return self.now


clock = TrainingClock()
NO_THRESHOLDS = "no thresholds: no baseline says what to expect"


@pytest.mark.benchmark(group="generalization", timer=clock)
def test_generalization(
    benchmark: BenchmarkFixture,
    flatbench_case: Case,
    flatbench_record_of: Callable[[Case], Record],
    flatbench_thresholds: Thresholds | None,
    flatbench_hold: Callable[..., None],
) -> None:
    """A case trains to its end, within the bounds of its cell."""

    # Waited for out here: an interrupt would leave a benchmark without a round, over which
    # pytest-benchmark's statistics fall, and nothing would be saved.
    record = flatbench_record_of(flatbench_case)
    benchmark.extra_info["record"] = record.to_json()
    # Of the case itself pytest-benchmark would save its repr, which has this machine's paths.
    benchmark.params = {"flatbench_case": flatbench_case.id}

    def train() -> None:
        clock.now += record.seconds or 0.0

    benchmark.pedantic(train, rounds=1)  # type: ignore[no-untyped-call]
    if flatbench_thresholds is not None:
        from flatbench import gate

        flatbench_hold([gate.check_case(record, flatbench_thresholds)])
    elif record.status != "completed":
        pytest.fail(f"{record.id}: {record.reason}", pytrace=False)


def test_cell(
    flatbench_cell: tuple[str, str],
    flatbench_records: list[Record],
    flatbench_thresholds: Thresholds | None,
    flatbench_hold: Callable[..., None],
) -> None:
    """The mean over a cell's seeds is no worse than the baseline's, on every measure held."""
    from flatbench import gate

    if flatbench_thresholds is None:
        pytest.skip(NO_THRESHOLDS)
    runs = [r for r in flatbench_records if (r.architecture, r.optimizer) == flatbench_cell]
    if not any(run.status == "completed" for run in runs):
        pytest.skip("no seed of this cell completed")
    flatbench_hold(gate.check_cells(runs, flatbench_thresholds))


def test_against(
    flatbench_compared: tuple[str, str],
    flatbench_records: list[Record],
    flatbench_thresholds: Thresholds | None,
    flatbench_hold: Callable[..., None],
) -> None:
    """A row's mean gain over the row it is compared with is positive where the baseline's is."""
    from flatbench import gate

    thresholds = flatbench_thresholds
    if thresholds is None:
        pytest.skip(NO_THRESHOLDS)
    architecture, row = flatbench_compared
    here = [r for r in flatbench_records if r.architecture == architecture]
    base = next((r.base_row for r in here if r.optimizer == row), None)
    pair = [r for r in here if r.optimizer in (row, base)]
    seeds = [{r.seed for r in pair if r.optimizer == name} for name in (row, base)]
    if not seeds[0] & seeds[1]:
        pytest.skip(f"no seed of both {row} and {base} was selected")
    outcomes = gate.check_pairs(pair, thresholds)
    if not outcomes:
        pytest.skip(
            f"nothing is asserted of {row} − {base}: the baseline doesn't say that it is positive"
        )
    flatbench_hold(outcomes)
    if all(outcome.result == "can't check" for outcome in outcomes):
        pytest.skip("; ".join(f"can't check: {outcome.line}" for outcome in outcomes))


def test_gate(
    flatbench_baseline: Baseline,
    flatbench_records: list[Record],
    flatbench_hold: Callable[..., None],
) -> None:
    """Nothing has become worse than in the baseline that --flatbench-gate names."""
    from flatbench.gate import compare, verdict

    try:
        found = compare.against(flatbench_baseline, flatbench_records)
    except UsageError as error:
        pytest.fail(str(error), pytrace=False)
    verdict.add_to_step_summary(found)
    flatbench_hold(found.outcomes, found.notes)

import dataclasses

import numpy as np
import pytest

from docs import rates
from flatbench import gate
from flatbench.errors import UsageError
from flatbench.files import write_json
from flatbench.gate import compare as module
from flatbench.gate.compare import against, compare, fits, read_baseline
from tests import tiny
from tests.synthetic import MEANS, grid, record

BASELINE = grid(range(10))


def names(outcomes):
    return {outcome.name for outcome in outcomes}


def test_every_cell_and_measure_is_compared_once():
    verdict = compare(BASELINE, grid(range(3), generator=3))
    assert verdict.exit_code == 0
    assert names(verdict.outcomes) == {
        f"digits/{a}/{o}: {m}"
        for a in ("resnet18", "vgg16")
        for o in MEANS
        for m in ("test_accuracy", "sam_sharpness")
    }
    assert verdict.false_alarm_rate == module.ALARM


def test_a_drop_fails_its_cell_alone_and_says_by_how_much():
    dropped = grid(range(3), generator=3, means=MEANS | {"adam": 60.0})
    verdict = compare(BASELINE, dropped)
    lines = [o.line for o in verdict.failures if "accuracy" in o.name]
    assert [line.partition(":")[0] for line in lines] == [
        "digits/resnet18/adam",
        "digits/vgg16/adam",
    ]
    assert verdict.exit_code == 1
    mean = 100 - np.exp(
        np.mean(
            [
                np.log(100 - r.test_accuracy)
                for r in dropped
                if (r.architecture, r.optimizer) == ("vgg16", "adam")
            ]
        )
    )
    assert f"test_accuracy {mean:.4g} over 3 seed(s) is below" in lines[1]
    assert "over 10 seeds; level 0.996875" in lines[1]


def test_better_is_never_a_regression():
    better = grid(range(3), means={name: mean + 6 for name, mean in MEANS.items()})
    better = [dataclasses.replace(r, sam_sharpness=r.sam_sharpness / 3) for r in better]
    assert compare(BASELINE, better).failures == ()


def test_full_path_decides_as_the_simulated_one():
    """On 40 grids, worse ones among them, `compare` fails what `rates` counts as an alarm."""
    decided = []
    for number in range(40):
        random = np.random.default_rng(number)
        errors, new_errors = (
            np.exp(random.normal(2 + shift, 0.3, (rates.CELLS, n)))
            for n, shift in ((10, 0.0), (3, 0.25))
        )
        records = [
            [
                record(f"o{cell}", seed=seed, test_accuracy=100 - e, sam_sharpness=None)
                for cell, row in enumerate(table)
                for seed, e in enumerate(row)
            ]
            for table in (errors, new_errors)
        ]
        verdict = compare(*records, alarm=0.05)
        values = -np.log(errors), -np.log(new_errors)
        limit = rates.prediction_limit(
            values[0].mean(-1), values[0].std(-1, ddof=1), 10, 1 - 0.05 / 8, "lower", 3
        )
        failed = {
            f"digits/resnet18/o{i}: test_accuracy"
            for i in range(8)
            if values[1][i].mean() < limit[i]
        }
        assert names(verdict.failures) == failed
        decided.append(bool(failed))
    assert set(decided) == {True, False}


@pytest.mark.parametrize(("n", "new"), [(3, 1), (10, 3), (20, 5)])
def test_alarms_of_ten_thousand_grids_keep_the_stated_rate(n, new):
    rate = rates.comparison_alarms(rates._normal, n, new)
    error = np.sqrt(0.05 * 0.95 / rates.GRIDS)
    assert rates.GRIDS >= 10_000
    assert rate <= module.ALARM + 3 * error
    assert rate >= 0.6 * module.ALARM  # Bonferroni is nearly exact for independent limits


def test_alarms_of_thresholds_keep_their_rate_too():
    rate = rates.threshold_alarms(rates._normal, 10, 3)
    assert 0.03 <= rate <= 0.048 + 3 * np.sqrt(0.048 * 0.952 / rates.GRIDS)


def test_skew_that_is_left_in_breaks_the_rate():
    """Why errors are compared by their logarithms."""
    assert rates.comparison_alarms(rates._lognormal, 10, 3) > 2 * module.ALARM


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_a_run_that_is_lost_now_is_a_regression_unless_the_baseline_lost_some(status):
    lost = record("adam", "vgg16", 2, status=status, reason="bang")
    current = [r for r in grid(generator=3) if r.id != lost.id]
    verdict = compare(BASELINE, [*current, lost])
    assert [o.line for o in verdict.failures] == [f"{lost.id}: {status}: bang"]
    before = record("adam", "vgg16", 77, status="diverged")
    verdict = compare([*BASELINE, before], [*current, lost])
    assert verdict.failures == ()
    assert f"{lost.id}: {status}: bang (as 1 of the baseline's seeds)" in verdict.notes


def timed(records, seconds, calibration=0.01, memory=1e9, **provenance):
    random = np.random.default_rng(len(records))
    return [
        dataclasses.replace(
            r,
            seconds=seconds * float(np.exp(random.normal(0, 0.02))),
            calibration_seconds=calibration,
            peak_memory=memory,
            provenance=r.provenance | provenance,
        )
        for r in records
    ]


def test_speed_is_a_ratio_to_the_calibration():
    baseline = timed(BASELINE, 10.0)
    current = grid(generator=3)
    slow_machine = timed(current, 30.0, calibration=0.03)
    assert compare(baseline, slow_machine).failures == ()
    slow_code = timed(current, 12.5)
    failed = compare(baseline, slow_code).failures
    assert names(failed) == {
        f"digits/{a}/{o}: relative_time" for a in ("resnet18", "vgg16") for o in MEANS
    }
    assert "margin 10 %" in failed[0].line
    assert compare(baseline, timed(current, 10.7)).failures == ()  # within the margin
    elsewhere = timed(current, 12.5, device="another processor")
    assert compare(baseline, elsewhere).failures == ()
    assert compare(baseline, timed(current, 25.0, device="another processor")).failures != ()


def test_memory_has_a_margin_where_it_has_no_spread():
    baseline = timed(BASELINE, 10.0)
    assert compare(baseline, timed(grid(generator=3), 10.0, memory=1.04e9)).failures == ()
    failed = compare(baseline, timed(grid(generator=3), 10.0, memory=1.1e9)).failures
    assert len(failed) == 8
    assert all("peak_memory 1.1e+09" in o.line for o in failed)
    gpu = timed(grid(generator=3), 10.0, memory=1.1e9, device_kind="cuda")
    verdict = compare(baseline, gpu)
    assert verdict.failures == ()
    assert "digits/vgg16/sgd: peak_memory not compared: another kind of device" in verdict.notes


def test_every_recorded_sharpness_is_compared_and_no_standard_error():
    def with_trace(records, factor):
        return [
            dataclasses.replace(
                r, sharpness={"trace": factor * r.sam_sharpness, "trace_standard_error": factor}
            )
            for r in records
        ]

    verdict = compare(with_trace(BASELINE, 10), with_trace(grid(generator=3), 30))
    assert names(verdict.failures) == {
        f"digits/{a}/{o}: trace" for a in ("resnet18", "vgg16") for o in MEANS
    }


def test_what_is_not_compared_is_said():
    baseline = [
        *(record("sgd", seed=s, test_accuracy=90.0, sam_sharpness=0.1 + s) for s in range(10)),
        record("adam", test_accuracy=80.0),
        record("gone"),
    ]
    current = [record("sgd", sam_sharpness=None), record("adam"), record("new")]
    with pytest.raises(UsageError, match="nothing to compare"):
        compare(baseline, current)
    verdict = compare(baseline, [*current, record("sgd", seed=1, sam_sharpness=0.2)])
    assert set(verdict.notes) == {
        "digits/resnet18/sgd: test_accuracy not compared: "
        "all 10 seeds of the baseline have the value 90",
        "digits/resnet18/adam: test_accuracy not compared: "
        "one seed in the baseline says nothing about the spread",
        "digits/resnet18/adam: sam_sharpness not compared: "
        "one seed in the baseline says nothing about the spread",
        "digits/resnet18/new: no baseline",
        "digits/resnet18/gone: only in the baseline",
    }


def test_a_perfect_accuracy_has_no_logarithm_and_is_compared_as_it_is():
    baseline = [record(seed=s, test_accuracy=100.0 - s / 10, sam_sharpness=None) for s in range(10)]
    assert compare(baseline, [record(test_accuracy=100.0, sam_sharpness=None)]).exit_code == 0
    assert compare(baseline, [record(test_accuracy=97.0, sam_sharpness=None)]).exit_code == 1


@pytest.mark.parametrize(
    ("current", "says"),
    [
        (grid(provenance={"common_hash": "new"}), "digits: common_hash is 0123456789ab in the"),
        ([record(provenance={"cell_hash": "new"})], "digits/resnet18/sgd: cell_hash is"),
        (
            grid(evaluation="validation"),
            "digits: evaluation is test in the baseline and validation",
        ),
        (grid(protocol="mine"), r"nothing to compare \(mine: not in the baseline\)"),
        ([], "nothing to compare"),
    ],
)
def test_what_cannot_be_compared_is_refused(current, says):
    with pytest.raises(UsageError, match=says) as error:
        compare(BASELINE, current)
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="alarm must be a number between 0 and 1, got 0"):
        compare(BASELINE, BASELINE, alarm=0.0)


def test_provenance_of_a_failed_run_may_be_missing():
    bare = record("sgd", seed=2, status="failed")
    bare = dataclasses.replace(bare, provenance={})
    verdict = compare(BASELINE, [*grid(seeds=[0, 1], generator=3), bare])
    assert names(verdict.failures) == {"digits/resnet18/sgd/seed2"}


def test_a_baseline_is_a_file_of_thresholds_or_of_records(tmp_path):
    current = grid(range(3), generator=3)
    thresholds = tmp_path / "digits.toml"
    gate.write_thresholds(thresholds, gate.derive(BASELINE))
    assert against(read_baseline(thresholds), current) == gate.judge(current, gate.derive(BASELINE))
    records = tmp_path / "baseline.json"
    benchmarks = [{"extra_info": {"record": r.to_json()}} for r in BASELINE]
    write_json(records, {"benchmarks": benchmarks})
    assert against(read_baseline(records), current) == compare(BASELINE, current)
    with pytest.raises(UsageError, match="no such file"):
        read_baseline(tmp_path / "none.json")


def test_a_baseline_fits_the_protocol_it_was_made_with(tmp_path):
    protocol = tiny.protocol(tmp_path)
    of_it = {"protocol": "tiny", "provenance": {"common_hash": protocol.common_hash()}}
    assert fits([record(**of_it)], protocol)
    assert not fits([record(protocol="tiny")], protocol)
    assert not fits([record(provenance=of_it["provenance"])], protocol)
    made = gate.derive(grid(range(10), **of_it))
    assert fits(made, protocol)
    assert not fits(dataclasses.replace(made, common_hash="0"), protocol)

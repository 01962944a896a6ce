import dataclasses
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from docs import alarms
from flatbench import gate
from flatbench.errors import UsageError
from flatbench.files import write_json
from flatbench.gate import compare as module
from flatbench.gate.compare import against, compare, fits, read_baseline
from flatbench.records.reading import collect
from flatbench.records.sections import sections
from tests import tiny
from tests.synthetic import MEANS, grid, record

BASELINE = grid(range(10))
ALONE = {"protocol": "mine", "sam_sharpness": None}  # a protocol without published records


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
    assert f"and is {mean:.4g} now (3 seeds), below the limit " in lines[1]
    assert "test_accuracy was 69.73 in the baseline (10 seeds, from 67.97 to 70.64) " in lines[1]
    assert "9 times out of 10 such a limit finds a drop of 3.4 points; level 0.996875" in lines[1]


def test_better_is_never_a_regression():
    better = grid(range(3), means={name: mean + 6 for name, mean in MEANS.items()})
    better = [dataclasses.replace(r, sam_sharpness=r.sam_sharpness / 3) for r in better]
    assert compare(BASELINE, better).failures == ()


def test_full_path_decides_as_the_simulated_one():
    """On 40 grids, worse ones among them, `compare` fails what `alarms` counts as an alarm."""
    decided = []
    for number in range(40):
        random = np.random.default_rng(number)
        errors, new_errors = (
            np.exp(random.normal(2 + shift, 0.3, (alarms.CELLS, n)))
            for n, shift in ((10, 0.0), (3, 0.25))
        )
        records = [
            [
                record(f"o{cell}", seed=seed, test_accuracy=100 - e, **ALONE)
                for cell, row in enumerate(table)
                for seed, e in enumerate(row)
            ]
            for table in (errors, new_errors)
        ]
        verdict = compare(*records, alarm=0.05)
        values = -np.log(errors), -np.log(new_errors)
        limit = alarms.prediction_limit(
            values[0].mean(-1), values[0].std(-1, ddof=1), 10, 1 - 0.05 / alarms.CELLS, "lower", 3
        )
        failed = {
            f"mine/resnet18/o{i}: test_accuracy"
            for i in range(alarms.CELLS)
            if values[1][i].mean() < limit[i]
        }
        assert names(verdict.failures) == failed
        decided.append(bool(failed))
    assert set(decided) == {True, False}


@pytest.mark.parametrize(("n", "new"), [(3, 1), (10, 3), (20, 5)])
def test_alarms_of_ten_thousand_grids_keep_the_stated_rate(n, new):
    rate = alarms.comparison_alarms(alarms._normal, n, new)
    error = np.sqrt(0.05 * 0.95 / alarms.GRIDS)
    assert alarms.GRIDS >= 10_000
    assert rate <= module.ALARM + 3 * error
    assert rate >= 0.6 * module.ALARM  # Bonferroni is nearly exact for independent limits


def test_alarms_of_thresholds_keep_their_rate_too():
    rate = alarms.threshold_alarms(alarms._normal, alarms.BASELINE, alarms.NEW)
    stated = (1 - alarms.LEVEL) * alarms.CELLS * alarms.MEASURES * alarms.NEW
    assert stated < 0.05
    assert 0.6 * stated <= rate <= stated + 3 * np.sqrt(stated / alarms.GRIDS)


def test_skew_that_is_left_in_breaks_the_rate():
    """Why errors are compared by their logarithms."""
    assert alarms.comparison_alarms(alarms._lognormal, 10, 3) > 2 * module.ALARM


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
    assert all("and is 1.1e+09 now" in o.line for o in failed)
    assert all("such a limit finds a rise of 5e+07;" in o.line for o in failed)
    gpu = timed(grid(generator=3), 10.0, memory=1.1e9, device_kind="cuda")
    verdict = compare(baseline, gpu)
    assert verdict.failures == ()
    assert "digits/vgg16/sgd: peak_memory: not compared: another kind of device" in verdict.notes


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


def test_what_cannot_be_checked_is_counted_and_said():
    baseline = [
        *(record("sgd", seed=s, test_accuracy=90.0, sam_sharpness=1 + s / 10) for s in range(10)),
        record("adam", seed=7, test_accuracy=80.0, sharpness={"trace": 1.0}),
        record("gone"),
    ]
    current = [
        record("sgd", seed=99, sam_sharpness=0.2, sharpness={"trace": 2.0}),
        record("adam", test_accuracy=79.0),
        record("new"),
    ]
    verdict = compare(baseline, current)
    assert {o.line for o in verdict.blind} == {
        # ten equal values, and one: neither has a spread, but half of either is a collapse
        "digits/resnet18/sgd: test_accuracy 90 over 1 seed is above 45; baseline: 90 over 10 "
        "seeds; the baseline's 10 seeds with one and the same value cannot tell the spread",
        "digits/resnet18/adam: test_accuracy 79 over 1 seed is above 40; baseline: 80 over 1 seed; "
        "the baseline's 1 seed cannot tell the spread",
        "digits/resnet18/adam: trace: no value now",
        "digits/resnet18/sgd: trace: no value in the baseline",
        "digits/resnet18/new: no baseline",
    }
    assert verdict.notes == ("digits/resnet18/gone: only in the baseline",)
    assert (verdict.result, verdict.exit_code) == ("can't tell", 0)
    with pytest.raises(UsageError, match=r"nothing to compare \(digits/resnet18/new: no baseline"):
        compare(baseline, [record("new")])


@pytest.fixture(scope="module")
def published():
    return collect([Path(__file__).parents[1] / "results" / "digits" / "benchmark.json"])


def moved(records, points, seeds=50):
    """Records of other seeds, whose accuracies are lower by some points, or all of one value."""
    return [
        dataclasses.replace(
            r,
            seed=r.seed + seeds,
            test_accuracy=points(r.test_accuracy) if callable(points) else r.test_accuracy - points,
        )
        for r in records
    ]


def accuracies(outcomes):
    return [o for o in outcomes if o.name.endswith(": test_accuracy")]


@pytest.mark.checkout
def test_the_published_grid_twenty_points_lower_fails(published):
    """Its three seeds a cell passed it in silence, while each cell stood by itself."""
    cells = {(r.architecture, r.optimizer) for r in published}
    found = compare(published, moved(published, 20))
    assert found.exit_code == 1
    assert len(accuracies(found.failures)) == len(cells)
    found = compare(published, moved(published, 0))
    assert found.failures == ()
    assert all(outcome.drop < 20 for outcome in accuracies(found.outcomes))


@pytest.mark.checkout
@pytest.mark.parametrize("n", [1, 2])
def test_a_collapse_fails_with_any_number_of_baseline_seeds(published, n):
    """92 to 40, of cells that borrow from their neighbours, and of one that has none."""
    first = [r for r in published if r.seed < n]
    found = compare(first, moved(first, lambda _: 40.0))
    assert len(accuracies(found.failures)) == len(accuracies(found.outcomes)) > 1
    alone = [record(seed=s, test_accuracy=92.0, sam_sharpness=None) for s in range(n)]
    (outcome,) = compare(alone, moved(alone, lambda _: 40.0)).outcomes
    assert outcome.line.startswith("digits/resnet18/sgd: test_accuracy was 92 in the baseline (")
    assert ", no more than 46, half of it: it has collapsed" in outcome.line
    assert compare(alone, moved(alone, lambda _: 46.0)).failures
    (outcome,) = compare(alone, moved(alone, lambda _: 46.1)).outcomes
    assert outcome.result == "can't check"


def test_what_collapsed_in_the_baseline_too_is_no_collapse():
    baseline = [record(seed=s, test_accuracy=a, sam_sharpness=None) for s, a in ((0, 92), (1, 20))]
    (outcome,) = compare(
        baseline, [record(seed=5, test_accuracy=20.0, sam_sharpness=None)]
    ).outcomes
    assert outcome.result == "can't check"


def test_runs_that_repeat_exactly_are_said_to():
    alone = [record(test_accuracy=92.0, provenance={"key": "k"})]
    found = compare(alone, alone)
    assert found.result == "pass"  # however little one seed can find
    assert found.notes == (
        "digits: of 1 runs whose seeds the baseline has too, 1 repeated its results exactly",
    )
    assert all("repeated exactly" in o.line and "repeated" in o.rows[0].now for o in found.outcomes)
    other = [dataclasses.replace(r, test_accuracy=91.9) for r in alone]
    found = compare(alone, other)
    assert found.result == "can't tell"
    assert "1 of the others had the same code and machine: something" in found.notes[1]
    other = [dataclasses.replace(r, provenance=r.provenance | {"key": "edited"}) for r in other]
    assert len(compare(alone, other).notes) == 1  # other code may give other numbers


@pytest.mark.checkout
def test_the_published_seeds_of_a_cell_tell_its_spread(published):
    """Of the same content only, and under seeds that the baseline lacks."""
    cell = [r for r in published if (r.architecture, r.optimizer) == ("vgg16", "sgd+sam")]
    stranger = [dataclasses.replace(cell[0], seed=999)]
    limit = module._Spreads(sections(stranger)[0], None).limit(
        ("vgg16", "sgd+sam"), "test_accuracy", (stranger[0].test_accuracy,), 3, 0.0
    )
    errors = [np.log(100 - r.test_accuracy) for r in cell]
    assert (limit.n, limit.freedom) == (1, len(cell) - 1)
    assert limit.std == pytest.approx(np.std(errors, ddof=1))
    edited = [
        dataclasses.replace(r, provenance=r.provenance | {"cell_hash": "edited"}) for r in stranger
    ]
    spread = module._Spreads(sections(edited)[0], None).of(("vgg16", "sgd+sam"), "test_accuracy")
    assert spread[1] is None
    mine = module._Spreads(sections(cell)[0], None).of(("vgg16", "sgd+sam"), "test_accuracy")
    assert mine[1].freedom == len(cell) - 1  # those that the baseline has count once


def test_equal_sharpness_has_no_limit_and_says_so():
    same = [record(seed=s, test_accuracy=90.0 + s, protocol="mine") for s in range(3)]
    (sharpness,) = compare(same, [record(seed=9, protocol="mine")]).blind
    assert sharpness.line == (
        "mine/resnet18/sgd: sam_sharpness 0.1 over 1 seed has no limit; baseline: 0.1 over 3 "
        "seeds; the baseline's 3 seeds with one and the same value cannot tell the spread"
    )


def test_a_measure_that_is_only_in_one_of_the_two_is_said():
    new = [dataclasses.replace(r, sharpness={"trace": 1.0}) for r in grid(generator=3)]
    for records, why in (((BASELINE, new), "in the baseline"), ((new, BASELINE), "now")):
        found = compare(*records)
        lines = {o.line for o in found.blind if "trace" in o.name}
        assert lines == {
            f"digits/{a}/{o}: trace: no value {why}" for a in ("resnet18", "vgg16") for o in MEANS
        }


def of_hits(hits, seeds=0, examples=360, row="sgd"):
    return [
        record(row, seed=seeds + s, test_accuracy=100 * h / examples, **ALONE)
        for s, h in enumerate(hits)
    ]


NEAR_THE_TOP = [356, 355, 357, 359, 359, 359, 355, 354, 358, 358]


def test_a_better_value_does_not_turn_a_pass_into_a_failure():
    verdicts = [
        compare(of_hits(NEAR_THE_TOP), of_hits([best, 350, 350], 50)).result for best in (359, 360)
    ]
    assert verdicts[0] == verdicts[1]


@hypothesis.given(
    baseline=st.lists(st.integers(340, 360), min_size=1, max_size=12),
    current=st.lists(st.integers(330, 360), min_size=1, max_size=4),
    better=st.lists(st.integers(0, 30), min_size=4, max_size=4),
    others=st.lists(st.integers(340, 360), max_size=4),
)
def test_no_better_value_turns_a_pass_into_a_failure(baseline, current, better, others):
    known = [*of_hits(baseline), *of_hits(others, row="adam")]
    improved = [min(360, h + b) for h, b in zip(current, better, strict=False)]
    before, after = (compare(known, of_hits(hits, 50)) for hits in (current, improved))
    assert not (after.failures and not before.failures)


@hypothesis.given(
    baseline=st.lists(st.floats(-1, 100), min_size=1, max_size=12),
    current=st.lists(st.floats(-1, 200), min_size=1, max_size=4),
    better=st.lists(st.floats(0, 100), min_size=4, max_size=4),
)
def test_no_flatter_minimum_turns_a_pass_into_a_failure(baseline, current, better):
    def of(values, seeds=0):
        return [
            record(seed=seeds + s, test_accuracy=None, sharpness={"trace": v}, **ALONE)
            for s, v in enumerate(values)
        ]

    lower = [v - b for v, b in zip(current, better, strict=False)]
    before, after = (compare(of(baseline), of(values, 50)) for values in (current, lower))
    assert not (after.failures and not before.failures)


@hypothesis.given(
    hits=st.lists(st.integers(1, 359), min_size=1, max_size=12),
    examples=st.sampled_from([360, 630, 999]),
    now=st.integers(1, 3),
)
def test_equal_accuracies_are_equal_whatever_their_rounding(hits, examples, now):
    """Then they tell no spread; and a cost's limit, which has a margin, is kept by a tie."""
    value = 100 * hits[0] / examples
    near = [value * (1 + sign * 1e-15) for sign in range(-5, 5)]
    baseline = [record(seed=s, test_accuracy=v, **ALONE) for s, v in enumerate(near)]
    current = [record(seed=50 + s, test_accuracy=value, **ALONE) for s in range(now)]
    (outcome,) = compare(baseline, current).outcomes
    assert outcome.result == "can't check"
    memory = [dataclasses.replace(r, peak_memory=1e9 / 3 * r.test_accuracy) for r in baseline]
    same = [dataclasses.replace(r, peak_memory=1e9 / 3 * r.test_accuracy) for r in current]
    assert compare(memory, same).failures == ()


def test_a_perfect_accuracy_has_a_place_on_the_scale():
    baseline = [record(seed=s, test_accuracy=100.0 - s / 10, sam_sharpness=None) for s in range(10)]
    assert (
        compare(baseline, [record(seed=50, test_accuracy=100.0, sam_sharpness=None)]).exit_code == 0
    )
    assert (
        compare(baseline, [record(seed=50, test_accuracy=95.0, sam_sharpness=None)]).exit_code == 1
    )


@pytest.mark.parametrize(
    ("current", "says"),
    [
        (grid(provenance={"common_hash": "new"}), "digits: common_hash is 0123456789ab in the"),
        ([record(provenance={"cell_hash": "new"})], "digits/resnet18/sgd: cell_hash is"),
        (
            grid(evaluation="validation"),
            "digits: evaluation is test in the baseline and validation",
        ),
        (
            grid(protocol="mine"),
            r"\(mine: not in the baseline, which has its content under the name digits\)",
        ),
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

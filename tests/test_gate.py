import dataclasses
import re
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import stats as reference

from flatbench import gate
from flatbench.errors import UsageError
from flatbench.protocols.reading import load
from flatbench.stats import prediction_bound
from tests import tiny
from tests.synthetic import grid, record

ROOT = Path(__file__).parents[1]
BASELINE = grid(range(10))
THRESHOLDS = gate.derive(BASELINE)
BETTER = gate.derive(
    record(row, seed=s, test_accuracy=a + s / 10)
    for s in range(10)
    for row, a in (("sgd", 80.0), ("sgd+sam", 90.0 + s % 3))
)


def of(records, measure, architecture="resnet18", optimizer="sgd"):
    return [
        getattr(r, measure)
        for r in records
        if (r.architecture, r.optimizer) == (architecture, optimizer)
    ]


def failure(r, thresholds=THRESHOLDS):
    outcome = gate.check_case(r, thresholds)
    assert not outcome.passed
    assert outcome.name == r.id
    return outcome.line


def test_bounds_are_the_closed_form():
    cell = THRESHOLDS.cells["resnet18", "sgd"]
    factor = reference.t.ppf(0.999, 9) * np.sqrt(1 + 1 / 10)
    errors = np.log(100 - np.array(of(BASELINE, "test_accuracy")))
    logs = np.log(of(BASELINE, "sam_sharpness"))
    accuracy, sharpness = cell.bounds["test_accuracy"], cell.bounds["sam_sharpness"]
    assert accuracy.side == "at_least"
    assert accuracy.limit == pytest.approx(
        100 - np.exp(errors.mean() + factor * errors.std(ddof=1))
    )
    assert sharpness.side == "at_most"
    assert sharpness.limit == pytest.approx(np.exp(logs.mean() + factor * logs.std(ddof=1)))


@pytest.mark.parametrize("seeds", [3, 6])
def test_pairs_bound_the_mean_of_the_grids_seeds(seeds):
    pair = gate.derive(BASELINE, grid_seeds=seeds).pairs["resnet18", "adam+sam"]
    d = np.subtract(
        of(BASELINE, "test_accuracy", optimizer="adam+sam"),
        of(BASELINE, "test_accuracy", optimizer="adam"),
    )
    factor = reference.t.ppf(0.99, 9) * np.sqrt(1 / seeds + 1 / 10)
    assert pair.limit == pytest.approx(d.mean() - factor * d.std(ddof=1))
    assert pair.positive


def test_a_pair_that_may_well_be_below_zero_is_not_held():
    close = gate.derive(grid(range(10), means={"sgd": 90.0, "sgd+sam": 90.2}))
    assert not close.pairs["resnet18", "sgd+sam"].positive
    assert gate.check_pairs(grid(means={"sgd": 90.0, "sgd+sam": 80.0}), close) == []


def test_gains_that_are_equal_but_for_rounding_bound_no_pair():
    hits = range(320, 330)
    records = [
        record(row, seed=seed, test_accuracy=100 * (h + more) / 360)
        for seed, h in enumerate(hits)
        for row, more in (("sgd", 0), ("sgd+sam", 4))
    ]
    gains = {100 * (h + 4) / 360 - 100 * h / 360 for h in hits}
    assert len(gains) > 1  # rounding has told them apart
    assert gate.derive(records).pairs == {}


@hypothesis.given(
    gains=st.lists(st.integers(-9, 9), min_size=2, max_size=5),
    balance=st.sampled_from([-1, 0, 0, 1]),
    base=st.lists(st.integers(200, 300), min_size=6, max_size=6),
    examples=st.sampled_from([360, 450, 999]),
)
def test_gains_and_losses_that_cancel_are_no_gain(gains, balance, base, examples):
    """Counted in examples, whatever rounding makes of the percentages."""
    gains = [*gains, balance - sum(gains)]
    records = [
        record(row, seed=seed, test_accuracy=100 * (hits + more) / examples)
        for seed, (hits, gain) in enumerate(zip(base, gains, strict=False))
        for row, more in (("sgd", 0), ("sgd+sam", gain))
    ]
    (outcome,) = gate.check_pairs(records, BETTER)
    assert outcome.passed == (balance > 0)


def near_the_top(seeds, worst=0):
    """A cell whose accuracies are a few examples short of 100 %, and some reach it."""
    hits = np.random.default_rng(0).binomial(360, 0.995, 100) - worst
    return [record(seed=s, test_accuracy=100 * int(hits[s]) / 360) for s in seeds]


def test_a_bound_near_the_top_counts_wrong_examples_and_survives_its_file(tmp_path):
    made = gate.derive(near_the_top(range(10)), measures=["test_accuracy"])
    bound = made.cells["resnet18", "sgd"].bounds["test_accuracy"]
    assert (bound.scale, bound.offset) == ("log-error", pytest.approx(100 / 360))
    gate.write_thresholds(tmp_path / "t.toml", made)
    assert gate.read_thresholds(tmp_path / "t.toml") == made
    found = [gate.check_case(r, made) for r in near_the_top(range(10, 100))]
    assert all(outcome.passed for outcome in found)
    worse = [gate.check_case(r, made) for r in near_the_top(range(10, 100), worst=40)]
    assert not any(outcome.passed for outcome in worse)


def test_a_collapse_fails_however_wide_the_bound():
    """And is none where seeds of the baseline had it."""

    def derived():
        runs = (record(seed=s, test_accuracy=a) for s, a in enumerate(baseline))
        return gate.derive(runs, measures=["test_accuracy"])

    baseline = [92.0, 91.0, 88.0, 93.0, 85.0, 94.0, 90.0, 80.0, 92.0, 95.0]
    made = derived()
    bound = made.cells["resnet18", "sgd"].bounds["test_accuracy"]
    (cell, other) = (gate.check_cells([record(test_accuracy=a)], made)[0] for a in (45.1, 45.8))
    assert bound.limit < 45.1
    assert cell.failed
    assert "test_accuracy 45.1 is no more than 45.4, half of the baseline's accuracy" in cell.line
    assert other.result == "can't check"
    assert "half of it be lost" in other.line
    baseline[2:4] = [40.0, 41.0]
    assert gate.check_cells([record(test_accuracy=40.0)], derived())[0].result == "can't check"


def test_a_mean_finds_what_no_seed_does():
    worse = grid(range(6), means={"sgd": 86.0}, generator=1)
    records = [r for r in worse if r.architecture == "resnet18"]
    assert all(gate.check_case(r, THRESHOLDS).passed for r in records)
    cell = gate.check_cells(records, THRESHOLDS)[0]
    assert cell.failed
    assert "over 6 seeds is below 87.03, the lower prediction bound of the mean of 6" in cell.line
    assert "baseline: 88.68 with the error" in cell.line
    assert "9 times out of 10 such a limit finds a drop of 2.4 points" in cell.line


def test_thresholds_survive_their_file(tmp_path):
    path = tmp_path / "digits.toml"
    odd = [
        dataclasses.replace(r, optimizer='x"\\ é😀', base_row=None)
        for r in BASELINE
        if r.optimizer == "sgd"
    ]
    for thresholds in (THRESHOLDS, gate.derive(odd)):
        gate.write_thresholds(path, thresholds)
        assert gate.read_thresholds(path) == thresholds


def test_a_grid_like_the_baseline_passes():
    current = grid(range(20, 23), generator=8)
    assert all(gate.check_case(r, THRESHOLDS).passed for r in current)
    pairs = gate.check_pairs(current, THRESHOLDS)
    assert [outcome.name for outcome in pairs] == [
        f"digits/{a}: {row}+sam − {row}" for a in ("resnet18", "vgg16") for row in ("sgd", "adam")
    ]
    assert all(o.passed and o.line.startswith(f"{o.name}: mean paired") for o in pairs)
    assert all("3 seeds is above 0; baseline: +" in o.line for o in pairs)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"test_accuracy": 70.0}, "test_accuracy 70 is below 85.09, the lower prediction bound"),
        ({"sam_sharpness": 0.5}, "sam_sharpness 0.5 is above 0.03077, the upper prediction bound"),
        ({"sam_sharpness": None}, "sam_sharpness was not measured"),
    ],
)
def test_a_regression_fails_in_one_line_with_its_baseline(values, says):
    good = {"test_accuracy": 90.0, "sam_sharpness": 0.02}
    line = failure(record(seed=1, **(good | values)))
    assert line.startswith("digits/resnet18/sgd/seed1: ")
    assert says in line
    assert "10 seeds, level 0.999, commit abc1234" in line


def test_a_bound_itself_passes():
    limits = {m: b.limit for m, b in THRESHOLDS.cells["resnet18", "sgd"].bounds.items()}
    outcome = gate.check_case(record(**limits), THRESHOLDS)
    accuracy, sharpness = outcome.line.removeprefix("digits/resnet18/sgd/seed0: ").split("; ")
    assert outcome.passed
    assert accuracy == (
        "test_accuracy 85.09 is at least 85.09, baseline 88.68, finds a drop of 5.3 points"
    )
    assert sharpness.startswith("sam_sharpness 0.03077 is at most 0.03077, baseline 0.0")


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_a_run_without_a_result_fails_with_its_reason(status):
    line = failure(record(status=status, reason="bang\n"))
    assert line == f"digits/resnet18/sgd/seed0: {status}: bang\\n"


def test_a_pair_that_lost_its_gain_fails():
    broken = {"sgd": 88.5, "sgd+sam": 93.1, "adam": 85.0, "adam+sam": 83.0}
    outcomes = gate.check_pairs(grid(means=broken), THRESHOLDS)
    failed = [o for o in outcomes if not o.passed]
    assert len(outcomes) == 4
    assert [o.name for o in failed] == [
        f"digits/{a}: adam+sam − adam" for a in ("resnet18", "vgg16")
    ]
    assert all("adam+sam − adam: mean paired difference" in o.line for o in failed)
    assert all("is not above 0" in o.line for o in failed)


def test_an_asserted_pair_with_too_few_seeds_says_so():
    outcomes = gate.check_pairs(grid([0, 1]), THRESHOLDS)
    assert [o.result for o in outcomes] == 4 * ["can't check"]
    assert outcomes[0].line == (
        "digits/resnet18: sgd+sam − sgd: a gain is asserted over 3 seeds, of which both completed 2"
    )
    assert gate.judge(grid([0, 1]), THRESHOLDS).result == "can't tell"
    of_six = gate.derive(BASELINE, grid_seeds=6)
    held = [[o.result for o in gate.check_pairs(grid(range(n)), of_six)] for n in (5, 6)]
    assert held == [4 * ["can't check"], 4 * ["passed"]]
    # a row that was left out says it by itself
    assert gate.check_pairs(grid([0, 1], means={"sgd+sam": 93.0}), THRESHOLDS) == []


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"provenance": {"common_hash": "new"}}, "protocol changed since the baseline"),
        ({"provenance": {"cell_hash": "new"}}, "row's settings changed since the baseline"),
        ({"evaluation": "validation"}, "on the validation part"),
        ({"protocol": "mine"}, "thresholds are of protocol digits"),
    ],
)
def test_thresholds_of_something_else_fail_in_one_line(changed, says):
    line = failure(record(test_accuracy=1.0, **changed))
    assert says in line
    if "provenance" in changed:
        assert "flatbench run --protocol digits --seeds 0,1,2,3,4,5,6,7,8,9" in line


def test_a_changed_protocol_fails_the_pairs_once():
    (outcome,) = gate.check_pairs(grid(provenance={"common_hash": "new"}), THRESHOLDS)
    assert (outcome.name, outcome.passed) == ("digits", False)
    assert "protocol changed" in outcome.line


def test_what_has_no_bound_is_listed():
    baseline = [
        *(record("sgd", seed=s, test_accuracy=100.0, sam_sharpness=9.0 + s) for s in range(10)),
        *(record("adam", seed=s, test_accuracy=80.0 + s) for s in range(9)),
        record("adam", seed=9, status="diverged"),
    ]
    thresholds = gate.derive(baseline)
    found = gate.judge([*baseline[:10], record("adam"), record("new")], thresholds)
    assert [o.line for o in found.blind] == [
        "digits/resnet18/sgd: no baseline for test_accuracy: all 10 seeds have the value 100.0",
        "digits/resnet18/adam: no baseline for test_accuracy: 1 of 10 seeds diverged or failed",
        "digits/resnet18/adam: no baseline for sam_sharpness: 1 of 10 seeds diverged or failed",
        "digits/resnet18/new: no baseline",
    ]
    assert found.result == "can't tell"
    for name in ("adam", "new"):
        outcome = gate.check_case(record(name, test_accuracy=1.0), thresholds)
        assert outcome.passed
        assert outcome.line.endswith("completed; has no bounds")


def test_any_recorded_measure_may_carry_a_threshold():
    random = np.random.default_rng(0)
    baseline = [
        record(seed=s, test_accuracy=90 + random.normal(), sharpness={"trace": random.normal()})
        for s in range(12)
    ]
    thresholds = gate.derive(baseline, measures=("test_accuracy", "trace"))
    bound = thresholds.cells["resnet18", "sgd"].bounds["trace"]
    assert (bound.side, bound.scale) == ("at_most", "linear")  # values below 0 have no logarithm
    line = failure(record(sharpness={"trace": 99.0}), thresholds)
    assert "trace 99 is above" in line
    with pytest.raises(UsageError, match="measured 'tracer'"):
        gate.derive(baseline, measures=("tracer",))


@pytest.mark.parametrize(
    ("records", "says"),
    [
        (grid(range(9)), r"digits/resnet18/sgd: 9 seed\(s\) in the baseline; at least 10"),
        ([*BASELINE, *grid(protocol="mine")], "one protocol's records, got those of digits, mine"),
        ([], "got those of no record"),
        (
            [record(seed=s, provenance={"commit": None}) for s in range(10)],
            "does not say what code made it",
        ),
    ],
)
def test_a_poor_baseline_is_refused(records, says):
    with pytest.raises(UsageError, match=says):
        gate.derive(records)
    with pytest.raises(UsageError, match=r"level must be .*, got 1\.0"):
        gate.derive(BASELINE, level=1.0)


def test_false_alarm_rate_is_of_a_whole_grid():
    # 8 cells x 2 bounds x 3 seeds and their mean, and the pairs that are asserted
    asserted = sum(pair.positive for pair in THRESHOLDS.pairs.values())
    assert THRESHOLDS.false_alarm_rate == pytest.approx(0.001 * 64 + 0.01 * asserted)
    assert asserted == 4
    of_six = gate.derive(BASELINE, grid_seeds=6)
    assert of_six.false_alarm_rate == pytest.approx(0.001 * 16 * 7 + 0.01 * 4)


def test_a_file_says_which_grids_it_holds(tmp_path):
    made = gate.derive(BASELINE, grid_seeds=6)
    gate.write_thresholds(tmp_path / "t.toml", made)
    text = " ".join((tmp_path / "t.toml").read_text().replace("#", "").split())
    assert "bounds the mean difference over 6 new seeds" in text
    assert "A grid of all cells and 6 seeds without a regression fails" in text
    assert f"with a probability of at most {made.false_alarm_rate:.1%}" in text


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("level = 0.999", "level = 2.0", "level must be a number between 0.5 and 1, got 2.0"),
        ("level = 0.999", "", "level is missing"),
        (
            'side = "at_least"',
            'side = "near"',
            'bounds.test_accuracy.side must be one of "at_least"',
        ),
        ("grid_seeds", "gird_seeds", "did you mean 'grid_seeds'"),
        ("[cells", "[sells", "sells is an unknown key"),
        ("n = 10", "n = true", "n must be a whole number"),
        ('protocol = "', 'protocol = "\n', "is not TOML"),
        ("seeds = [0", "seeds = [" + "1" * 5000, "is not TOML"),
    ],
)
def test_a_bad_thresholds_file_is_one_clear_line(tmp_path, old, new, says):
    path = tmp_path / "digits.toml"
    gate.write_thresholds(path, THRESHOLDS)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UsageError, match=says.replace("[", r"\[")) as error:
        gate.read_thresholds(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["mean", "std"])
def test_logarithms_whose_numbers_are_beyond_all_bounds(tmp_path, key):
    path = tmp_path / "digits.toml"
    gate.write_thresholds(path, THRESHOLDS)
    line = next(x for x in path.read_text().splitlines() if 'scale = "log' in x)
    spoilt = re.sub(rf"\b{key} = [-\d.e]+", f"{key} = 710.0", line)
    assert spoilt != line
    path.write_text(path.read_text().replace(line, spoilt))
    with pytest.raises(UsageError, match=r"mean and std must be numbers of at most 300 in size"):
        gate.read_thresholds(path)


def test_no_thresholds_file(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        gate.read_thresholds(tmp_path / "none.toml")


def test_thresholds_from_published_results_are_mean_less_3_std(tmp_path):
    protocol = load("cifar10-paper")
    made = gate.from_reference(protocol)
    assert len(made.cells) == 8
    bound = made.cells["vgg16", "adam+sam"].bounds["test_accuracy"]
    assert (bound.side, bound.limit) == ("at_least", pytest.approx(94.126 - 3 * 0.112))
    # the level is that at which three standard deviations bound one new seed
    published = reference.norm.ppf([0.2, 0.5, 0.8])
    published = (published - published.mean()) / published.std(ddof=1)
    assert prediction_bound(published, made.level, "lower") == pytest.approx(-3)
    path = tmp_path / "cifar10-paper.toml"
    gate.write_thresholds(path, made)
    committed = ROOT / "benchmarks" / "thresholds" / path.name
    # the last digit of the level is that of a release of scipy
    written, stands = (gate.read_thresholds(file) for file in (path, committed))
    assert written == made
    assert dataclasses.replace(written, level=stands.level) == stands
    assert written.level == pytest.approx(stands.level, rel=1e-12)
    comments = [
        [line for line in file.read_text().splitlines() if line.startswith("#")]
        for file in (path, committed)
    ]
    assert comments[0] == comments[1] != []


def test_published_results_hold_grids_of_as_many_seeds(tmp_path):
    whole = tiny.table()
    table = {"resnet18": {"sgd": [90.0, 0.5]}}
    whole["reference"] = {"source": "s", "seeds": 5, "test_accuracy": table}
    assert gate.from_reference(tiny.protocol(tmp_path, whole)).grid_seeds == 5


def test_a_record_is_held_to_published_results():
    protocol = load("cifar10-paper")
    made = gate.from_reference(protocol)
    provenance = {
        "common_hash": protocol.common_hash(),
        "cell_hash": protocol.cell_hash("adam+sam", "vgg16"),
    }
    cell = {"protocol": "cifar10-paper", "provenance": provenance}
    assert gate.check_case(record("adam+sam", "vgg16", test_accuracy=93.8, **cell), made).passed
    line = failure(record("adam+sam", "vgg16", test_accuracy=93.7, **cell), made)
    assert "test_accuracy 93.7 is below 93.79" in line
    assert line.endswith(
        "94.13 ± 0.112 over 3 seeds, level 0.939155, "
        "the seed study (CIFAR-10, 200 epochs, batch 128); "
        "9 times out of 10 such a limit finds a drop of 0.6 points"
    )
    changed = {"provenance": {"common_hash": "0"}, "protocol": "cifar10-paper"}
    line = failure(record("adam+sam", "vgg16", **changed), made)
    assert "renew it: flatbench baseline --reference cifar10-paper" in line


@pytest.mark.parametrize("seeds", [None, 1])
def test_what_has_no_published_spread_is_refused(tmp_path, seeds):
    whole = tiny.table()
    if seeds:
        table = {"resnet18": {"sgd": [90.0, 0.0]}}
        whole["reference"] = {"source": "s", "seeds": seeds, "test_accuracy": table}
    with pytest.raises(UsageError, match="tiny must have published results of at least 2"):
        gate.from_reference(tiny.protocol(tmp_path, whole))


def test_a_baseline_of_an_installed_package_names_its_version_and_sources(tmp_path):
    said = {"commit": None, "dirty": None, "flatbench_version": "0.1.0", "source_hash": "0123"}
    records = [record(seed=s, test_accuracy=90 + s / 10, provenance=said) for s in range(10)]
    made = gate.derive(records)
    assert made.commit == "flatbench 0.1.0, sources 0123"
    gate.write_thresholds(tmp_path / "t.toml", made)
    worse = record(seed=99, test_accuracy=20.0, provenance=said)
    line = gate.check_case(worse, gate.read_thresholds(tmp_path / "t.toml")).line
    assert "level 0.999, flatbench 0.1.0, sources 0123" in line


def test_thresholds_of_a_protocol_of_ones_own_are_renewed_beside_it():
    mine = [dataclasses.replace(r, protocol="mine") for r in BASELINE]
    assert gate.derive(mine).renewal == (
        "flatbench run --protocol mine.toml --seeds 0,1,2,3,4,5,6,7,8,9 --results baseline && "
        "flatbench baseline baseline/mine/records --output mine.thresholds.toml"
    )
    renewal = gate.derive(mine, grid_seeds=6, level=0.9997).renewal
    assert renewal.endswith(" --grid-seeds 6 --level 0.9997")

import numpy as np
import pytest
from scipy import stats as reference

from docs import rates
from flatbench import gate, stats
from tests.synthetic import grid


def test_detection_rate_is_what_simulation_finds():
    random = np.random.default_rng(0)
    baseline = random.normal(0, 1, (40_000, 10))
    new = random.normal(-2.0, 1, (40_000, 3)).mean(1)
    limit = stats.prediction_limit(baseline.mean(1), baseline.std(1, ddof=1), 10, 0.99, "lower", 3)
    found = np.mean(new < limit)
    assert stats.detection_rate(2.0, 10, 0.99, 3) == pytest.approx(found, abs=0.012)
    assert stats.detection_rate(0.0, 10, 0.99, 3) == pytest.approx(0.01, abs=1e-6)


@pytest.mark.parametrize(("n", "level", "new"), [(3, 0.996875, 1), (10, 0.999, 3), (30, 0.95, 10)])
def test_detectable_shift_inverts_the_detection_rate(n, level, new):
    shift = stats.detectable_shift(n, level, new)
    assert stats.detection_rate(shift, n, level, new) == pytest.approx(0.9)
    # with no end of seeds it is the sum of two normal quantiles
    normal = (reference.norm.ppf(level) + reference.norm.ppf(0.9)) / np.sqrt(new)
    assert shift > normal
    assert stats.detectable_shift(10**6, level, new) == pytest.approx(normal, rel=1e-3)


def test_any_of_three_cases_finds_less_than_their_mean_but_more_than_one():
    one = stats.detectable_shift(10, 0.999)
    any_of_three = rates.detectable_by_cases(10, 3)
    assert stats.detectable_shift(10, 0.999, 3) < any_of_three < one
    assert rates.detectable_by_cases(10, 1) == pytest.approx(one, rel=0.03)


def test_one_baselines_own_rate_averages_to_the_stated_one():
    median, high = rates.conditional_alarms(10, 3)
    assert median < 0.05 < high
    wide = rates.conditional_alarms(3, 3)
    assert wide[0] < median
    assert wide[1] > high


def test_page_states_the_thresholds_of_its_records():
    records = grid(range(10))
    text = rates.page(records)
    thresholds = gate.derive(records)
    bound = thresholds.cells["vgg16", "adam"].bounds["test_accuracy"]
    (line,) = [line for line in text.splitlines() if line.startswith("| vgg16 adam ")]
    assert f" {bound.limit:.1f} |" in line
    assert "{" not in text
    assert rates.page(records) == text


def test_skewness_is_scipys_over_cells_and_turned_to_the_bad_side():
    records = grid(range(60), means={"sgd": 80.0, "adam": 70.0}, spread=5.0)
    found = {name: (mean, error) for name, mean, error in rates.skewness(records)}
    cells = [
        [r.test_accuracy for r in records if (r.architecture, r.optimizer) == (a, o)]
        for a in ("resnet18", "vgg16")
        for o in ("sgd", "adam")
    ]
    skews = [reference.skew(cell, bias=False) for cell in cells]
    assert found["accuracy"] == pytest.approx((np.mean(skews), reference.sem(skews)))
    # normal accuracies have errors whose negative logarithms are skewed to the good side
    assert found["−log(100 − accuracy)"][0] > found["accuracy"][0] + 0.2
    assert found["−sam_sharpness"][0] < found["−log(sam_sharpness)"][0]

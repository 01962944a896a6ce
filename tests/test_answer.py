"""The answer of `flatbench try`: its numbers follow from records, and it is not easily fooled."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats

from flatbench.protocols.reading import load
from flatbench.records.published import published
from flatbench.records.sections import sections
from flatbench.stats import holm
from flatbench.study.answer import Question, answer, lines, require
from tests.synthetic import record

EIGENVALUE = "hessian_max_eigenvalue"


def cell(row, accuracies, eigenvalues=None, **fields):
    found = eigenvalues or [10.0] * len(accuracies)
    return [
        record(row, seed=i, test_accuracy=a, sharpness={EIGENVALUE: e}, **fields)
        for i, (a, e) in enumerate(zip(accuracies, found, strict=True))
    ]


def asked(*references, mine="lion"):
    return [Question("resnet18", mine, r, "equal epochs", r) for r in references]


def answered(records, *references):
    (section,) = sections(records)
    return answer(section, ["lion"], asked(*references)), section


@pytest.fixture(scope="module")
def normal():
    random = np.random.default_rng(1)
    return {
        row: (random.normal(mean, 1.0, 6), np.exp(random.normal(level, 0.3, 6)))
        for row, mean, level in (("lion", 92, 1), ("adam", 90, 2), ("sgd", 91.5, 1))
    }


def test_every_number_is_scipys(normal):
    records = [r for row, (a, e) in normal.items() for r in cell(row, a.tolist(), e.tolist())]
    found, _ = answered(records, "adam", "sgd")
    for side, of in (
        (found.outcome, lambda row: normal[row][0]),
        (found.flatness, lambda row: -np.log(normal[row][1])),
    ):
        tests = [stats.ttest_rel(of("lion"), of(row)) for row in ("adam", "sgd")]
        corrected = holm([t.pvalue for t in tests])
        for comparison, test, p, row in zip(side, tests, corrected, ("adam", "sgd"), strict=True):
            gains = of("lion") - of(row)
            interval = test.confidence_interval(0.95)
            assert comparison.gain == pytest.approx(gains.mean())
            assert comparison.interval.low == pytest.approx(interval.low)
            assert comparison.interval.high == pytest.approx(interval.high)
            assert comparison.p == pytest.approx(p)
            expected = "can't tell" if p >= 0.05 else "better" if gains.mean() > 0 else "worse"
            assert comparison.verdict == expected
            assert comparison.seeds == tuple(range(6))
            # the power of the strictest of the two tests, at the gain that is said to show
            t = stats.t.ppf(1 - 0.05 / 2 / 2, 5)
            shift = comparison.detectable / (gains.std(ddof=1) / math.sqrt(6))
            assert stats.nct.sf(t, 5, shift) == pytest.approx(0.9)


def test_the_sentences_say_the_numbers(normal):
    records = [r for row, (a, e) in normal.items() for r in cell(row, a.tolist(), e.tolist())]
    found, section = answered(records, "adam", "sgd")
    said = lines(found, section.outcome)
    first = found.outcome[0]
    assert said[0] == (
        "test accuracy, over seeds 0–5; p by the paired t-test, adjusted for 2 comparisons:"
    )
    assert said[1] == (
        f"  resnet18, equal epochs: lion − adam: +{first.gain:.2f} points, 95 % from "
        f"+{first.interval.low:.2f} to +{first.interval.high:.2f}, p = {first.p:.2g}, "
        f"6 seeds show {first.detectable:.2f} 9 times out of 10: better"
    )
    flat = found.flatness[0]
    assert flat.verdict == "better"
    assert f"lion has {math.exp(-flat.gain):.3g} × adam's largest eigenvalue" in said[4]
    assert said[4].endswith(": flatter")
    assert json.loads(json.dumps(found.to_json()))["outcome"][0]["gain"] == first.gain


def test_equal_runs_are_the_same():
    found, section = answered(cell("lion", [90, 91, 93]) + cell("adam", [90, 91, 93]), "adam")
    assert found.outcome[0].verdict == found.flatness[0].verdict == "the same"
    assert lines(found, section.outcome)[1].endswith("equal in every one of 3 seeds: the same")


def test_equal_gains_are_no_certainty():
    ours = [100 * (h + 4) / 360 for h in (332, 334, 337)]
    theirs = [100 * h / 360 for h in (332, 334, 337)]
    found, section = answered(cell("lion", ours) + cell("adam", theirs), "adam")
    assert (found.outcome[0].p, found.outcome[0].verdict) == (None, "can't tell")
    assert "no test" in lines(found, section.outcome)[1]


def test_one_seed_or_none_in_common_cannot_tell():
    found, _ = answered(cell("lion", [99]) + cell("adam", [50]), "adam")
    assert (found.outcome[0].verdict, found.outcome[0].detectable) == ("can't tell", None)
    lost = [record("lion", seed=0, status="diverged"), *cell("adam", [50])]
    found, section = answered(lost, "adam")
    assert found.outcome[0].verdict == "can't tell"
    assert found.lost == (
        "digits/resnet18/lion/seed0: the loss was not finite in epoch 3 (diverged)",
    )
    assert lines(found, section.outcome)[0].startswith("lost: digits/resnet18/lion/seed0: ")


def test_a_sharpness_that_is_not_positive_says_nothing():
    found, _ = answered(
        cell("lion", [90, 91, 92], [1.0, -1.0, 2.0]) + cell("adam", [90, 90, 91], [3.0, 3.0, 3.0]),
        "adam",
    )
    assert found.flatness[0].seeds == (0, 2)


def test_of_an_error_lower_is_better():
    def runs(row, errors):
        return [
            dataclasses.replace(record(row, seed=i, test_error=e), test_accuracy=None)
            for i, e in enumerate(errors)
        ]

    found, section = answered(
        runs("lion", [0.10, 0.12, 0.11, 0.12]) + runs("adam", [0.20, 0.21, 0.22, 0.20]), "adam"
    )
    assert found.outcome[0].verdict == "better"
    assert "points" not in lines(found, section.outcome)[1]


def test_what_is_required_must_hold_in_every_comparison():
    better, same = [90.0, 91.0, 92.0, 91.0], [80.0, 81.0, 82.0, 81.5]
    records = cell("lion", better) + cell("lion-2x", same) + cell("adam", same) + cell("sgd", same)
    (section,) = sections(records)
    found = answer(
        section,
        ["lion", "lion-2x"],
        [*asked("adam"), Question("resnet18", "lion-2x", "adam", "equal gradients", "adam")],
    )
    assert require(found, "adam") == "better-than=adam: resnet18, equal gradients: the same"
    found = answer(section, ["lion"], asked("adam"))
    assert require(found, "adam") is None
    assert require(found, "sgd") == "better-than=sgd: it was not compared"


def simulated(mean, runs, seed=0):
    """How often a row is called better and worse than any of 4 rows, of the published spread."""
    random = np.random.default_rng(seed)
    found = published(load("digits"))
    rows = ("sgd", "sgd+sam", "adam", "adam+sam")
    stds = {
        row: np.std([r.test_accuracy for r in found if r.optimizer == row], ddof=1) for row in rows
    }
    better = worse = 0
    for _ in range(runs):
        records = [
            r for row, std in stds.items() for r in cell(row, random.normal(50, std, 6).tolist())
        ]
        records += cell("lion", random.normal(50 + mean, max(stds.values()), 6).tolist())
        verdicts = {c.verdict for c in answered(records, *rows)[0].outcome}
        better += "better" in verdicts
        worse += "worse" in verdicts
    return better / runs, worse / runs


def test_what_is_no_better_is_seldom_called_better():
    """The family-wise error is 5 % on both sides, of which one is "better"."""
    better, worse = simulated(0.0, 500)
    assert better < 0.025 + 4 * math.sqrt(0.025 * 0.975 / 500)
    assert worse < 0.025 + 4 * math.sqrt(0.025 * 0.975 / 500)
    assert better + worse > 0.005  # a test that never speaks would pass, too


def test_what_is_much_worse_is_called_worse():
    assert simulated(-25.0, 100) == (0.0, pytest.approx(1.0, abs=0.1))

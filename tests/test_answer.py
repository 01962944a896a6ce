"""The answer of `flatbench try`: its numbers follow from records, and it is not easily fooled."""

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from docs import answers
from flatbench.protocols.reading import load
from flatbench.records.sections import sections
from flatbench.report.comparisons import Question
from flatbench.stats import holm
from flatbench.study.answer import answer, require
from flatbench.study.equal_terms import questions_of
from flatbench.study.sentences import flatness_lines, lines
from tests.synthetic import record

ROOT = Path(__file__).parents[1]
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
    return answer(section, "lion", asked(*references)), section


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
        "test accuracy, over seeds 0–5; p by the paired t-test, adjusted for 2 comparisons (Holm); "
        "what would have shown is at the strictest of their levels, 2.5 %:"
    )
    assert said[1] == (
        f"  resnet18, equal epochs: lion − adam: +{first.gain:.2f} points, 95 % from "
        f"+{first.interval.low:.2f} to +{first.interval.high:.2f}, p = {first.p:.2g}, "
        f"6 seeds would have shown {first.detectable:.2f} points 9 times out of 10: better"
    )
    flat = found.flatness[0]
    assert flat.verdict == "better"
    low, high = math.exp(-flat.interval.high), math.exp(-flat.interval.low)
    assert said[4] == (
        f"  resnet18, equal epochs: lion has {math.exp(-flat.gain):.3g} × adam's "
        f"largest eigenvalue of the Hessian, 95 % from {low:.3g} × to {high:.3g} ×, "
        f"p = {flat.p:.2g}, 6 seeds would have shown a factor of {math.exp(flat.detectable):.3g} "
        "9 times out of 10: flatter"
    )
    assert said[-1].startswith("can't tell in 2 of 4 comparisons: ")
    assert json.loads(json.dumps(found.to_json()))["outcome"][0]["gain"] == first.gain


def test_equal_runs_are_the_same():
    found, section = answered(cell("lion", [90, 91, 93]) + cell("adam", [90, 91, 93]), "adam")
    assert found.outcome[0].verdict == found.flatness[0].verdict == "the same"
    assert lines(found, section.outcome)[1].endswith(
        "lion equals adam, bit for bit, in 3 seeds: the same"
    )


def test_accuracies_that_agree_by_chance_are_not_the_same():
    equal = cell("lion", [90, 91], [3.0, 4.0]) + cell("adam", [90, 91], [3.0, 4.1])
    found, section = answered(equal, "adam")
    assert found.outcome[0].gain == 0
    assert found.outcome[0].verdict == "can't tell"
    assert "no test of 2 seeds" in lines(found, section.outcome)[1]
    losses = {"lion": 0.5, "adam": 0.5 + 1e-15}
    same = [
        dataclasses.replace(r, train_loss=losses[r.optimizer], sharpness={EIGENVALUE: 3.0})
        for r in equal
    ]
    assert answered(same, "adam")[0].outcome[0].verdict == "can't tell"


def test_who_loses_seeds_is_not_better_by_the_rest():
    good, bad = [90.0, 91.0, 92.0, 91.0], [80.0, 81.5, 82.0, 81.0]
    low, high = [1.0, 1.1, 1.2, 1.1], [9.0, 9.1, 9.3, 9.5]
    lost = [record("lion", seed=i, status="diverged") for i in (4, 5)]
    records = cell("lion", good, low) + lost + cell("adam", [*bad, 81.0, 82.0], [*high, 9.0, 9.0])
    found, section = answered(records, "adam")
    assert found.outcome[0].p < 1e-3
    assert found.outcome[0].lost == (4, 5)
    assert found.outcome[0].verdict == found.flatness[0].verdict == "can't tell"
    said = lines(found, section.outcome)
    assert said[3].endswith(": can't tell, since lion came to no end with seeds 4, 5")
    # nor is the other one, and it is said which of its runs were lost
    turned = [
        dataclasses.replace(r, optimizer={"lion": "adam", "adam": "lion"}[r.optimizer])
        for r in records
    ]
    found, section = answered(turned, "adam")
    assert found.outcome[0].reference_lost == (4, 5)
    assert found.outcome[0].verdict == found.flatness[0].verdict == "can't tell"
    assert [line.split("/")[2:4][0] for line in found.lost] == ["adam", "adam"]


def test_a_row_that_lost_seeds_can_still_be_worse():
    lost = [record("lion", seed=4, status="diverged")]
    ours = cell("lion", [80.0, 81.5, 82.0, 81.0]) + lost
    found, _ = answered(ours + cell("adam", [90.0, 91.0, 92.0, 91.0, 90.0]), "adam")
    assert found.outcome[0].verdict == "worse"


def test_a_seed_that_one_row_was_not_given_is_not_lost():
    ours = cell("lion", [90.0, 91.0, 92.0, 91.0])
    found, _ = answered(ours + cell("adam", [80.0, 81.5, 82.0, 81.0, 80.0, 81.0]), "adam")
    assert (found.outcome[0].lost, found.outcome[0].verdict) == ((), "better")


def test_two_questions_about_the_same_rows_are_one_test(normal):
    records = [r for row, (a, e) in normal.items() for r in cell(row, a.tolist(), e.tolist())]
    once = answered(records, "adam", "sgd")[0]
    twice = answered(records, "adam", "sgd", "adam")[0]
    assert [c.p for c in twice.outcome] == [c.p for c in (*once.outcome, once.outcome[0])]
    assert twice.outcome[0].detectable == once.outcome[0].detectable


def test_rows_without_a_count_of_gradients_are_compared_at_equal_epochs_alone():
    digits = load("digits")
    records = [record(row, gradient_evaluations=0) for row in ("sgd", "sgd+sam")]
    asked = questions_of(digits, digits, "sgd+sam", ["sgd"], ["resnet18"], records)
    assert asked == (
        digits,
        (),
        [Question("resnet18", "sgd+sam", "sgd", "equal epochs", "sgd")],
    )


def test_every_measure_is_compared():
    def runs(row, factor):
        return [
            dataclasses.replace(
                r, sharpness={**r.sharpness, "hessian_trace": factor * (9.0 + r.seed)}
            )
            for r in cell(row, [90.0, 91.0, 92.0])
        ]

    found, section = answered(runs("lion", 1.0) + runs("adam", 2.0), "adam")
    assert {c.measure for c in found.flatness} == {EIGENVALUE}
    trace = next(c for c in found.other_flatness if c.measure == "hessian_trace")
    assert math.exp(-trace.gain) == pytest.approx(0.5)
    assert any(
        "lion has 0.5 × adam's trace of the Hessian" in x
        for x in flatness_lines(found, section.outcome)
    )


def test_equal_gains_are_no_certainty():
    ours = [100 * (h + 4) / 360 for h in (332, 334, 337)]
    theirs = [100 * h / 360 for h in (332, 334, 337)]
    found, section = answered(cell("lion", ours) + cell("adam", theirs), "adam")
    assert (found.outcome[0].p, found.outcome[0].verdict) == (None, "can't tell")
    assert "no test of 3 seeds" in lines(found, section.outcome)[1]


def test_one_seed_or_none_in_common_cannot_tell():
    assert answered(cell("lion", [90]) + cell("adam", [90]), "adam")[0].outcome[0].verdict == (
        "can't tell"
    )
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
    found, section = answered(
        cell("lion", [90, 91, 92, 90], [1.0, -1.0, 1.1, 1.2])
        + cell("adam", [90, 90, 91, 91], [30.0, 31.0, 30.0, 30.0]),
        "adam",
    )
    assert (found.flatness[0].seeds, found.flatness[0].unmeasured) == ((0, 2, 3), (1,))
    assert found.flatness[0].p < 0.05  # but the one that is left out might be anything
    assert found.flatness[0].verdict == "can't tell"
    assert lines(found, section.outcome)[3].endswith("since seeds 1 have no value above 0")


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
        "lion",
        [*asked("adam"), Question("resnet18", "lion-2x", "adam", "equal gradients", "adam")],
    )
    assert require(found, "adam") == "better-than=adam: resnet18, equal gradients: the same"
    found = answer(section, "lion", asked("adam"))
    assert require(found, "adam") is None
    assert require(found, "sgd") == "better-than=sgd: it was not compared"


# --- how often it is wrong: docs/answers.md has the rates over more tables


@pytest.mark.parametrize("seeds", [3, 6])
def test_what_is_no_better_is_seldom_called_better(seeds):
    tables = 150
    rates = answers.alarms(answers.spreads(), seeds, tables)
    # 5 % for both words of a measure; five standard errors of a rate of 2.5 %
    limit = 0.025 + 5 * math.sqrt(0.025 * 0.975 / tables)
    assert max(rates.values()) < limit


def test_the_gain_that_would_have_shown_does():
    of = answers.spreads()
    assert answers.power(of, 6, 60, answers.shown_gain(of, 6)) == pytest.approx(0.9, abs=0.15)


def test_what_is_much_worse_is_called_worse():
    of = answers.spreads()
    found = answers.answers(of, 6, 20, gain=-4 * answers.shown_gain(of, 6))
    assert all(c.verdict == "worse" for a in found for c in a.of("adam"))


def test_the_rates_that_are_stated_are_at_most_five_percent():
    page = (ROOT / "docs" / "answers.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| +\d+ \| ([^|]*%) .*\|$", page, re.MULTILINE)
    assert f"{answers.GRIDS:,} tables" in page
    assert answers.GRIDS >= 2000
    assert len(rows) == len(answers.SEEDS)
    assert all(float(rate.removesuffix(" %")) <= 5 for rate in rows)

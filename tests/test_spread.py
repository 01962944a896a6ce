import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from flatbench.gate.limits import Limit, chance
from flatbench.gate.scales import LEAST_STD, Scaling, scaling_of
from flatbench.gate.spread import PRIOR, Spread, moderated, pooled, spread_of
from flatbench.protocols.reading import load


def test_the_pooled_spread_is_that_within_groups():
    groups = [[1.0, 3.0], [10.0, 10.0, 13.0], [99.0]]
    assert pooled(map(spread_of, groups)) == Spread(pytest.approx(((2 + 6) / 3) ** 0.5), 3)
    assert pooled(map(spread_of, [[1.0], []])) is None
    third = 1 / 3 + 1e-17
    assert pooled([spread_of([third] * 7)]).std == 0  # not what rounding leaves of a mean


def test_a_cell_with_few_seeds_borrows_and_one_with_many_does_not():
    others = Spread(2.0, 14)
    assert moderated(Spread(1.0, 2), others) == Spread(
        pytest.approx(((2 * 1 + PRIOR * 4) / (2 + PRIOR)) ** 0.5), 2 + PRIOR
    )
    assert moderated(Spread(1.0, 9), others) == Spread(1.0, 9)
    assert moderated(None, others) == Spread(2.0, PRIOR)
    assert moderated(None, Spread(2.0, 1)) == Spread(2.0, 1)  # no more than there is
    assert moderated(Spread(1.0, 2), None) == Spread(1.0, 2)
    assert moderated(None, None) is None


def test_the_baseline_alone_chooses_the_scale():
    accuracy, sharpness = "test_accuracy", "sam_sharpness"
    assert scaling_of(accuracy, [90.0, 99.9]) == Scaling(accuracy, "log-error")
    # 356, 357 and 360 of 360 examples: a step is one of them
    near = [100 * h / 360 for h in (356, 360, 357, 360)]
    assert scaling_of(accuracy, near) == Scaling(accuracy, "log-error", pytest.approx(100 / 360))
    assert scaling_of(accuracy, [100.0, 100.0]) == Scaling(accuracy, "linear")
    assert scaling_of(sharpness, [0.1, 3.0]) == Scaling(sharpness, "log")
    assert scaling_of(sharpness, [0.0, 3.0]) == Scaling(sharpness, "linear")
    assert scaling_of(accuracy, near).least_std == LEAST_STD


@pytest.mark.parametrize(
    ("scaling", "values", "best"),
    [
        (Scaling("test_accuracy", "log-error"), [0.0, 50.0, 99.9], 100.0),
        (Scaling("test_accuracy", "log-error", 0.28), [0.0, 99.9, 100.0], 100.28),
        (Scaling("sam_sharpness", "log"), [5.0, 0.1], -1.0),
        (Scaling("test_score", "linear"), [-5.0, 0.1], None),
        (Scaling("sam_sharpness", "linear"), [5.0, 0.0], None),
    ],
)
def test_a_scale_takes_values_to_points_and_back_and_knows_the_worse_side(scaling, values, best):
    points = scaling.points(values)
    assert [scaling.value(point) for point in points] == pytest.approx(values)
    turned = [scaling.worse * point for point in points]
    assert turned == sorted(turned, reverse=True)  # from the worst to the best
    if best is not None:
        (point,) = scaling.points([best])
        assert scaling.worse * point == -float("inf")


def limit(scale="log-error", measure="test_accuracy", std=0.2, **fields):
    scaling = Scaling(measure, scale)
    (mean,) = scaling.points([fields.pop("middle", 90.0)])
    return Limit(scaling, mean, std, 10, 3, 0.99, **fields)


@hypothesis.given(
    limit=st.sampled_from([limit(), limit(std=0.01), limit("log", "trace", 0.3, middle=2.0)]),
    values=st.lists(st.floats(0, 100), min_size=2, max_size=3),
    better=st.floats(0, 100),
)
def test_a_better_value_never_makes_a_worse_mean(limit, values, better):
    sign = 1 if limit.scaling.measure == "test_accuracy" else -1
    means = [
        limit.scaling.worse * limit.mean_of([first, *values[1:]])
        for first in (values[0], min(values[0] + sign * better, 100))
    ]
    assert means[1] <= means[0]
    assert all(np.isfinite(means))


def test_guessing_is_known_of_flatbenchs_own_protocols():
    assert chance("digits", load("digits").common_hash()) == 10
    assert chance("digits", "another content") is None
    assert chance("mine", load("digits").common_hash()) is None


def test_what_checks_nothing_says_why():
    assert limit().blind is None
    assert "half of it be lost" in limit(std=1.0).blind
    assert limit(middle=80.0, std=0.5, chance=50.0).blind == (
        "its limit 49.38 is no better than guessing, 50"
    )
    assert limit(middle=80.0, std=0.5, chance=10.0).blind is None
    # unknown classes: as few as leave the baseline better than guessing
    assert "no better than guessing, 50" in limit(middle=80.0, std=0.5).blind
    assert "no better than guessing, 33.33" in limit(middle=40.0, std=0.1).blind
    assert limit("log", "trace", 2.0, middle=2.0).blind == (
        "it could grow from 2 to 82.08, more than 10-fold"
    )
    assert limit("log", "trace", 0.5, middle=2.0).blind is None
    assert limit("linear", "test_score", 0.5, middle=2.0).blind is None
    assert "half of it be lost" in limit("linear", "test_score", 1.0, middle=1.0).blind
    assert "cannot tell the spread" in limit(std=None).blind


def test_a_limit_finds_what_it_says_nine_times_out_of_ten():
    random = np.random.default_rng(0)
    for made in (limit(), limit("log", "peak_memory", 0.01, middle=1e9, margin=0.05)):
        (found,) = made.scaling.points([made.found])
        rate = 0
        for _ in range(1000):
            baseline = random.normal(made.mean, made.std, made.n)
            drawn = Limit(
                made.scaling,
                float(baseline.mean()),
                float(baseline.std(ddof=1)),
                made.n,
                made.new,
                made.level,
                margin=made.margin,
            )
            now = [made.scaling.value(p) for p in random.normal(found, made.std, made.new)]
            rate += not drawn.keeps(now)
        assert rate / 1000 == pytest.approx(0.9, abs=0.05)

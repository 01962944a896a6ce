import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from flatbench import stats

VALUES = [88.1, 90.4, 89.2, 87.7, 91.0]


def test_summary_of_a_table_cell_is_mean_and_sample_std():
    s = stats.summary(VALUES)
    assert (s.n, s.mean, s.std) == (
        5,
        pytest.approx(np.mean(VALUES)),
        pytest.approx(np.sqrt(reference.tvar(VALUES))),
    )


def test_one_value_has_no_spread_and_none_has_no_mean():
    assert stats.summary([3.0]) == stats.Summary(1, 3.0, None)
    assert stats.summary([]) == stats.Summary(0, None, None)
    assert stats.t_interval([3.0]) is None


def test_t_interval_is_scipys():
    expected = reference.ttest_1samp(VALUES, 0).confidence_interval(0.9)
    found = stats.t_interval(VALUES, 0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_prediction_bound_of_a_table_in_print():
    # Hahn & Meeker's factor for n = 5, one new value, 95 %: t(0.95, 4) sqrt(1 + 1/5) = 2.335
    mean, std = np.mean(VALUES), np.std(VALUES, ddof=1)
    assert stats.prediction_bound(VALUES, 0.95, "upper") == pytest.approx(
        mean + 2.335 * std, abs=2e-3
    )
    with pytest.raises(ValueError, match="two"):
        stats.prediction_bound([1.0], 0.95, "upper")


@pytest.mark.parametrize("new", [1, 3])
@pytest.mark.parametrize("side", ["lower", "upper"])
def test_prediction_bound_keeps_its_level(new, side):
    """Simulated: of 4,000 baselines the bound holds for the next mean as often as it says."""
    random = np.random.default_rng(7)
    kept = 0
    for _ in range(4000):
        bound = stats.prediction_bound(random.normal(5, 2, 6).tolist(), 0.9, side, new)
        mean = random.normal(5, 2, new).mean()
        kept += mean >= bound if side == "lower" else mean <= bound
    # 5 standard errors of a binomial share of 4,000
    assert kept / 4000 == pytest.approx(0.9, abs=5 * np.sqrt(0.9 * 0.1 / 4000))


def test_paired_is_scipys_paired_t_and_exact_signed_rank():
    random = np.random.default_rng(3)
    a, b = random.normal(90, 1, 8), random.normal(89, 1, 8)
    found = stats.paired((a - b).tolist())
    t = reference.ttest_rel(a, b)
    interval = t.confidence_interval(0.95)
    assert found.n == 8
    assert found.t_p == pytest.approx(t.pvalue)
    assert (found.interval.low, found.interval.high) == pytest.approx((interval.low, interval.high))
    assert found.wilcoxon_p == pytest.approx(reference.wilcoxon(a, b, method="exact").pvalue)


def test_signed_rank_is_exact_with_ties_too():
    # 6 differences with tied sizes: of the 2^6 sign patterns, 2 are as far out as all positive
    assert stats.paired([1.0, 1.0, 2.0, 2.0, 3.0, 3.0]).wilcoxon_p == pytest.approx(2 / 64)


def test_signed_rank_of_many_pairs_is_the_approximation():
    random = np.random.default_rng(3)
    differences = random.normal(0.3, 1, 51)
    expected = reference.wilcoxon(differences, method="asymptotic").pvalue
    assert stats.paired(differences.tolist()).wilcoxon_p == pytest.approx(expected)


def test_few_pairs_have_no_test_they_cannot_pass():
    assert stats.paired([]) is None
    assert stats.paired([2.0]) == stats.Paired(1, 2.0, None, None, None, None)
    assert stats.paired([1.0, 2.0, 3.0, 4.0, 6.0]).wilcoxon_p is None


def test_equal_differences_are_not_certainty():
    assert stats.paired([2.0, 2.0, 2.0]) == stats.Paired(3, 2.0, None, None, None, None)


HITS = (332, 334, 337)


def test_differences_that_are_equal_but_for_rounding_are_not_certainty():
    differences = [100 * (h + 4) / 360 - 100 * h / 360 for h in HITS]
    assert len(set(differences)) > 1  # rounding has told them apart
    found = stats.paired(differences)
    assert (found.n, found.t_p, found.interval, found.effect) == (3, None, None, None)


def test_rounding_breaks_no_ties():
    hits = [316, 322, 332, 319, 319, 307, 326, 330]
    more = [4, 3, 1, 6, -3, 1, 7, 5]
    found = stats.paired(
        [100 * (h + m) / 360 - 100 * h / 360 for h, m in zip(hits, more, strict=True)]
    )
    exact = stats.paired([float(m) for m in more])
    assert found.wilcoxon_p == exact.wilcoxon_p == pytest.approx(0.046875)
    assert found.t_p == pytest.approx(exact.t_p)


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=12), st.integers(100, 10_000))
def test_counts_over_any_number_of_examples_tie_as_counts_do(counts, examples):
    rates = [100 * (777 + c) / examples - 100 * 777 / examples for c in counts]
    found = stats.without_rounding(rates)
    for a, b in itertools.combinations(range(len(counts)), 2):
        assert (found[a] == found[b]) == (counts[a] == counts[b])
        assert (abs(found[a]) == abs(found[b])) == (abs(counts[a]) == abs(counts[b]))


@pytest.mark.parametrize(("n", "alpha"), [(3, 0.05), (6, 0.05), (6, 0.05 / 8), (20, 0.05)])
def test_the_detectable_gain_is_found_nine_times_out_of_ten(n, alpha):
    gain = stats.detectable_gain(2.0, n, alpha)
    random = np.random.default_rng(0)
    samples = random.normal(gain, 2.0, (20_000, n))
    p = reference.ttest_1samp(samples, 0, axis=1).pvalue
    rate = np.mean((p < alpha) & (samples.mean(1) > 0))
    assert rate == pytest.approx(0.9, abs=5 * np.sqrt(0.9 * 0.1 / 20_000))


def test_one_pair_detects_nothing():
    assert stats.detectable_gain(2.0, 1) is None


def test_effect_size_is_unbiased():
    """Simulated: over 20,000 samples of 5, Hedges' g averages to the true mean / std of 0.8."""
    random = np.random.default_rng(5)
    samples = random.normal(0.8, 1.0, (20_000, 5))
    biased = samples.mean(1) / samples.std(1, ddof=1)
    correction = stats.paired(samples[0].tolist()).effect / biased[0]
    assert np.mean(biased) * correction == pytest.approx(0.8, abs=0.02)
    assert np.mean(biased) > 0.95  # what the correction is for


def test_two_pairs_have_no_effect_size():
    """Its correction would be 0, and 0.00 would read as no effect."""
    found = stats.paired([1.0, 2.0])
    assert found.effect is None
    assert found.t_p is not None
    assert stats.paired([1.0, 2.0, 4.0]).effect > 0


@pytest.mark.parametrize("p_values", [[0.01, 0.04, 0.03, 0.005], [0.5, 0.6], [0.2], []])
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values):
    adjusted = stats.holm(p_values)
    for alpha in (0.01, 0.02, 0.03, 0.05, 0.1, 0.5, 0.9):
        rejected = set()
        for step, i in enumerate(np.argsort(p_values)):
            if p_values[i] > alpha / (len(p_values) - step):
                break
            rejected.add(int(i))
        assert {i for i, p in enumerate(adjusted) if p <= alpha + 1e-12} == rejected


def test_kendall_is_scipys_with_ties():
    random = np.random.default_rng(0)
    x, y = random.integers(0, 6, 40).tolist(), random.integers(0, 6, 40).tolist()
    found = stats.kendall(x, y, range(40))
    assert found.tau == pytest.approx(reference.kendalltau(x, y).statistic)
    assert (found.n, found.clusters) == (40, 40)


def _tau_of_pairs(x, y, pairs):
    dx, dy = (np.array([np.sign(v[i] - v[j]) for i, j in pairs]) for v in (x, y))
    return (dx * dy).sum() / np.sqrt(np.count_nonzero(dx) * np.count_nonzero(dy))


def test_kendall_counts_clusters_of_hundreds_of_runs():
    """More agree than a sum of 8 bits holds."""
    runs, clusters = range(1200), [i // 600 for i in range(1200)]
    assert stats.kendall(runs, runs, clusters).tau == 1
    assert stats.kendall(runs, [-run for run in runs], clusters).tau == -1


def test_kendalls_interval_is_the_bootstrap_of_whole_clusters():
    """The quadratic forms equal τ counted pair by pair in the samples they stand for."""
    random = np.random.default_rng(1)
    clusters = np.repeat(np.arange(6), [1, 2, 3, 4, 2, 3])
    x = random.normal(size=15).round(1)
    y = (x + random.normal(size=15)).round(1)

    def tau(chosen):
        pairs = [(i, j) for i in chosen for j in chosen if clusters[i] < clusters[j]]
        return _tau_of_pairs(x, y, pairs)

    drawn = np.random.default_rng(0).multinomial(6, np.full(6, 1 / 6), 200)
    taus = [
        tau([i for g in range(6) for _ in range(counts[g]) for i in np.flatnonzero(clusters == g)])
        for counts in drawn
    ]
    found = stats.kendall(x.tolist(), y.tolist(), clusters.tolist(), resamples=200)
    low, high = np.nanquantile(taus, [0.025, 0.975])
    assert found.tau == pytest.approx(tau(range(15)))
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high))


def test_kendalls_interval_covers_the_truth():
    """Simulated: 300 normal samples of correlation 0.5, whose τ is 2/π asin 0.5 = 1/3."""
    random = np.random.default_rng(2)
    covered = 0
    for _ in range(300):
        x = random.normal(size=40)
        y = 0.5 * x + np.sqrt(0.75) * random.normal(size=40)
        interval = stats.kendall(x, y, range(40), resamples=400).interval
        covered += interval.low <= 1 / 3 <= interval.high
    assert 0.90 <= covered / 300 <= 0.99


def test_kendall_says_nothing_of_nothing():
    assert stats.kendall([1.0], [2.0], [0]) is None
    assert stats.kendall([1.0, 1.0, 1.0], [1.0, 2.0, 3.0], [0, 1, 2]) is None
    assert stats.kendall([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [0, 1, 2]).interval is None


def test_kendall_counts_pairs_within_strata_only():
    x, y = [1.0, 2.0, 3.0, 10.0, 20.0, 30.0], [6.0, 5.0, 4.0, 30.0, 20.0, 10.0]
    assert stats.kendall(x, y, range(6)).tau == pytest.approx(3 / 15)
    found = stats.kendall(x, y, range(6), strata=[0, 0, 0, 1, 1, 1])
    assert found.tau == -1
    assert found.interval is None  # resampling full agreement says nothing

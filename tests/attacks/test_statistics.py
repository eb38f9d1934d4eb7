"""Intervals and p-values of tables: against references, against chance, and at their ends."""

import numpy as np
import pytest
from scipy import stats

from attacks.scores import auc, clopper_pearson
from attacks.statistics import (
    Counted,
    area,
    holm,
    kl_divergence,
    mean_gain,
    share,
    total_variation,
)


def each(trials):
    return np.arange(trials, dtype=np.int64)


def test_the_interval_of_a_mean_is_the_bca_interval_of_scipy():
    draw = np.random.default_rng(0)
    gains = draw.exponential(1.0, 60)
    ours = mean_gain(gains, each(60), np.random.default_rng(1)).interval()
    reference = stats.bootstrap(
        (gains,), np.mean, method="BCa", n_resamples=9_999, rng=np.random.default_rng(2)
    ).confidence_interval
    assert ours.low == pytest.approx(reference.low, abs=0.02)
    assert ours.high == pytest.approx(reference.high, abs=0.02)


def test_an_interval_ends_where_its_p_value_is_its_error():
    draw = np.random.default_rng(3)
    found = mean_gain(draw.gamma(2.0, 1.0, 50) - 1, each(50), np.random.default_rng(4))
    interval = found.interval(0.95)
    assert found.p_at_most(interval.low) == pytest.approx(0.025, abs=0.003)
    assert found.p_at_least(interval.high) == pytest.approx(0.025, abs=0.003)
    assert found.p_at_most(interval.low - 1) < 0.001 < 0.999 < found.p_at_most(interval.high + 1)


def test_clusters_are_resampled_as_wholes():
    """Ten copies of each of 20 values tell no more than the 20 do."""
    values = np.random.default_rng(5).normal(0.3, 1, 20)
    alone = mean_gain(values, each(20), np.random.default_rng(6)).interval()
    clusters = np.repeat(each(20), 10)
    copied = mean_gain(np.repeat(values, 10), clusters, np.random.default_rng(6)).interval()
    pretended = mean_gain(np.repeat(values, 10), each(200), np.random.default_rng(6)).interval()
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high))
    assert pretended.high - pretended.low < 0.5 * (alone.high - alone.low)


def test_a_mean_of_no_effect_is_found_above_zero_as_rarely_as_promised():
    """300 samples of 40 without any effect: at most 20 of them at an error of 2.5 %."""
    draw = np.random.default_rng(7)
    false = sum(
        mean_gain(draw.normal(0, 1, 40), each(40), draw).p_at_most(0) <= 0.025 for _ in range(300)
    )
    assert false <= stats.binom.isf(1e-4, 300, 0.025)


@pytest.mark.parametrize("trials", [8, 20])
def test_an_effect_at_the_margin_is_missed_as_rarely_as_promised(trials):
    """300 small samples with an effect of 0.5: at an error of 2.5 % its absence is rarely found."""
    draw = np.random.default_rng(14)
    missed = sum(
        mean_gain(draw.normal(0.5, 1, trials), each(trials), draw).p_at_least(0.5) <= 0.025
        for _ in range(300)
    )
    assert missed <= stats.binom.isf(1e-3, 300, 0.025)


def test_a_handful_of_clusters_proves_nothing():
    assert mean_gain(np.ones(5), each(5), np.random.default_rng(0)).p_at_most(0) == 0.5**5
    assert mean_gain(np.ones(1), each(1), np.random.default_rng(0)).p_at_most(0) == 0.5


def test_scores_that_are_all_alike_have_an_interval_without_width():
    found = mean_gain(np.full(30, 0.1), each(30), np.random.default_rng(0))
    assert (found.interval().low, found.interval().high) == (found.estimate, found.estimate)
    assert found.p_at_most(0) < 1e-3
    assert found.p_at_least(0) == 1
    assert found.p_at_least(0.2) < 1e-3
    assert found.power(0.1, 0.025) is None


def test_an_area_is_that_of_mann_and_whitney_and_its_interval_holds_it():
    draw = np.random.default_rng(8)
    members = draw.random(300) < 0.5
    scores = draw.normal(0, 1, 300) + members
    found = area(scores, members, each(300), np.random.default_rng(9))
    assert found.estimate + 0.5 == pytest.approx(auc(scores[members], scores[~members]))
    delong = 0.26 / np.sqrt(150)  # binormal area of 0.76: about the standard error by DeLong
    interval = found.interval()
    assert (interval.high - interval.low) / 2 == pytest.approx(1.96 * delong * 1.3, rel=0.35)
    assert found.interval().low < stats.norm.cdf(1 / np.sqrt(2)) - 0.5 < found.interval().high


def test_an_area_counts_ties_half_and_is_symmetric():
    scores = np.array([0.0, 0.0, 1.0, 1.0])
    members = np.array([True, False, True, False])
    assert area(scores, members, each(4), np.random.default_rng(0)).estimate == 0
    turned = area(-scores, ~members, each(4), np.random.default_rng(0)).estimate
    assert turned == area(scores, members, each(4), np.random.default_rng(0)).estimate


def test_more_clusters_than_are_resampled_are_joined():
    draw = np.random.default_rng(10)
    gains = draw.normal(0.1, 1, 5_000)
    found = mean_gain(gains, each(5_000), draw)
    assert found.clusters == 1_000
    width = found.interval().high - found.interval().low
    assert width == pytest.approx(2 * 1.96 / np.sqrt(5_000), rel=0.1)


@pytest.mark.parametrize(("hits", "trials"), [(0, 30), (3, 30), (30, 30)])
def test_rates_are_those_of_clopper_and_pearson(hits, trials):
    flags = (np.arange(trials) < hits).astype(float)
    found, exact = share(flags, 0.1, each(trials)), clopper_pearson(hits, trials)
    assert found.interval().low == pytest.approx(exact.low - 0.1)
    assert found.interval().high == pytest.approx(exact.high - 0.1)
    test = stats.binomtest(hits, trials, 0.1, alternative="greater")
    assert found.p_at_most(0) == pytest.approx(test.pvalue)
    less = stats.binomtest(hits, trials, 0.25, alternative="less")
    assert found.p_at_least(0.15) == pytest.approx(less.pvalue)


def test_a_rate_counts_a_cluster_once():
    flags = np.repeat([1.0, 0.0, 1.0, 1.0], 25)
    found = share(flags, 0.5, np.repeat(each(4), 25))
    assert (found.clusters, found.rate) == (4, 0.75)
    assert found.interval().low < -0.2


def test_power_is_how_often_such_an_effect_is_found():
    counted = Counted(0.1, 0.1, 60)
    draw = np.random.default_rng(11)
    found = np.mean(
        [Counted(draw.binomial(60, 0.3) / 60, 0.1, 60).p_at_most(0) <= 0.025 for _ in range(2_000)]
    )
    assert counted.power(0.2, 0.025) == pytest.approx(found, abs=0.04)
    gains = mean_gain(np.random.default_rng(12).normal(0, 1, 100), each(100), draw)
    assert gains.power(0.1 * 2.8, 0.025) == pytest.approx(0.8, abs=0.07)


def test_holm_is_that_of_the_step_down_table():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_divergences_are_those_of_scipy_and_zero_for_the_truth():
    draw = np.random.default_rng(13)
    true, guess = draw.dirichlet(np.ones(5), 7), draw.dirichlet(np.ones(5), 7)
    assert kl_divergence(true, guess) == pytest.approx(stats.entropy(true, guess, axis=1))
    assert total_variation(true, guess) == pytest.approx(np.abs(true - guess).sum(1) / 2)
    assert kl_divergence(true, true) == pytest.approx(np.zeros(7))
    assert kl_divergence(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == np.inf

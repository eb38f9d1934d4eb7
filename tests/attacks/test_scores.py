import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score, roc_curve

from attacks.scores import Interval, auc, bootstrap, clopper_pearson, tpr_at_fpr
from protocols.errors import ConfigError


def samples(seed, ties=False):
    draw = np.random.default_rng(seed)
    inside, outside = (
        draw.normal(0.7, 1, draw.integers(2, 60)),
        draw.normal(0, 1, draw.integers(2, 60)),
    )
    return (inside.round(), outside.round()) if ties else (inside, outside)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_areas_and_rates_agree_with_scikit_learn(seed, ties):
    inside, outside = samples(seed, ties)
    labels = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
    scores = np.r_[inside, outside]
    assert auc(inside, outside) == pytest.approx(roc_auc_score(labels, scores))
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    for rate in (0.0, 0.01, 0.1, 0.5, 1.0):
        assert tpr_at_fpr(inside, outside, rate) == pytest.approx(true[false <= rate + 1e-9].max())


def test_chance_perfection_and_their_opposite():
    assert auc([1, 1], [1, 1, 1]) == 0.5
    assert auc([2, 3], [0, 1]) == 1.0
    assert auc([0, 1], [2, 3]) == 0.0
    assert tpr_at_fpr([2, 3], [0, 1], 0.0) == 1.0
    assert tpr_at_fpr([1, 1], [1, 1], 0.0) == 0.0
    assert tpr_at_fpr([0], [1], 1.0) == 1.0


@pytest.mark.parametrize("trials", [1, 7, 50])
def test_proportions_agree_with_scipys_exact_interval(trials):
    for successes in range(trials + 1):
        ours = clopper_pearson(successes, trials)
        exact = binomtest(successes, trials).proportion_ci(0.95, method="exact")
        assert (ours.low, ours.high) == pytest.approx((exact.low, exact.high))
        assert successes / trials in ours


def test_the_exact_interval_covers_at_least_its_level():
    draw = np.random.default_rng(0)
    hits = [0.03 in clopper_pearson(int(draw.binomial(80, 0.03)), 80) for _ in range(2000)]
    assert np.mean(hits) > 0.95


def test_bootstrap_intervals_cover_about_their_level_and_repeat_with_the_seed():
    draw, hits = np.random.default_rng(1), 0
    for _ in range(150):
        sample = draw.normal(3, 2, 60)
        interval = bootstrap(lambda x: float(x.mean()), sample, random=draw, repeats=200)
        hits += 3 in interval
    assert 0.86 < hits / 150 <= 1
    inside, outside = samples(5)
    twice = [bootstrap(auc, inside, outside, random=np.random.default_rng(9)) for _ in range(2)]
    assert twice[0] == twice[1]
    assert auc(inside, outside) in twice[0]
    assert twice[0].low < twice[0].high


def test_samples_are_resampled_apart():
    def sizes(first, second):
        assert (len(first), len(second)) == (3, 5)
        assert set(first) <= {1, 2, 3}
        return 0.0

    interval = bootstrap(
        sizes, [1, 2, 3], [4, 5, 6, 7, 8], random=np.random.default_rng(0), repeats=20
    )
    assert interval == Interval(0.0, 0.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: auc([], [1]),
        lambda: auc([1], []),
        lambda: auc([np.nan], [1]),
        lambda: auc([np.inf], [1]),
        lambda: auc([[1, 2]], [1]),
        lambda: tpr_at_fpr([1], [1], -0.1),
        lambda: tpr_at_fpr([1], [1], 1.1),
        lambda: clopper_pearson(2, 1),
        lambda: clopper_pearson(-1, 1),
        lambda: clopper_pearson(0, 0),
        lambda: clopper_pearson(0, 1, 1.0),
        lambda: bootstrap(len, random=np.random.default_rng(0)),
        lambda: bootstrap(len, [], random=np.random.default_rng(0)),
    ],
)
def test_what_has_no_score_is_refused(call):
    with pytest.raises(ConfigError):
        call()

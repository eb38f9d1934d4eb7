import dataclasses

import numpy as np
import pytest
from dp_accounting import get_epsilon_gaussian
from scipy.special import ndtr, ndtri
from scipy.stats import binom

from attacks.auditing import DEFECTS, Audit, Claim, Explicit, Part, Split, audit, count, power
from attacks.leakage_bounds import (
    Counts,
    OneRun,
    OneRunGaussian,
    TwoWorldGaussian,
    TwoWorldRates,
    gaussian_delta,
    gaussian_epsilon,
)
from attacks.scores import clopper_pearson
from protocols.errors import ConfigError

MU, DELTA = 1.6660, 1e-5
CLAIM = Claim(
    epsilon=8.0, delta=DELTA, mu=MU, relation="replace_one", unit="patient", adversary="server"
)
METHODS = [TwoWorldGaussian(), TwoWorldRates(), OneRun(), OneRunGaussian()]


def scores(draw, mu, trials, factor=1.0):
    return draw.normal(mu, factor, trials), draw.normal(0, factor, trials)


def never_above(flags, trials, rate):
    """Whether so many flags are explained by a rate of at most `rate`, at one in a million."""
    return flags <= binom.isf(1e-6, trials, rate)


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "delta", "steinke", "mahloujifar"),
    [
        (1000, 100, 90, 1e-5, 1.6261436787042223, 2.4564050672094146),
        (2000, 200, 190, 1e-5, 2.3893036644676267, 3.594251253287859),
        (2000, 1000, 600, 1e-5, 0.2969850224531058, 0.506326884759253),
        (500, 60, 60, 1e-6, 2.9706837362068024, 5.416396010959591),
        (500, 100, 80, 1e-3, 0.6910849607316661, 1.036745307348484),
        (100, 20, 10, 1e-5, 0.0, 0.0),
    ],
)
def test_one_run_bounds_agree_with_jax_privacy(
    canaries, guesses, correct, delta, steinke, mahloujifar
):
    """Golden: jax_privacy 2.0.0, auditing._epsilon_one_run and _epsilon_one_run_fdp, 95 %."""
    counts = Counts(correct, canaries // 2, guesses - correct, canaries // 2)
    assert OneRun().bound(counts, delta, 0.95) == pytest.approx(steinke, abs=2e-6)
    mu = OneRunGaussian().bound(counts, delta, 0.95)
    assert gaussian_epsilon(mu, delta) == pytest.approx(mahloujifar, abs=2e-6)


@pytest.mark.parametrize(
    ("counts", "delta", "rates", "gaussian"),
    [
        (Counts(880, 1000, 120, 1000), 1e-5, 1.8006802270985653, 10.793764398217478),
        (Counts(500, 1000, 1, 1000), 1e-5, 4.4342150970909655, 12.706740032052315),
        (Counts(1900, 2000, 500, 1500), 1e-3, 2.3609515766743128, 7.096606976787253),
        (Counts(50, 50, 0, 50), 0.0, 2.5695846830164917, None),
    ],
)
def test_two_world_bounds_agree_with_jax_privacy(counts, delta, rates, gaussian):
    """Golden: jax_privacy 2.0.0, epsilon_clopper_pearson (explicit, two-sided, 95 %) and
    epsilon_from_gdp at 90 %, which divides its error by six here (three thresholds, two rates)."""
    assert TwoWorldRates().bound(counts, delta, 0.95) == pytest.approx(rates, abs=2e-6)
    if gaussian is not None:
        mu = TwoWorldGaussian().bound(counts, delta, 1 - 2 * 0.1 / 6)
        assert gaussian_epsilon(mu, delta) == pytest.approx(gaussian, abs=2e-6)


@pytest.mark.parametrize("mu", [0.1, 0.5016, 1.0, 1.6660, 2.9055, 10.0, 50.0])
@pytest.mark.parametrize("delta", [1e-10, 1e-5, 1e-2])
def test_the_gaussian_curve_agrees_with_dp_accounting(mu, delta):
    ours = gaussian_epsilon(mu, delta)
    assert ours == pytest.approx(get_epsilon_gaussian(1 / mu, delta), rel=1e-6, abs=1e-9)
    if ours:
        assert gaussian_delta(mu, ours) == pytest.approx(delta, rel=1e-6)


def test_the_ends_of_the_gaussian_curve():
    assert gaussian_delta(0.0, 1.0) == 0.0
    assert gaussian_epsilon(0.0, 1e-5) == 0.0
    assert gaussian_epsilon(np.inf, 1e-5) == np.inf
    assert gaussian_epsilon(1e-6, 1e-5) == 0.0


@pytest.mark.parametrize("method", METHODS)
def test_a_bound_is_where_the_test_begins_to_pass(method):
    counts = Counts(180, 200, 20, 200)
    bound = method.bound(counts, DELTA, 0.95)
    assert method.rejects(counts, bound - 1e-5, DELTA, 0.95)
    assert not method.rejects(counts, bound + 1e-5, DELTA, 0.95)
    assert 0 < bound < method.point(counts, DELTA)
    assert method.bound(counts, DELTA, 0.999) < bound


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("counts", [Counts(0, 50, 0, 50), Counts(0, 50, 50, 50)])
def test_no_better_than_chance_bounds_nothing(method, counts):
    backwards = isinstance(method, TwoWorldRates) and counts.alarms
    assert method.bound(counts, 0.0, 0.95) == 0 or backwards
    assert method.point(counts, DELTA) >= 0


@pytest.mark.parametrize(("mu", "place"), [(0.0, 0.5), (0.5, 1.5), (MU, 0.8), (MU, 2.0)])
def test_a_true_value_is_refuted_less_often_than_promised(mu, place):
    """300 audits of 200 + 200 trials or 300 canaries by each method, 95 %."""
    draw = np.random.default_rng(0)
    epsilon = gaussian_epsilon(mu, DELTA)
    for method in METHODS:
        value, flags = mu if method.quantity == "mu" else epsilon, 0
        for _ in range(300):
            inside = 200 if method.paired else int(draw.binomial(300, 0.5))
            outside = 200 if method.paired else 300 - inside
            counts = count(draw.normal(mu, 1, inside), draw.normal(0, 1, outside), place)
            flags += method.rejects(counts, value, DELTA, 0.95)
        assert never_above(flags, 300, 0.05), (method.name, flags)


def false_alarms(rule, repeats=300, canaries=200):
    """Share of 95 % audits of scores that say nothing, in which `rule` refutes ε = 0."""
    draw, method, flags = np.random.default_rng(1), OneRun(), 0
    for _ in range(repeats):
        inside, outside = scores(draw, 0.0, canaries // 2)
        parts = rule.parts(inside, outside, 0.95, lambda c: c.caught - c.alarms)
        flags += any(method.rejects(p.counts, 0.0, 0.0, p.confidence) for p in parts)
    return flags / repeats


class Uncorrected(Explicit):
    """The mutant: the best of several thresholds, as if it had been the only one."""

    def parts(self, inside, outside, confidence, worth):
        for part in super().parts(inside, outside, confidence, worth):
            yield Part(part.threshold, part.counts, confidence)


def test_the_best_of_uncorrected_thresholds_would_raise_false_alarms():
    """300 audits of 200 canaries each, 30 thresholds."""
    places = tuple(np.linspace(-2, 2, 30))
    assert not never_above(300 * false_alarms(Uncorrected(places)), 300, 0.05)
    assert never_above(300 * false_alarms(Explicit(places)), 300, 0.05)
    assert never_above(300 * false_alarms(Split()), 300, 0.05)


def test_several_thresholds_share_the_error():
    inside, outside = scores(np.random.default_rng(2), 2.0, 500)
    places = (0.0, 1.0, 2.5)
    made = audit(
        inside, outside, CLAIM, method=TwoWorldGaussian(), rule=Explicit(places), confidence=0.95
    )
    singly = [
        TwoWorldGaussian().bound(count(inside, outside, place), DELTA, 1 - 0.05 / 3)
        for place in places
    ]
    assert made.bound == pytest.approx(max(singly))
    assert made.rule == "3 thresholds, Bonferroni"


def test_a_split_counts_only_what_did_not_choose():
    draw = np.random.default_rng(3)
    inside, outside = scores(draw, 1.5, 400)

    def part(inside, outside):
        worth = lambda c: TwoWorldGaussian().bound(c, DELTA, 0.95)  # noqa: E731
        (only,) = Split().parts(inside, outside, 0.95, worth)
        return only

    first = part(inside, outside)
    inside[1::2], outside[1::2] = scores(draw, 5.0, 200)
    second = part(inside, outside)
    assert first.threshold == second.threshold
    assert first.counts != second.counts
    assert second.counts == count(inside[1::2], outside[1::2], first.threshold)
    assert second.counts.inside == 200


def test_a_planned_threshold_sees_no_score_and_beats_a_bad_one():
    two = Explicit.planned(TwoWorldGaussian(), CLAIM, 4000, 0.95)
    one = Explicit.planned(OneRunGaussian(), CLAIM, 2000, 0.95)
    assert two.thresholds[0] == pytest.approx(MU / 2, abs=0.3)
    assert one.thresholds[0] > MU
    inside, outside = scores(np.random.default_rng(4), MU, 1000)
    bounds = [
        audit(inside, outside, CLAIM, method=OneRunGaussian(), rule=rule, confidence=0.95).bound
        for rule in (one, Explicit((0.0,)))
    ]
    assert bounds[0] > 1.5 * bounds[1]


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "consistent"), (0.5, "VIOLATION")])
def test_a_verdict_comes_with_its_limits(factor, verdict):
    inside, outside = scores(np.random.default_rng(5), MU, 2000, factor)
    made = audit(
        inside,
        outside,
        CLAIM,
        method=TwoWorldGaussian(),
        rule=Explicit((MU / 2,)),
        confidence=0.999,
    )
    assert made.verdict == verdict
    assert (made.trials, made.confidence, made.quantity) == (4000, 0.999, "mu")
    assert made.bound < made.point
    text = str(made)
    for said in (
        verdict,
        "ε = 8 at δ = 1e-05",
        "replace_one of one patient, against server",
        "two worlds, Gaussian DP, threshold fixed before, 4000 trials",
        "Power: noise × 0.707 1.000, noise / 2 1.000",
        "A lower bound below the claim is no evidence of privacy.",
    ):
        assert said in text
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.bound = 0.0
    assert set(made.power) == set(DEFECTS)


def test_scores_that_are_not_whitened_have_no_power():
    inside, outside = scores(np.random.default_rng(6), MU, 200)
    made: Audit = audit(
        inside,
        outside,
        CLAIM,
        method=TwoWorldRates(),
        rule=Split(),
        confidence=0.95,
        whitened=False,
    )
    assert made.power is None
    assert "Power: not computed" in str(made)
    assert made.epsilon == made.bound


def exact_power(trials, confidence, factor):
    """Two worlds at the midpoint: the probability of a violation, summed over both binomials."""
    seen = np.arange(trials + 1)
    law = binom.pmf(seen, trials, ndtr(-MU / 2 / factor))
    highs = [clopper_pearson(int(k), trials, confidence).high for k in seen]
    gains = -ndtri(np.array(highs))
    return float(np.outer(law, law)[gains[:, None] + gains[None, :] > MU].sum())


@pytest.mark.parametrize("factor", [1.0, 0.9, 0.707, 0.5])
def test_the_printed_power_is_the_exact_one(factor):
    """200 draws against the exact sum, 150 + 150 trials."""
    part = Part(MU / 2, Counts(0, 150, 0, 150), 0.95)
    exact = exact_power(150, 0.95, factor)
    printed = power(TwoWorldGaussian(), part, CLAIM, factor)
    assert printed == pytest.approx(exact, abs=4.5 * np.sqrt(exact * (1 - exact) / 200) + 1e-2)
    assert factor < 1 or exact < 0.005


def test_an_audit_that_cannot_flag_anything_says_so():
    """One run of 400 canaries never refutes ε = 8, whatever the noise."""
    part = Part(MU / 2, Counts(0, 200, 0, 200), 0.95)
    assert power(OneRun(), part, CLAIM, 0.1) == 0.0
    assert power(TwoWorldGaussian(), part, CLAIM, 0.1) == 1.0


@pytest.mark.parametrize(
    ("inside", "confidence"),
    [([], 0.95), ([1.0], 0.95), ([np.nan, 1.0], 0.95), ([[1.0, 2.0]], 0.95), ([1.0, 2.0], 1.0)],
)
def test_what_has_no_audit_is_refused(inside, confidence):
    with pytest.raises(ConfigError):
        audit(
            inside,
            [0.0, 1.0],
            CLAIM,
            method=OneRun(),
            rule=Explicit((0.0,)),
            confidence=confidence,
        )

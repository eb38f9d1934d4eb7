"""Audits of the real mechanisms. `SURE`: a false alarm in one of a million runs of a test."""

import os

import numpy as np
import pytest
from scipy.stats import binom

from attacks.auditing import Explicit, audit, count
from attacks.canaries import Group, Rounds, one_run, two_worlds
from attacks.leakage_bounds import OneRun, OneRunGaussian, TwoWorldGaussian, gaussian_epsilon
from protocols.errors import ConfigError
from protocols.noise_plan import NoisePlan
from protocols.sampler import seeded_random

DELTA, SURE = 1e-5, 1 - 1e-6


def plan(epsilon=8.5, sites="abcd", alphas=(3, 1, 2, 1), shards=3, size=2, **changes):
    """ε = 8.5 by zCDP is μ = 1.65, where the audits have most to say."""
    figures = {
        "epsilon": epsilon,
        "delta": DELTA,
        "rounds": 1,
        "alphas": dict(zip(sites, alphas, strict=True)),
        "groups": dict.fromkeys(sites, "g"),
        "colluders": 1,
        "dropouts": 1,
        "shards": dict.fromkeys(sites, shards),
        "clip_norm": 2.0,
        "size": size,
        "bits": 24,
    }
    return NoisePlan.calibrate(**figures | changes)


def group(made, victim="a", colluders="b", dropped="c", isolated=False):
    return Group(
        mechanisms=made.mechanisms,
        victim=victim,
        colluders=frozenset(colluders),
        dropped=frozenset(dropped),
        isolated=isolated,
    )


def coins(number, random=os.urandom):
    return (np.frombuffer(random(number), np.uint8) & 1).astype(bool)


def both(scores, claim, method=None):
    """The audit at 95 %, for its bound, and at `SURE`, for its verdict."""
    method, rule = method or TwoWorldGaussian(), Explicit((claim.mu / 2,))
    return [
        audit(*scores, claim, method=method, rule=rule, confidence=level) for level in (0.95, SURE)
    ]


@pytest.mark.parametrize(
    ("victim", "colluders", "dropped", "rounds"),
    [
        ("a", "", "", 1),
        ("b", "a", "d", 1),
        ("a", "bcd", "", 1),
        ("a", "b", "c", 2),
    ],
    ids=["no coalition", "a light weight", "alone", "two rounds at the limit"],
)
def test_no_coalition_learns_more_than_the_plan_says(victim, colluders, dropped, rounds):
    """Two worlds of 150 trials each; 2,000 at the limit below, 10,000 in the nightly test."""
    isolated = len(colluders) == 3
    seen = group(plan(rounds=rounds), victim, colluders, dropped, isolated)
    claim = seen.claim(rounds, DELTA)
    _, sure = both(two_worlds(seen, 150, rounds=rounds), claim)
    assert sure.verdict == "consistent", sure


def test_the_bound_comes_close_to_the_claim():
    """Two worlds of 2,000 trials each, one colluder, one dropout, weights 3, 1, 2, 1."""
    seen = group(plan())
    claim = seen.claim(1, DELTA)
    assert claim.epsilon == pytest.approx(8.5, abs=1e-6)
    assert claim.mu == pytest.approx(1.65, abs=0.01)
    usual, sure = both(two_worlds(seen, 2000), claim)
    assert sure.verdict == "consistent", sure
    assert usual.epsilon >= 0.55 * claim.epsilon, usual
    assert usual.trials == 4000
    assert usual.power["noise × 0.707"] > 0.99


def test_the_claim_of_a_coalition_is_the_plans():
    made = plan(rounds=3)
    at_limit, alone = group(made), group(made, colluders="bcd", dropped="", isolated=True)
    assert at_limit.claim(3, DELTA).epsilon == pytest.approx(made.epsilon)
    assert alone.claim(3, DELTA).epsilon == pytest.approx(made.epsilon_isolated)
    assert "1 of 4 clients, 1 dropped out" in at_limit.claim(1, DELTA).adversary


def test_more_colluders_than_planned_break_the_claim():
    """The control: 2 colluders where the plan counts on 1, so 1 share of 2; 2,000 trials each."""
    made = plan(sites="abc", alphas=(1, 1, 1), shards=1, size=1, dropouts=0)
    seen = Group(mechanisms={"a": made.mechanisms["a"]}, victim="a")
    _, sure = both(two_worlds(seen, 2000), seen.claim(1, DELTA))
    assert sure.verdict == "VIOLATION", sure


def test_scores_have_the_claimed_law():
    """Means 0 and μ, deviation 1, of 400 trials each, within five standard errors."""
    seen = group(plan())
    inside, outside = two_worlds(seen, 400)
    for scores, mean in ((inside, seen.claim(1, DELTA).mu), (outside, 0.0)):
        assert scores.mean() == pytest.approx(mean, abs=5 / np.sqrt(400))
        assert scores.std() == pytest.approx(1.0, abs=5 / np.sqrt(800))


def test_fewer_colluders_and_dropouts_see_less():
    """The planned loss of shares is real: all four shares instead of two, 400 trials each."""
    inside, outside = two_worlds(group(plan(), colluders="", dropped=""), 400)
    assert inside.std() == pytest.approx(np.sqrt(2), abs=5 * np.sqrt(2 / 800))
    assert outside.std() == pytest.approx(np.sqrt(2), abs=5 * np.sqrt(2 / 800))


def test_colluders_subtract_exactly_what_they_sent():
    """Only the victim's noise remains when all others collude: its variance, 3,000 values."""
    made = plan(size=3000)
    mechanism = made.mechanisms["a"]
    zeros = np.zeros((mechanism.shards, mechanism.size))
    seen = Rounds(group(made, colluders="bcd", dropped="")).observe(zeros)
    expected = mechanism.alpha * mechanism.sigma_share
    assert seen.std() == pytest.approx(expected, rel=5 / np.sqrt(6000))
    assert (seen % mechanism.alpha == 0).all()


@pytest.mark.parametrize("method", [OneRun(), OneRunGaussian()])
def test_one_run_of_many_canaries_stays_below_the_claim(method):
    """1,000 canaries of one release at the limit; what the better method reaches is stated."""
    seen = group(plan(shards=1000, size=1000))
    claim = seen.claim(1, DELTA)
    scores = one_run(seen, coins(1000))
    assert len(scores[0]) + len(scores[1]) == 1000
    rule = Explicit.planned(method, claim, 1000, 0.95)
    usual, sure = (
        audit(*scores, claim, method=method, rule=rule, confidence=level) for level in (0.95, SURE)
    )
    assert sure.verdict == "consistent", sure
    assert usual.epsilon > 0
    assert usual.epsilon < claim.epsilon


def test_correct_mechanisms_raise_no_false_alarm_in_one_run():
    """300 seeds of 200 canaries at ε = 1: none at `SURE`, at 95 % no more than 5 % explains."""
    made = plan(epsilon=1.0, shards=200, size=200, bits=30)
    seen = group(made)
    claim, method, usual, sure = seen.claim(1, DELTA), OneRunGaussian(), 0, 0
    (place,) = Explicit.planned(method, claim, 200, 0.95).thresholds
    for seed in range(300):
        stream = seeded_random(f"one run {seed}".encode())
        counts = count(*one_run(seen, coins(200, stream), random=stream), place)
        usual += method.rejects(counts, claim.mu, DELTA, 0.95)
        sure += method.rejects(counts, claim.mu, DELTA, SURE)
    assert sure == 0
    assert usual <= binom.isf(1e-6, 300, 0.05)


def alarms(trials, seeds, single):
    """Violations in `seeds` audits of two worlds of `trials` trials each: at 95 %, at `SURE`."""
    claim, found = single.claim(1, DELTA), np.zeros(2, int)
    method = TwoWorldGaussian()
    for seed in range(seeds):
        scores = two_worlds(single, trials, random=seeded_random(f"two {seed}".encode()))
        counts = count(*scores, claim.mu / 2)
        found += [method.rejects(counts, claim.mu, DELTA, level) for level in (0.95, SURE)]
    return found


def one_site():
    """Beside one colluder the victim's own share is all that the plan counts on: h = 1."""
    made = plan(sites="ab", alphas=(1, 1), shards=1, size=1, dropouts=0)
    return Group(mechanisms={"a": made.mechanisms["a"]}, victim="a")


def test_correct_mechanisms_raise_no_false_alarm_in_two_worlds():
    """300 seeds of 20 + 20 trials: 0 violations at `SURE`, at 95 % no more than 5 % explains."""
    usual, sure = alarms(20, 300, one_site())
    assert sure == 0
    assert usual <= binom.isf(1e-6, 300, 0.05)


@pytest.mark.nightly
def test_correct_mechanisms_raise_no_false_alarm_in_long_audits():
    """300 seeds of 200 + 200 trials: 0 violations at `SURE`, at 95 % no more than 5 % explains."""
    usual, sure = alarms(200, 300, one_site())
    assert sure == 0
    assert usual <= binom.isf(1e-6, 300, 0.05)


@pytest.mark.nightly
@pytest.mark.parametrize("epsilon", [1.0, 2.0, 4.0, 8.5, 12.0])
def test_bounds_stay_below_the_claim_over_the_whole_range(epsilon):
    """Two worlds of 10,000 trials each, one colluder, one dropout."""
    seen = group(plan(epsilon=epsilon))
    claim = seen.claim(1, DELTA)
    usual, sure = both(two_worlds(seen, 10_000), claim)
    assert sure.verdict == "consistent", sure
    assert usual.epsilon > 0.55 * gaussian_epsilon(claim.mu, DELTA), usual


@pytest.mark.parametrize(
    ("victim", "colluders", "dropped"),
    [("z", "", ""), ("a", "a", ""), ("a", "", "a"), ("a", "z", "")],
)
def test_a_coalition_must_make_sense(victim, colluders, dropped):
    with pytest.raises(ConfigError, match="one honest victim"):
        group(plan(), victim, colluders, dropped)


@pytest.mark.parametrize("number", [0, 2, 4])
def test_canaries_need_a_coin_and_a_value_each(number):
    with pytest.raises(ConfigError, match="one coin per teacher"):
        one_run(group(plan()), coins(number))

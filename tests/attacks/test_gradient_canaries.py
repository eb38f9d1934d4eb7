import math
import os

import numpy as np
import pytest

from attacks.auditing import Explicit, Split, audit
from attacks.gradient_canaries import claim_of, one_run, two_worlds
from attacks.leakage_bounds import (
    OneRun,
    OneRunGaussian,
    TwoWorldGaussian,
    TwoWorldRates,
    gaussian_epsilon,
)
from protocols.dp_sgd import DpSgd
from protocols.errors import ConfigError

SURE = 1 - 1e-6


def plan(rate=1.0, steps=4, noise=None, size=2):
    """Full batches at μ = 1.7, unless a rate and noise are given."""
    return DpSgd(
        clip_norm=0.5,
        noise_multiplier=noise or math.sqrt(steps) / 1.7,
        rate=rate,
        steps=steps,
        size=size,
        expected=10.0,
    )


def coins(number):
    return (np.frombuffer(os.urandom(number), np.uint8) & 1).astype(bool)


def test_full_batches_stay_below_the_claim_and_close_to_it():
    """Two worlds of 1,000 trainings of 2 steps each, no other unit: the other world is empty."""
    made = plan(steps=2)
    claim, rule = claim_of(made), Explicit((0.85,))
    scores = two_worlds(made, 1000)
    usual, sure = (
        audit(*scores, claim, method=TwoWorldGaussian(), rule=rule, confidence=level)
        for level in (0.95, SURE)
    )
    assert claim.relation == "add_or_remove_one"
    assert claim.epsilon == pytest.approx(gaussian_epsilon(1.7, 1e-5), rel=1e-3)
    assert sure.verdict == "consistent", sure
    assert usual.epsilon >= 0.55 * claim.epsilon, usual


def test_poisson_samples_stay_below_the_claim():
    """Two worlds of 400 trainings of 5 steps at rate 0.3; rates alone, half chooses."""
    made = plan(rate=0.3, steps=5, noise=0.8)
    claim, scores = claim_of(made), two_worlds(made, 400, others=5)
    sure = audit(
        *scores, claim, method=TwoWorldRates(), rule=Split(), confidence=SURE, whitened=False
    )
    assert sure.verdict == "consistent", sure
    assert sure.claim.epsilon < gaussian_epsilon(sure.claim.mu, 1e-5)
    assert scores[0].mean() > scores[1].mean()


@pytest.mark.parametrize("method", [OneRun(), OneRunGaussian()])
def test_one_training_with_many_canaries_stays_below_the_claim(method):
    """400 canaries along parameters of their own, 3 full batches, μ = 1.7."""
    made = plan(steps=3, size=400)
    claim = claim_of(made)
    scores = one_run(made, coins(400))
    rule = Explicit.planned(method, claim, 400, 0.95)
    sure = audit(*scores, claim, method=method, rule=rule, confidence=SURE)
    assert sure.verdict == "consistent", sure
    assert scores[0].mean() > scores[1].mean() + 1


@pytest.mark.parametrize("number", [0, 3])
def test_each_canary_needs_a_parameter(number):
    with pytest.raises(ConfigError, match="parameters"):
        one_run(plan(), coins(number))

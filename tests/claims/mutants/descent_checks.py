"""Checks that find a defect of DP-SGD. Each returns True if it found a fault."""

import math
import os
from pathlib import Path

import numpy as np
from scipy import stats

from attacks.auditing import Explicit, audit
from attacks.gradient_canaries import claim_of, train, two_worlds
from attacks.leakage_bounds import TwoWorldGaussian
from protocols.dp_sgd import DpSgd
from protocols.errors import LedgerError, PrivacyError
from protocols.ledger import Ledger
from protocols.mechanisms import ReleaseKey
from protocols.quantize import Layout, Segment

SURE = 1 - 1e-6


def plan(kind=DpSgd, rate=1.0, steps=1, size=2):
    """Full batches at μ = 1.7, unless another rate is given."""
    return kind(
        clip_norm=0.5,
        noise_multiplier=math.sqrt(steps) / 1.7,
        rate=rate,
        steps=steps,
        size=size,
        expected=10.0,
    )


def throwaway(made):
    figures = {"relation": made.event().relation, "budget_epsilon": None, "delta": 1e-5}
    return Ledger(Path(":memory:"), "a", "patients", **figures)


def begun(made):
    ledger = throwaway(made)
    return ledger, made.begin(ledger, ReleaseKey("study", 0), os.urandom)


def leaks(kind, trials=500, others=0):
    """Two worlds at rate 1: the lower bound on μ is above the claim."""
    made = plan(kind)
    claim = claim_of(made)
    scores = two_worlds(made, trials, others=others)
    rule = Explicit((claim.mu / 2,))
    found = audit(*scores, claim, method=TwoWorldGaussian(), rule=rule, confidence=SURE)
    return found.verdict == "VIOLATION"


def has_other_noise(kind):
    """Empty samples have less or more noise than is charged; 50 steps of 100 values."""
    made = plan(kind, rate=0.1, steps=50, size=100)
    scaled = train(made, [], 0, os.urandom).ravel() / made.noise_multiplier
    chance = stats.chi2.cdf(float(scaled @ scaled), scaled.size)
    return min(chance, 1 - chance) < (1 - SURE) / 2


def samples_otherwise(kind):
    """Sizes of Poisson samples: binomial, so with that variance; 2,000 samples of 50 units."""
    made = plan(kind, rate=0.2, steps=2000, size=1)
    _, descent = begun(made)
    sizes = []
    for _ in range(made.steps):
        sizes.append(len(descent.sample(50)))
        descent.step([np.zeros(1)] * sizes[-1])
    law = stats.binom(50, 0.2)
    mean = abs(np.mean(sizes) - law.mean()) / (law.std() / math.sqrt(made.steps))
    ratio = (made.steps - 1) * np.var(sizes, ddof=1) / law.var()
    chance = stats.chi2.cdf(ratio, made.steps - 1)
    return mean > 6 or min(chance, 1 - chance) < (1 - SURE) / 4


def goes_on_unpaid(kind):
    """A step beyond those that were charged."""
    _, descent = begun(plan(kind, steps=3))
    try:
        for _ in range(4):
            descent.sample(0)
            descent.step([])
    except PrivacyError:
        return False
    return True


def samples_unpaid(kind):
    """A unit may be sampled before the ledger has a line for all steps."""
    made = plan(kind, steps=3)
    ledger, _ = begun(made)
    return [line["event"].get("steps") for line in ledger.lines()] != [made.steps]


def speaks_too_often(kind):
    """A training speaks before its end, a second time, or otherwise on a retry."""
    made = kind(training=plan(steps=2), span=8.0, size=4)
    layout = Layout((Segment("logits", 4, 1),))
    ledger, key = throwaway(made.training), ReleaseKey("study", 0)
    paid = made.begin(ledger, key, os.urandom)
    for _ in range(2):
        try:
            made.release(np.zeros((1, 4)), layout, paid)
        except PrivacyError:
            pass
        else:
            return True
        paid.descent.sample(0)
        paid.descent.step([])
    first = made.release(np.zeros((1, 4)), layout, paid)
    try:
        made.release(np.ones((1, 4)), layout, paid)
    except LedgerError:
        again = made.again(ledger, key, layout)
        return again is None or bool((again.values != first.values).any())
    return True


def repeats_noise(kind):
    """Noise of two steps is correlated; 5,000 values."""
    first, second = train(plan(kind, steps=2, size=5000), [], 0, os.urandom)
    return bool(abs(np.corrcoef(first, second)[0, 1]) > 6 / math.sqrt(5000))


def shows_damage(kind):
    """A gradient with NaN or ∞ makes more of the sum than a clipped unit may."""
    for bad in (math.nan, math.inf, -math.inf):
        gradient = np.zeros(100)
        gradient[3] = bad
        made = plan(kind, size=100)
        (seen,) = train(made, [gradient], 0, os.urandom)
        if not np.isfinite(seen).all() or np.abs(seen).max() > 1 + 8 * made.noise_multiplier:
            return True
    return False

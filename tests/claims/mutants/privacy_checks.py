"""Checks that find a defect of a mechanism, a plan, a ledger or its randomness.

Each returns True if it found a fault. Those that draw are wrong about a correct subject less than
once in a million times (`SURE`); the others are exact.
"""

import contextlib
import math
import random as python_random
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
from scipy import stats

from attacks.auditing import Explicit, audit
from attacks.canaries import Group, two_worlds
from attacks.leakage_bounds import TwoWorldGaussian, gaussian_epsilon
from protocols.errors import PrivacyError
from protocols.ledger import Ledger
from protocols.mechanisms import ReleaseKey
from protocols.quantize import Layout, Segment

DELTA, SURE = 1e-5, 1 - 1e-6
FIRST = ReleaseKey("study", 0)


def layout(size):
    """Logits and the denominators of a private β."""
    return Layout((Segment("logits", size - size // 4, 1), Segment("denominators", size // 4, 1)))


def throwaway(kind=Ledger, **changes):
    figures = {"budget_epsilon": None, "delta": DELTA} | changes
    return kind(Path(":memory:"), "a", "patients", **figures)


def released(mechanism, random, key=FIRST, teachers=None, ledger=None):
    """One release of zeros, or of `teachers`, as int64[size]."""
    zeros = np.zeros((mechanism.shards, mechanism.size))
    bounded = mechanism.bound(zeros if teachers is None else teachers, layout(mechanism.size))
    return mechanism.release(bounded, ledger or throwaway(), key, random).values


def charged_distance(mechanism):
    """The L2 distance of neighbours, in grid steps, that the event charges for."""
    return mechanism.sigma_share * math.sqrt(2 * mechanism.event().rho_isolated)


# Audits.


def leaks(group: Group, trials=500, rounds=1, charged=1):
    """Two worlds: the lower bound on μ is above what `charged` releases are said to cost."""
    claim = group.claim(charged, DELTA)
    scores = two_worlds(group, trials, rounds=rounds)
    rule = Explicit((claim.mu / 2,))
    made = audit(*scores, claim, method=TwoWorldGaussian(), rule=rule, confidence=SURE)
    return made.verdict == "VIOLATION"


# Exact: sensitivity.


def answers(mechanism):
    """Extreme answers of one teacher: one value, all, each segment, each row; and points between
    two grid steps, where a rounding after the clip goes up."""
    size, far = mechanism.size, 4 * mechanism.clip_norm
    for place in (0, size - 1):
        yield far * np.eye(size)[place]
    for part in (slice(None), slice(0, size - size // 4), slice(size - size // 4, None)):
        vector = np.zeros(size)
        vector[part] = far
        yield vector
    yield np.linspace(-far, far, size)
    # All but one value just above the middle of two steps, the last fills the norm.
    low = math.floor(mechanism.clip_int / math.sqrt(size)) - 0.49
    last = math.sqrt(mechanism.clip_int**2 - (size - 1) * low**2)
    yield np.array([low] * (size - 1) + [last]) * mechanism.step


def furthest(mechanism):
    """The largest squared distance of two sums that differ in one teacher's answer."""
    others = np.random.default_rng(3).normal(0, 0.1, (mechanism.shards, mechanism.size))
    largest = 0
    for crowd in (np.zeros_like(others), others):
        sums = []
        for answer in answers(mechanism):
            for sign in (1, -1):
                teachers = crowd.copy()
                teachers[mechanism.shards // 2] = sign * answer
                sums.append(mechanism.bound(teachers, layout(mechanism.size)).values)
        distances = (sum(int(d) ** 2 for d in one - two) for one in sums for two in sums)
        largest = max(largest, *distances)
    return largest


def moves_too_far(mechanism):
    """Replacing one teacher's answer moves the sum further than the event charges for."""
    return furthest(mechanism) > charged_distance(mechanism) ** 2 * (1 + 1e-9)


def moves_less_than_said(mechanism):
    """No answer moves the sum as far as the noise was planned for."""
    return furthest(mechanism) < mechanism.sensitivity**2


def touches_several_teachers(assign, patients=60, images=4, shards=10):
    """Replacing all images of one patient changes the records of more than one teacher."""
    rows = [f"p{patient}" for patient in range(patients) for _ in range(images)]
    records = assign(rows, shards)
    for patient in range(patients):
        mine = {row for row, name in enumerate(rows) if name == f"p{patient}"}
        if sum(bool(mine & set(shard)) for shard in records) > 1:
            return True
    return False


def takes_damage(mechanism):
    """A teacher that diverged (NaN, ∞) is released rather than refused."""
    for bad in (math.nan, math.inf, -math.inf):
        teachers = np.zeros((mechanism.shards, mechanism.size))
        teachers[0, 0] = bad
        try:
            mechanism.bound(teachers, layout(mechanism.size))
        except PrivacyError:
            continue
        return True
    return False


# The law of the noise.


def has_other_noise(mechanism, random):
    """Noise is not N_Z(0, σ²) in either segment: variance, shape, mean; 4 · 5,000 values."""
    noise = released(mechanism, random)
    for part in np.split(noise, [mechanism.size - mechanism.size // 4]):
        scaled = part / mechanism.sigma_share
        tail = stats.chi2.cdf(float(scaled @ scaled), len(part))
        shape = stats.kstest(scaled, "norm").pvalue
        if min(tail, 1 - tail, shape) < (1 - SURE) / 6:
            return True
    return False


def repeats_noise(mechanism, new_random):
    """Noise of two sites, or of two rounds of one, is correlated; `new_random`(site, round)."""
    draws = [
        released(mechanism, new_random(site, number), ReleaseKey("study", number))
        for site, number in (("a", 0), ("b", 0), ("a", 1))
    ]
    close = 6 / math.sqrt(mechanism.size)
    return any(abs(np.corrcoef(draws[i], draws[j])[0, 1]) > close for i, j in ((0, 1), (0, 2)))


def draws_elsewhere(mechanism, random):
    """Noise comes from numpy's or Python's global generator, or not from the bytes given."""
    given = Counter()

    def counting(count):
        given["bytes"] += count
        return random(count)

    forbidden = AssertionError("a global generator was used")
    names = ("normal", "standard_normal", "default_rng", "randint", "random", "laplace")
    with contextlib.ExitStack() as patches:
        for owner, name in [(np.random, n) for n in names] + [(python_random, "gauss")]:
            patches.enter_context(mock.patch.object(owner, name, side_effect=forbidden))
        try:
            released(mechanism, counting)
        except AssertionError:
            return True
    # A discrete Gaussian of σ has more than log2 σ bits of entropy.
    return 8 * given["bytes"] < mechanism.size * math.log2(mechanism.sigma_share)


def is_a_comb(sigmas, weights, shift, check):
    """The exact δ of Σ weight·N_Z(0, σ²), moved by `shift`, is above that of one Gaussian.

    `check` makes the mechanism and may refuse; what is refused cannot leak.
    """
    try:
        check()
    except PrivacyError:
        return False
    reach, transform = 4000, 1
    for sigma, weight in zip(sigmas, weights, strict=True):
        steps = np.arange(-(reach // weight), reach // weight + 1)
        mass = np.exp(-((steps / sigma) ** 2) / 2)
        share = np.zeros(2 * reach + 1)
        share[steps * weight] = mass / mass.sum()
        transform = transform * np.fft.fft(share)
    law = np.maximum(np.fft.ifft(transform).real, 0)
    total = math.sqrt(sum((s * w) ** 2 for s, w in zip(sigmas, weights, strict=True)))
    epsilon = gaussian_epsilon(shift / total, DELTA)
    excess = np.maximum(law - math.exp(epsilon) * np.roll(law, shift), 0).sum()
    return excess > 2 * DELTA


def clamps_more_than_charged(mechanism, random):
    """More values were clamped than the event's probability explains; 20,000 values."""
    noise = released(mechanism, random)
    clamped = int((np.abs(noise) >= mechanism.limit).sum())
    chance = mechanism.event().clamp / (mechanism.honest * mechanism.size)
    return clamped > stats.binom.isf(1 - SURE, mechanism.size, min(chance, 1.0))


# Spending.


def forgets_who_is_alone(mechanism):
    """The isolated figure is below what this site's own noise gives."""
    alone = mechanism.sensitivity**2 / (2 * mechanism.sigma_share**2)
    return mechanism.event().rho_isolated < alone * (1 - 1e-9)


def states_too_little(plan):
    """A plan's ε is below the exact one of Gaussian noise over all of its rounds."""
    for site, mechanism in plan.mechanisms.items():
        mu = math.sqrt(2 * plan.rounds * mechanism.event().rho)
        if plan.client_epsilons[site] < gaussian_epsilon(mu, plan.delta) * (1 - 1e-9):
            return True
    return False

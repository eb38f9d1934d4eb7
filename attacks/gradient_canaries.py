"""Canaries for DP-SGD: units whose gradient is as long as the clip allows, in every step.

The attacker sees every noisy gradient, knows the clip, the rate and the noise, and that all other
units' gradients are zero. What remains unknown is the noise, the samples and the world.
"""

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np

from attacks.auditing import Claim
from attacks.scores import Floats
from protocols.accounting import ADD_OR_REMOVE_ONE, compose
from protocols.chain import RandomBytes
from protocols.dp_sgd import DpSgd
from protocols.errors import ConfigError
from protocols.ledger import Ledger
from protocols.mechanisms import ReleaseKey

_BEYOND: Final = 4.0  # a canary's gradient is so many times the clip
_DELTA: Final = 1e-5


def claim_of(plan: DpSgd, delta: float = _DELTA, unit: str = "patient") -> Claim:
    """What one charge of `plan` says against whoever sees every noisy gradient.

    μ = √steps/z is exact at rate 1; below, it is what holds without the sampling.
    """
    event = plan.event()
    return Claim(
        epsilon=compose([event], delta).epsilon,
        delta=delta,
        mu=math.sqrt(event.steps) / event.noise_multiplier,
        relation=event.relation,
        unit=unit,
        adversary="whoever sees all noisy gradients",
    )


def two_worlds(
    plan: DpSgd, trials: int, *, others: int = 0, random: RandomBytes = os.urandom
) -> tuple[Floats, Floats]:
    """Scores of `trials` trainings with the canary among the units, and of as many without it.

    Under a replacement relation it turns round instead of leaving. others: further units. A score
    is the log likelihood ratio; at rate 1 in standard deviations of the claimed noise (mean 0
    without, μ with), below that as it is.
    """
    gradient = np.zeros(plan.size)
    gradient[0] = _BEYOND * plan.clip_norm
    away = [] if plan.event().relation == ADD_OR_REMOVE_ONE else [-gradient]
    worlds = [gradient], away
    scores = [
        np.array([_likelihood(plan, train(plan, world, others, random))[0] for _ in range(trials)])
        for world in worlds
    ]
    return scores[0], scores[1]


def one_run(
    plan: DpSgd, coins: Iterable[bool], *, random: RandomBytes = os.urandom
) -> tuple[Floats, Floats]:
    """Scores of the canaries that one training contains, and of those that it does not.

    One canary per coin, each along a parameter of its own, in it where the coin is true.
    """
    tossed = np.fromiter(coins, bool)
    if not 1 <= len(tossed) <= plan.size:
        raise ConfigError(f"{len(tossed)} coins, {plan.size} parameters", fix="use as many at most")
    units = [_BEYOND * plan.clip_norm * row for row in np.eye(plan.size)[: len(tossed)][tossed]]
    scores = _likelihood(plan, train(plan, units, 0, random))[: len(tossed)]
    return scores[tossed], scores[~tossed]


def train(plan: DpSgd, canaries: list[Floats], others: int, random: RandomBytes) -> Floats:
    """The noisy sums [steps, size] of one charge, in clip norms; `others` have gradients of 0."""
    units = [*canaries, *[np.zeros(plan.size)] * others]
    with Ledger(
        Path(":memory:"),
        "a",
        "canaries",
        relation=plan.event().relation,
        budget_epsilon=None,
        delta=_DELTA,
    ) as ledger:
        descent = plan.begin(ledger, ReleaseKey("training", 0), random)
        steps = [
            descent.step([units[at] for at in descent.sample(len(units))])
            for _ in range(plan.steps)
        ]
    return np.stack(steps) * (plan.expected / plan.clip_norm)


def _likelihood(plan: DpSgd, sums: Floats) -> Floats:
    """Per parameter, the log likelihood ratio of a canary along it; whitened at rate 1."""
    noise = plan.noise_multiplier
    once = (sums - 0.5) / noise**2
    if plan.rate == 1:
        mu = math.sqrt(plan.steps) / noise
        return np.asarray(once.sum(axis=0) / mu + mu / 2)
    odds = np.logaddexp(math.log1p(-plan.rate), math.log(plan.rate) + once)
    return np.asarray(odds.sum(axis=0))

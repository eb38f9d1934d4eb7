"""L3: a run's own mechanism held against its claim, by canaries in one release."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Final

import numpy as np

from attacks.auditing import Split, audit
from attacks.canaries import Group, one_run
from attacks.leakage_bounds import OneRunGaussian
from attacks.rows import Budget, Measured, Row
from attacks.threat import Capability
from protocols.chain import RandomBytes

_DELTA: Final = 1e-5
_CONFIDENCE: Final = 0.95
_FAINT: Final = 10.0
_ARMS: Final = ("noise / 10", "protected")


def canary_row(group: Group, random: RandomBytes = os.urandom) -> Row:
    """L3. A claim is refuted where the mean excess of lower bounds over it is above 0.

    group: as the coalition sees it, with a victim of 1,000 teachers or more, one canary each.
    `Budget.targets` audits, each one release at 95 % confidence; the control has a tenth of the
    noise, and must be refuted by a fifth of its claim at least. 16 do for a table of many rows.
    """

    def play(arm: str, budget: Budget, _: np.random.Generator) -> Measured:
        played = faint(group) if arm == _ARMS[0] else group
        claim = group.claim(1, _DELTA)
        # Scores are in deviations of the noise that is there; the claim says how large it is.
        unit = claim.mu / played.claim(1, _DELTA).mu
        method, bounds = OneRunGaussian(), []
        for _trial in range(budget.targets):
            coins = np.frombuffer(random(group.mechanism.shards), np.uint8) & 1
            inside, outside = one_run(played, coins.astype(bool), random=random)
            found = audit(
                inside * unit,
                outside * unit,
                claim,
                method=method,
                rule=Split(),
                confidence=_CONFIDENCE,
                whitened=False,
            )
            bounds.append(found.epsilon)
        ratios = np.array(bounds) / claim.epsilon
        # A bound below the claim is no evidence for it, so only the excess counts.
        scores = np.maximum(ratios, 1.0)
        return Measured(
            arm,
            scores,
            {"claim": np.ones(len(scores))},
            np.arange(len(scores)),
            extra={
                "ε claimed": claim.epsilon,
                "ε at least, mean": float(ratios.mean()) * claim.epsilon,
            },
        )

    return Row(
        "L3",
        "What the mechanism promises, by canaries in one release",
        f"the sum that the coalition sees: {group.claim(1, _DELTA).adversary}",
        frozenset({Capability.PLANS, Capability.AGGREGATES}),
        "lower bound of ε over the claim, at least 1",
        "gain",
        margin=0.05,
        control_margin=0.2,
        arms=_ARMS,
        play=play,
        tier="fast",
    )


def faint(group: Group) -> Group:
    """The same group with a tenth of the noise at every site: what a broken sampler might do."""
    return replace(
        group,
        mechanisms={
            site: replace(one, sigma_share=one.sigma_share / _FAINT)
            for site, one in group.mechanisms.items()
        },
    )

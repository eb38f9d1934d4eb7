"""Random rounds of the default mode's arithmetic, noise on: is every sum the exact one?"""

from __future__ import annotations

import os

import numpy as np

from protocols.ledger import ReleaseKey
from protocols.multikey import MK18_39, MultiKeyPreset
from protocols.multikey_ckks import MultiKeySum, protect
from protocols.quantize import Layout, Segment
from protocols.release import Released
from protocols.sampler import discrete_gaussian
from protocols.sharing import interpolate, unpack_share, weighted_share


def random_rounds(count: int, seed: int = 0) -> dict[str, int]:
    """Play so many rounds of random sizes, clients, weights, holders and noise; count wrong sums.

    Keys, errors and shares are drawn anew from the operating system each time; the seed fixes
    only what is summed and by whom. Every tenth round is at the limits: all integers extreme.
    """
    draw, wrong, contributions = np.random.default_rng(seed), 0, 0
    for number in range(count):
        clients = int(draw.integers(3, 9))
        alphas = [int(alpha) for alpha in draw.integers(1, 5, clients)]
        while sum(alphas) > 32:
            alphas.pop()
        size = int(draw.integers(1, 4097))
        extreme = number % 10 == 0
        values = [_values(draw, size, MK18_39, extreme) for _ in alphas]
        expected = sum(alpha * one for alpha, one in zip(alphas, values, strict=True))
        wrong += not np.array_equal(_round(draw, alphas, values), expected)
        contributions += len(alphas)
    return {"rounds": count, "contributions": contributions, "wrong": wrong, "seed": seed}


def _values(
    draw: np.random.Generator, size: int, preset: MultiKeyPreset, extreme: bool
) -> np.ndarray:
    limit = preset.value_limit
    if extreme:
        return draw.choice(np.array([-limit, limit]), size)
    signal = draw.integers(-limit // 8, limit // 8 + 1, size)
    noise = discrete_gaussian(size, limit / 12, os.urandom)
    return np.clip(signal + noise, -limit, limit)


def _round(draw: np.random.Generator, alphas: list[int], values: list[np.ndarray]) -> np.ndarray:
    holders = int(draw.integers(3, 8))
    threshold, reference = int(draw.integers(2, holders + 1)), os.urandom(32)
    total = MultiKeySum(MK18_39, len(values[0]))
    shares: list[tuple[bytes, ...]] = []
    for alpha, one in zip(alphas, values, strict=True):
        part = protect(
            MK18_39,
            _released(one),
            (0, len(one)),
            reference=reference,
            heaviest=max(alphas),
            holders=holders,
            threshold=threshold,
        )
        total.add(part.body, alpha)
        shares.append(part.shares)
    chosen = draw.permutation(holders)[:threshold]
    answers = {
        int(at) + 1: weighted_share(MK18_39, [own[at] for own in shares], alphas) for at in chosen
    }
    key_sum = interpolate(
        MK18_39, {at: unpack_share(MK18_39, body) for at, body in answers.items()}
    )
    return total.open(key_sum, reference=reference, alphas=alphas)


def _released(values: np.ndarray) -> Released:
    """Integers as a mechanism would hand them out, without its ledger: arithmetic alone counts."""
    made = object.__new__(Released)
    fields = {
        "values": values.astype(np.int64),
        "layout": Layout((Segment("logits", len(values), 1),)),
        "key": ReleaseKey("benchmark", 1),
    }
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made

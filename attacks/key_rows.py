"""Rows of the attack table on keys and collusion: C2, C2b and C3, over what exists.

The attacks are those of `attacks.cryptanalysis`, `attacks.tampered_key` and `attacks.collusion`;
a laboratory plays the protocol and hands over what the adversary has, and the truth apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from attacks.collusion import read_single
from attacks.cryptanalysis import KeyGuess, Published, recover_key
from attacks.pooling import Pool
from attacks.rows import Budget, Measured, Play, Row
from attacks.tampered_key import read_key
from attacks.threat import Capability

Key = NDArray[np.int8]
Integers = NDArray[np.int64]

_CHANCE: Final = 1 / 3  # of a ternary coefficient


class PublishedLab(Protocol):
    """Arms: `slots` (approximate CKKS, read as real numbers), then `protected`."""

    def keys(
        self, arm: str, count: int, random: np.random.Generator
    ) -> Iterator[tuple[Sequence[Published], Key]]:
        """`count` keys: what is known of ciphertexts under each, and the key itself."""


@dataclass(frozen=True, eq=False)
class Opened:
    """One opening of a sum in which a client may have tampered, as that client sees it.

    opened and own: int64[≥degree]; alpha: the client's weight; offset: the B that it added, or
    would have. key: the truth.
    """

    opened: Integers
    own: Integers
    alpha: int
    offset: int
    degree: int
    key: Key


class TamperingLab(Protocol):
    """Arms: `tampered` (custody of one decryptor), then `protected`."""

    def openings(self, arm: str, count: int, random: np.random.Generator) -> Iterator[Opened]:
        """`count` attempts, each under a key of its own."""


class CoalitionLab(Protocol):
    """Arms: `all but one` (who must read the remaining client), then `protected`."""

    def coalitions(
        self, arm: str, count: int, random: np.random.Generator
    ) -> Iterator[tuple[Pool, str, Integers]]:
        """What members have together, a client outside, and the integers that it sent."""


def published_row(lab: PublishedLab) -> Row:
    """C2. One key: rates of 4,096 coefficients and more scatter by 0.007."""

    def play(arm: str, budget: Budget, random: np.random.Generator) -> Measured:
        pairs = [(recover_key(seen), key) for seen, key in lab.keys(arm, budget.targets, random)]
        return _keys(arm, pairs)

    return _key_row(
        "C2",
        "The key from sums that were read (IND-CPA^D)",
        "weighted sums and what was read of them",
        frozenset({Capability.WEIGHTED_SUMS, Capability.AGGREGATES}),
        ("slots", "protected"),
        play,
    )


def tampering_row(lab: TamperingLab) -> Row:
    """C2b. One key, as C2."""

    def play(arm: str, budget: Budget, random: np.random.Generator) -> Measured:
        pairs = [
            (read_key(one.opened, one.own, one.alpha, one.offset, one.degree), one.key)
            for one in lab.openings(arm, budget.targets, random)
        ]
        return _keys(arm, pairs)

    return _key_row(
        "C2b",
        "The decryptor's key by tampering with one's own upload",
        "opened sums and one's own upload, as a malicious client",
        frozenset({Capability.ROUND_KEYS, Capability.AGGREGATES}),
        ("tampered", "protected"),
        play,
    )


def coalition_row(lab: CoalitionLab) -> Row:
    """C3. 73 coalitions: so many without one success bound their rate by 0.05."""

    def play(arm: str, budget: Budget, random: np.random.Generator) -> Measured:
        hits = []
        for pool, target, integers in lab.coalitions(arm, budget.targets, random):
            found = read_single(pool, target)
            hits.append(float(found is not None and np.array_equal(found, integers)))
        scores = np.array(hits)
        return Measured(arm, scores, {"chance": np.zeros(len(scores))}, np.arange(len(scores)))

    return Row(
        "C3",
        "A single contribution by collusion",
        "the messages and memories of a coalition's members",
        frozenset({Capability.CONTRIBUTIONS, Capability.AGGREGATES}),
        "share of contributions read exactly",
        "rate",
        margin=0.05,
        control_margin=0.9,
        arms=("all but one", "protected"),
        play=play,
    )


def _keys(arm: str, pairs: Sequence[tuple[KeyGuess, Key]]) -> Measured:
    """Each coefficient of each key is a trial of its own."""
    hits = np.concatenate([guess.coefficients == key for guess, key in pairs]).astype(np.float64)
    return Measured(
        arm,
        hits,
        {"chance": np.full(len(hits), _CHANCE)},
        np.arange(len(hits)),
        extra={"coefficients checked": float(np.mean([guess.checked for guess, _ in pairs]))},
    )


def _key_row(
    name: str,
    title: str,
    view: str,
    needs: frozenset[Capability],
    arms: tuple[str, ...],
    play: Play,
) -> Row:
    return Row(
        name,
        title,
        view,
        needs,
        "share of the key's coefficients that are right (chance: 1/3)",
        "rate",
        margin=0.05,
        control_margin=0.6,
        arms=arms,
        play=play,
        tier="fast",
    )

"""Canaries: one patient, or many, whose teachers answer one way or the opposite way.

The worst case that a statement covers, played against the real mechanisms: releases are bounded,
charged, noised and weighted as in a round, and the attacker knows every model, every clip and all
that its colluders sent. What remains unknown is the noise and the world.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from attacks.auditing import Claim
from attacks.scores import Floats
from protocols.accounting import compose
from protocols.chain import RandomBytes
from protocols.errors import ConfigError
from protocols.ledger import Ledger
from protocols.mechanisms import ReleaseKey, ShardTeachers
from protocols.quantize import Integers, Layout, Segment

_BEYOND: Final = 4.0  # a canary answers with so many times the clip
_PER_LEDGER: Final = 50  # a ledger searches its lines one by one


@dataclass(frozen=True, kw_only=True)
class Group:
    """A group as a coalition sees it: the weighted sum, less what the coalition sent itself.

    mechanisms: site → its mechanism, all of one size. victim: the site whose patient is the
    canary. colluders know their own releases; `dropped` sent nothing; beyond the plan's t and d
    the claim does not hold. isolated: test instead the claim for a victim whose own noise is all
    that remains.
    """

    mechanisms: Mapping[str, ShardTeachers]
    victim: str
    colluders: frozenset[str] = frozenset()
    dropped: frozenset[str] = frozenset()
    isolated: bool = False

    def __post_init__(self) -> None:
        others = self.colluders | self.dropped
        if self.victim in others or not {self.victim, *others} <= set(self.mechanisms):
            raise ConfigError(
                f"victim {self.victim}, colluders {sorted(self.colluders)}, dropped "
                f"{sorted(self.dropped)} of {sorted(self.mechanisms)}",
                fix="name one honest victim and other sites of the group",
            )

    @property
    def mechanism(self) -> ShardTeachers:
        """The victim's mechanism."""
        return self.mechanisms[self.victim]

    def claim(self, rounds: int, delta: float, unit: str = "patient") -> Claim:
        """What the victim's mechanism says of `rounds` releases against this coalition."""
        event = self.mechanism.event()
        spent = compose([event] * rounds, delta)
        rho = event.rho_isolated if self.isolated else event.rho
        return Claim(
            epsilon=spent.epsilon_isolated if self.isolated else spent.epsilon,
            delta=delta,
            mu=math.sqrt(2 * rounds * rho),
            relation=event.relation,
            unit=unit,
            adversary=f"the server and {len(self.colluders)} of {len(self.mechanisms)} clients, "
            f"{len(self.dropped)} dropped out",
        )

    def sum_of(self, teachers: Floats) -> Integers:
        """The victim's weighted part of the sum, without noise, for teachers [M, size]."""
        bounded = self.mechanism.bound(teachers, _layout(self.mechanism.size))
        part: Integers = self.mechanism.alpha * bounded.values
        return part


@dataclass
class Rounds:
    """Real rounds of a group, one after the other, each in a session that is used once."""

    group: Group
    random: RandomBytes = os.urandom
    _played: int = 0
    _ledgers: dict[str, Ledger] = field(default_factory=dict)

    def observe(self, teachers: Floats, number: int = 0) -> Integers:
        """What the coalition learns of one round: Σα·(x + noise) less all that it sent itself.

        teachers: the victim's [M, size]; all other sites' teachers answer zero.
        """
        if self._played % _PER_LEDGER == 0:
            self._renew()
        key = ReleaseKey(f"trial-{self._played}", number)
        self._played += 1
        total, own = (np.zeros(self.group.mechanism.size, np.int64) for _ in range(2))
        for site, mechanism in self.group.mechanisms.items():
            if site in self.group.dropped:
                continue
            shape = mechanism.shards, mechanism.size
            answers = teachers if site == self.group.victim else np.zeros(shape)
            bounded = mechanism.bound(answers, _layout(mechanism.size))
            released = mechanism.release(bounded, self._ledgers[site], key, self.random)
            total += mechanism.alpha * released.values
            if site in self.group.colluders:
                own += mechanism.alpha * released.values
        return total - own

    def _renew(self) -> None:
        for ledger in self._ledgers.values():
            ledger.close()
        self._ledgers = {
            site: Ledger(Path(":memory:"), site, "canaries", budget_epsilon=None, delta=1e-5)
            for site in self.group.mechanisms
        }


def two_worlds(
    group: Group,
    trials: int,
    *,
    rounds: int = 1,
    direction: Floats | None = None,
    random: RandomBytes = os.urandom,
) -> tuple[Floats, Floats]:
    """Scores of `trials` reruns with the canary's answer turned around, and of as many without.

    The first teacher answers `direction` [size] (real units; by default far beyond the clip at one
    value) or its opposite, in every round. A score is the likelihood ratio's statistic of Gaussian
    noise, in standard deviations of the claimed noise: mean 0 without, √rounds·μ with, if the
    mechanism keeps its claim exactly.
    """
    mechanism, played = group.mechanism, Rounds(group, random)
    answer = _far(mechanism) if direction is None else direction
    worlds = [_with_teachers(mechanism, [sign * answer]) for sign in (1.0, -1.0)]
    means = [group.sum_of(teachers).astype(np.float64) for teachers in worlds]
    gap = means[0] - means[1]
    norm = float(np.linalg.norm(gap))
    scale = 1 / (_claimed_deviation(group) * (norm or 1.0) * math.sqrt(rounds))

    def scores(teachers: Floats) -> Iterator[float]:
        for _ in range(trials):
            seen = sum(played.observe(teachers, number) - means[1] for number in range(rounds))
            yield float(seen @ gap) * scale

    with_canary, without = (np.fromiter(scores(teachers), np.float64) for teachers in worlds)
    return with_canary, without


def one_run(
    group: Group, coins: Iterable[bool], *, random: RandomBytes = os.urandom
) -> tuple[Floats, Floats]:
    """Scores of the canaries that one release contains, and of those that it does not.

    One canary per teacher, each along a value of its own, answering one way (in, coin true) or the
    opposite way. coins: one fair coin per teacher of the victim, from the caller, at most as many
    as there are values. Scores are scaled as in `two_worlds`.
    """
    mechanism, tossed = group.mechanism, np.fromiter(coins, bool)
    if not 1 <= len(tossed) == mechanism.shards <= mechanism.size:
        raise ConfigError(
            f"{len(tossed)} coins, {mechanism.shards} teachers, {mechanism.size} values",
            fix="toss one coin per teacher, and use as many values as teachers at least",
        )
    answers = np.where(tossed, 1.0, -1.0) * _BEYOND * mechanism.clip_norm
    places = np.arange(len(tossed))
    teachers, none = (np.zeros((mechanism.shards, mechanism.size)) for _ in range(2))
    teachers[places, places] = answers
    none[places, places] = -_BEYOND * mechanism.clip_norm
    seen = Rounds(group, random).observe(teachers) - group.sum_of(none)
    scores = seen[: len(tossed)] / _claimed_deviation(group)
    return scores[tossed], scores[~tossed]


def _claimed_deviation(group: Group) -> float:
    """The standard deviation of the noise, in steps of the weighted sum, that the claim says."""
    mechanism = group.mechanism
    return mechanism.alpha * mechanism.sensitivity / group.claim(1, 1e-5).mu


def _far(mechanism: ShardTeachers) -> Floats:
    answer = np.zeros(mechanism.size)
    answer[0] = _BEYOND * mechanism.clip_norm
    return answer


def _with_teachers(mechanism: ShardTeachers, rows: list[Floats]) -> Floats:
    teachers = np.zeros((mechanism.shards, mechanism.size))
    teachers[: len(rows)] = rows
    return teachers


def _layout(size: int) -> Layout:
    return Layout((Segment("canary", size, 1),))

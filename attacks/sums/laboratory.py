"""What a laboratory gives to attacks on weighted sums: sums as published, and the truth apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from attacks.answers.laboratory import Bools, Candidates, Floats, Knowledge, Whole


@dataclass(frozen=True, eq=False)
class Published:
    """Weighted sums of clients' vectors that a coalition can write down, its own sums too.

    weights [sums, clients]: integer α of each client in each sum, 0 where it is not in it.
    totals [sums, size]: the numbers that were opened, in one unit for all. A coalition's own
    vectors are sums of one client. noise: standard deviation of the noise in a total per unit
    weight of a client (the site's own share), 0 without.
    """

    weights: Whole
    totals: Floats
    noise: float


@dataclass(frozen=True, eq=False)
class Incident:
    """One trial of a difference attack.

    victim: its place among the clients. answers [size]: its own, as they were clipped and before
    any noise; the truth. prior [size]: the best guess before any sum, such as the mean of shadow
    clients' answers, clipped likewise.
    """

    published: Published
    victim: int
    answers: Floats
    prior: Floats


class DifferenceLab(Protocol):
    """Arms: `feigned dropout` (n against n − 1 of the same vectors, undefended), then `protected`.

    Further arms may be `colluders` and `ring`, as the run's mode has them. Where the protocol
    refuses the second sum, `published` lacks it.
    """

    def incidents(self, arm: str, count: int, random: np.random.Generator) -> Iterator[Incident]:
        """`count` fresh federations, each played in the arm's way."""


@dataclass(frozen=True, eq=False)
class Admissions:
    """Sites seen before and after a moment at which each may have taken in one known patient.

    answers [sites, rounds, rows, columns]; the first `before` rounds precede it. candidates: one
    per site. admitted [sites] is the truth.
    """

    answers: Floats
    before: int
    candidates: Candidates
    admitted: Bools


class LongitudinalLab(Protocol):
    """Arms as for answers: `clear`, `noised`, `protected`, `aggregate`."""

    def knowledge(self, arm: str) -> Knowledge:
        """Public figures of an arm, for all rounds."""

    def admissions(self, arm: str, count: int, random: np.random.Generator) -> Admissions:
        """Fresh sites, each with its candidate added or not by a fair coin."""


@dataclass(frozen=True, eq=False)
class Dialogue:
    """A victim whose hidden weights per row enter an aggregate with a malicious client's.

    ask: the malicious client's numerators and denominators [rows, columns] and [rows, 1] → what
    all read after that round: the quotient [rows, columns], or whatever the protocol shows.
    hidden [rows]: the victim's own weights, the truth. passive [rows]: what an attacker who only
    reads one honest round knows of them. settled: whether the attacker's own sites all have the
    same weights, so that there is nothing to ask.
    """

    ask: Callable[[Floats, Floats], Floats]
    rows: int
    columns: int
    hidden: Floats
    passive: Floats
    noise: float
    settled: bool = False


class ProbingLab(Protocol):
    """Arms: `quotient shown` (weights as in a plain dual-weighted mean), then `protected`."""

    def dialogues(self, arm: str, count: int, random: np.random.Generator) -> Iterator[Dialogue]:
        """Fresh groups of one victim and a malicious client."""


class PoisoningLab(Protocol):
    """Arms: `unbounded` (no clip), `clipped`, `protected`."""

    def central_accuracy(
        self, arm: str, poison: Callable[[Floats], Floats] | None, seed: int, *, shadow: bool
    ) -> float:
        """Accuracy in [0, 1] on private test images of a central model that learnt from all.

        poison: honest answers [rounds, rows, columns] of the malicious client → what it sends,
        before the arm's clip, if that is enforced on it. None: it stays away. Every seed has
        sites of its own; runs of one seed differ in nothing else. shadow: whether the sites are
        the attacker's own, to rehearse on.
        """


class SumLab(DifferenceLab, LongitudinalLab, ProbingLab, PoisoningLab, Protocol):
    """All of them; `attacks.sums.table.sum_rows` takes it."""

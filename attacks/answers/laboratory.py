"""What a laboratory gives to attacks on answers: observations, public knowledge, truth apart.

A laboratory runs the real speaking models and mechanisms on private data that it holds, once per
site that is attacked. Arms, with what is seen of a site in each round:

    clear       its answers as they were made (the positive control)
    clipped     within the joint clip, without noise
    noised      within the clip, with the site's own share of noise alone
    protected   what the run's real coalition sees of it
    aggregate   the weighted sum of its group

Answers are in the unit of one mean answer (a sum is divided by the public Σα·M), after the
coalition has subtracted what it sent itself. The truth is for scoring alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Whole = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What everybody may know of an arm.

    proxies: public features [rounds, rows, d] of the images that were asked. classes: the answers'
    first columns; denominators may follow. noise: standard deviation on each observed number, 0
    without. clip: joint L2 norm of one round's observed numbers at most, infinite without.
    pictures: the images themselves, [rounds, rows, H, W] in [0, 1], None where no attack on
    pictures is asked for. multi_label: whether a record may have several classes.
    """

    proxies: Floats
    classes: int
    noise: float
    clip: float
    pictures: Floats | None = None
    multi_label: bool = False


@dataclass(frozen=True, eq=False)
class Seen:
    """What was observed of some sites, the same for attacker's own and for private ones.

    answers [sites, rounds, rows, columns]. metadata: figure → [sites], what this arm shows beside
    them in the clear, such as weights, bytes or seconds.
    """

    answers: Floats
    metadata: Mapping[str, Floats]


@dataclass(frozen=True, eq=False)
class Sites:
    """The truth of some sites.

    shares [sites, classes]: how often each class occurs. sizes [sites]: records. attributes: name
    → [sites], a property with values 0, 1, ….
    """

    shares: Floats
    sizes: Whole
    attributes: Mapping[str, Whole]


@dataclass(frozen=True, eq=False)
class Candidates:
    """Records whose membership is asked: features [P, d], targets [P, classes] in {0, 1}."""

    features: Floats
    targets: Floats


@dataclass(frozen=True, eq=False)
class Victims:
    """Private test images of each site, and what its own speaking model says of them.

    features [sites, m, d]; said [sites, m, classes]: logits.
    """

    features: Floats
    said: Floats


@dataclass(frozen=True, eq=False)
class Portraits:
    """What each class of each site looks like, among others.

    gallery [n, H, W]: mean images of the classes and of further, unseen ones. Classes that look
    alike at several sites have one place in it, or the nearest of near-copies would be chance.
    place [sites, classes]: which of them it is.
    """

    gallery: Floats
    place: Whole


class PopulationLab(Protocol):
    """Draws sites with their own label shares, sizes and attributes."""

    def knowledge(self, arm: str) -> Knowledge:
        """Public figures of an arm."""

    def sites(
        self, arm: str, count: int, random: np.random.Generator, *, shadow: bool
    ) -> tuple[Seen, Sites]:
        """Fresh sites under an arm; `shadow`: the attacker's own, of patients nobody attacks.

        Shadows run the same architecture, training and mechanism with the attacker's noise.
        """


class MembershipLab(Protocol):
    """Draws sites that hold each candidate with probability 1/2, by a fair coin."""

    def knowledge(self, arm: str) -> Knowledge:
        """Public figures of an arm."""

    def candidates(self) -> Candidates:
        """The records in question, the same for all sites; no patient has two of them."""

    def halves(
        self,
        arm: str,
        count: int,
        random: np.random.Generator,
        *,
        shadow: bool,
        proxies: Floats | None = None,
    ) -> tuple[Floats, Bools]:
        """Answers [count, rounds, rows, columns] of fresh sites, and who is in: [count, P].

        The attacker made the coins of its shadows. proxies [rounds, rows, d]: a malicious server's
        own, asked in place of the plan's.
        """


class StealingLab(Protocol):
    """Draws sites with private test images."""

    def knowledge(self, arm: str) -> Knowledge:
        """Public figures of an arm."""

    def victims(
        self, arm: str, count: int, random: np.random.Generator, *, shadow: bool
    ) -> tuple[Floats, Victims]:
        """Answers [count, rounds, rows, columns] of fresh sites, and what is to be matched."""


class PortraitLab(Protocol):
    """Draws sites whose classes have a look; knowledge has `pictures`.

    The arm `in-domain` is clear answers on images like the private ones: easier than any real
    round, an upper bound.
    """

    def knowledge(self, arm: str) -> Knowledge:
        """Public figures of an arm."""

    def backbone(self, images: Tensor) -> Tensor:
        """The public features [n, d] of images [n, H, W], differentiable."""

    def portraits(
        self, arm: str, count: int, random: np.random.Generator
    ) -> tuple[Floats, Portraits]:
        """Answers [count, rounds, rows, columns] of fresh sites, and how their classes look."""


class AnswerLab(PopulationLab, MembershipLab, StealingLab, PortraitLab, Protocol):
    """All of them; `attacks.answers.table.answer_rows` takes it."""

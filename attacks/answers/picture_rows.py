"""Rows of the attack table on pictures drawn from answers: L4, and L5b from a stolen model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from attacks.answers.laboratory import Floats, Knowledge, PortraitLab, Whole
from attacks.answers.pictures import nearest, paired_logits, stolen_model_pictures
from attacks.rows import Budget, Measured, Row
from attacks.threat import Capability

_TOGETHER: Final = 4
_ARMS: Final = ("clear", "noised", "protected")
_SEES: Final = frozenset({Capability.PLANS, Capability.AGGREGATES})
_VIEW: Final = (
    "in-domain: clear answers on images like the private ones, an upper bound; clear and noised: "
    "one client's answers to natural images; protected: what the run's coalition sees"
)
_METRIC: Final = "share of classes whose picture is nearest to the site's own, among the gallery"
Draw = Callable[[Floats, Knowledge, Budget, int], Floats]
"""(answers [sites, …], knowledge, budget, seed) → pictures [sites, classes, H, W]."""


@dataclass(frozen=True)
class _Drawn:
    lab: PortraitLab
    draw: Draw

    def __call__(self, arm: str, budget: Budget, random: np.random.Generator) -> Measured:
        """Whether each class of each site is told from the rest of the gallery.

        Sites are attacked four together, and what was drawn together counts as one trial. Half of
        the time is for drawing the sites, the other half for the search on all of them.
        """
        answers, truth = self.lab.portraits(arm, budget.targets, random)
        seed = int(random.integers(1 << 31))
        starts = range(0, len(answers), _TOGETHER)
        each = replace(budget, seconds=budget.seconds / 2 / len(starts))
        knowledge = self.lab.knowledge(arm)
        drawn = np.concatenate(
            [self.draw(answers[at : at + _TOGETHER], knowledge, each, seed + at) for at in starts]
        )
        found = np.stack([nearest(site, truth.gallery) for site in drawn])
        hits = (found == truth.place).astype(np.float64)
        return Measured(
            arm,
            hits.ravel(),
            {"chance": np.full(hits.size, 1 / len(truth.gallery))},
            np.repeat(np.arange(len(hits)) // _TOGETHER, hits.shape[1]),
            extra={"right up to the order of classes": _any_order(found, truth.place)},
            pictures=_shown(drawn[0], truth.gallery[truth.place[0]], truth.gallery.mean(0)),
        )


def _shown(guesses: Floats, originals: Floats, mean: Floats) -> Floats:
    """Each class of one site: how it looks, what was drawn, and the gallery's mean."""
    return np.stack([originals, guesses, np.broadcast_to(mean, guesses.shape)], 1)


def _any_order(found: Whole, place: Whole) -> float:
    """The share of pictures that are nearest to some class of the site."""
    return float(np.mean([np.isin(one, own).mean() for one, own in zip(found, place, strict=True)]))


def decoder_row(lab: PortraitLab) -> Row:
    """L4. 208 sites, four to a decoder: 0.15 above a chance of 1/8 among 52."""
    title = "Pictures of a site's classes by paired-logits inversion"
    return _row("L4", title, lab, paired_logits, ("in-domain", *_ARMS))


def inversion_row(lab: PortraitLab) -> Row:
    """L5b. 208 sites, as L4."""

    def draw(answers: Floats, knowledge: Knowledge, budget: Budget, seed: int) -> Floats:
        return stolen_model_pictures(answers, knowledge, lab.backbone, budget, seed)

    return _row(
        "L5b", "Pictures of a site's classes by inverting the stolen model", lab, draw, _ARMS
    )


def _row(name: str, title: str, lab: PortraitLab, draw: Draw, arms: tuple[str, ...]) -> Row:
    return Row(
        name,
        title,
        _VIEW,
        _SEES,
        _METRIC,
        "rate",
        margin=0.15,
        control_margin=0.2,
        arms=arms,
        play=_Drawn(lab, draw),
    )

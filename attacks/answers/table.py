"""Rows of the attack table on answers; L1, L5 and L6 are here, and `answer_rows` has them all.

Margins are effects of practical meaning, fixed before any defended arm was seen. With each row
stands how many sites (`Budget.targets`) an arm without any effect needs to end below the margin in
9 of 10 plays. An arm with fewer is INCONCLUSIVE, not passed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from attacks.answers.label_distribution import distance, divergence, guess_shares
from attacks.answers.laboratory import (
    AnswerLab,
    Floats,
    PopulationLab,
    Seen,
    StealingLab,
)
from attacks.answers.membership_rows import crafted_row, membership_row
from attacks.answers.picture_rows import decoder_row, inversion_row
from attacks.answers.properties import figures, guess_property
from attacks.answers.regression import views
from attacks.answers.stealing import agreement, stolen_words
from attacks.rows import Budget, Measured, Row
from attacks.threat import Capability

ARMS: Final = ("clear", "clipped", "noised", "protected")
SHADOWS: Final = 128
SEES: Final = frozenset({Capability.PLANS, Capability.AGGREGATES})
VIEW: Final = (
    "clear, clipped and noised: one client's answers; protected: what the run's coalition sees"
)


def answer_rows(lab: AnswerLab, shadows: int = SHADOWS) -> tuple[Row, ...]:
    """L1, L2, L4, L5, L6 and P1 on a laboratory, each with so many shadow sites per arm."""
    return (
        label_row(lab, shadows),
        membership_row(lab, shadows),
        decoder_row(lab),
        stealing_row(lab, shadows),
        inversion_row(lab),
        property_row(lab, shadows),
        metadata_row(lab, shadows),
        crafted_row(lab, shadows),
    )


@dataclass(frozen=True)
class _Labels:
    lab: PopulationLab
    shadows: int

    def __call__(self, arm: str, budget: Budget, random: np.random.Generator) -> Measured:
        """The share of the prior's mean divergence that each guess saves."""
        knowledge = self.lab.knowledge(arm)
        several = knowledge.multi_label
        mine, known = self.lab.sites(arm, self.shadows, random, shadow=True)
        seen, truth = self.lab.sites(arm, budget.targets, random, shadow=False)
        guess, prior = guess_shares(seen.answers, knowledge, mine.answers, known.shares)
        lost = {
            "attack": divergence(truth.shares, guess, multi_label=several),
            "prior": divergence(truth.shares, prior[None], multi_label=several),
            "another site's answers": divergence(
                truth.shares, np.roll(guess, 1, 0), multi_label=several
            ),
        }
        unit = max(float(lost["prior"].mean()), np.finfo(float).tiny)
        saved = {name: -nats / unit for name, nats in lost.items()}
        right = guess.argmax(-1) == truth.shares.argmax(-1)
        return Measured(
            arm,
            saved.pop("attack"),
            saved,
            np.arange(budget.targets),
            extra={
                "KL": float(lost["attack"].mean()),
                "KL of the prior": float(lost["prior"].mean()),
                "total variation": float(distance(truth.shares, guess, multi_label=several).mean()),
                "commonest class": float(right.mean()),
            },
        )


def label_row(lab: PopulationLab, shadows: int = SHADOWS) -> Row:
    """L1. 64 sites: a guess's saving scatters by about a quarter of the prior's divergence."""
    return Row(
        "L1",
        "Label distribution of a site",
        VIEW,
        SEES,
        "share of the prior's Kullback–Leibler divergence that is saved",
        "gain",
        margin=0.1,
        control_margin=0.25,
        arms=ARMS,
        play=_Labels(lab, shadows),
        tier="fast",
    )


@dataclass(frozen=True)
class _Stealing:
    lab: StealingLab
    shadows: int

    def __call__(self, arm: str, budget: Budget, random: np.random.Generator) -> Measured:
        """How often the copy decides as the site's own model."""
        knowledge = self.lab.knowledge(arm)
        several, classes = knowledge.multi_label, knowledge.classes
        mine, _ = self.lab.victims(arm, self.shadows, random, shadow=True)
        answers, truth = self.lab.victims(arm, budget.targets, random, shadow=False)
        usual = np.broadcast_to(mine.mean(0), answers.shape)

        def agreed(given: Floats) -> Floats:
            words = stolen_words(given, knowledge, truth.features)
            return agreement(truth.said, words, multi_label=several)

        return Measured(
            arm,
            agreed(_best_blend(answers, mine, knowledge.noise)),
            {"prior": agreed(usual), "another site's answers": agreed(np.roll(answers, 1, 0))},
            np.arange(budget.targets),
            extra={"agreement by chance": 0.5 if several else 1 / classes},
        )


def _best_blend(answers: Floats, shadows: Floats, noise: float) -> Floats:
    """Answers drawn towards the shadows' mean as far as noise makes up their scatter (Wiener)."""
    usual = shadows.mean(0)
    scatter = float(((shadows - usual) ** 2).mean())
    kept = max(scatter - noise**2, 0.0) / scatter if scatter else 0.0
    blend: Floats = usual + kept * (answers - usual)
    return blend


def stealing_row(lab: StealingLab, shadows: int = SHADOWS) -> Row:
    """L5. 64 sites: agreements on some dozens of images scatter by about 0.1.

    What the prior knows is the shadows' mean answer: the task, but not this site.
    """
    return Row(
        "L5",
        "Stealing a site's model over all rounds",
        VIEW,
        SEES,
        "agreement with the site's model on its private test images",
        "gain",
        margin=0.05,
        control_margin=0.05,
        arms=ARMS,
        play=_Stealing(lab, shadows),
    )


@dataclass(frozen=True)
class _Properties:
    lab: PopulationLab
    shadows: int
    from_answers: bool

    def __call__(self, arm: str, budget: Budget, random: np.random.Generator) -> Measured:
        """Whether the property that shadows say is most exposed is guessed of each site."""
        mine, known = self.lab.sites(arm, self.shadows, random, shadow=True)
        seen, truth = self.lab.sites(arm, budget.targets, random, shadow=False)
        middle = known.sizes.mean()
        large = (known.sizes > middle).astype(np.int64), (truth.sizes > middle).astype(np.int64)
        properties = {
            name: (values, truth.attributes[name]) for name, values in known.attributes.items()
        }
        properties["larger than average"] = large
        theirs, own = self._views(arm, seen), self._views(arm, mine)
        guesses = {name: guess_property(theirs, own, one[0]) for name, one in properties.items()}
        hits = {
            name: (guesses[name].values == one[1]).astype(np.float64)
            for name, one in properties.items()
        }
        exposed = max(guesses, key=lambda name: guesses[name].gain)
        # What who has not looked gets right here: all of it, where all attacked sites are alike.
        blind = float((properties[exposed][1] == guesses[exposed].usual).mean())
        return Measured(
            arm,
            hits[exposed],
            {"chance": np.full(budget.targets, blind)},
            np.arange(budget.targets),
            extra={name: float(right.mean()) for name, right in hits.items()},
        )

    def _views(self, arm: str, seen: Seen) -> dict[str, Floats]:
        if self.from_answers:
            return views(seen.answers, self.lab.knowledge(arm))
        return figures(seen.metadata, len(seen.answers))


def property_row(lab: PopulationLab, shadows: int = SHADOWS) -> Row:
    """L6 from answers. 128 sites: 0.15 above a chance of one half."""
    return _property_row("L6", "Site, size and further properties, from answers", lab, shadows)


def metadata_row(lab: PopulationLab, shadows: int = SHADOWS) -> Row:
    """L6 from weights, lengths and times. 128 sites."""
    return _property_row("L6b", "The same from what travels in the clear", lab, shadows)


def _property_row(name: str, title: str, lab: PopulationLab, shadows: int) -> Row:
    from_answers = name == "L6"
    return Row(
        name,
        title,
        VIEW if from_answers else "weights, lengths and times beside the answers",
        SEES if from_answers else frozenset({Capability.PLANS}),
        "share of sites whose most exposed property is guessed (chance: its commonest value)",
        "rate",
        margin=0.15,
        control_margin=0.1,
        arms=ARMS if from_answers else ("clear", "protected"),
        play=_Properties(lab, shadows, from_answers),
    )

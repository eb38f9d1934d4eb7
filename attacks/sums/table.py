"""Rows of the attack table on sums: A1, A9, A12 and P2.

Margins were fixed before any defended arm was seen; with each row stands how many trials
(`Budget.targets`) an arm without effect needs to end below it in 9 of 10 plays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from attacks.answers.laboratory import Floats
from attacks.rows import Budget, Measured, Row
from attacks.sums.differences import closeness, relative_error, shown_alone, victim_answers
from attacks.sums.laboratory import (
    DifferenceLab,
    LongitudinalLab,
    PoisoningLab,
    ProbingLab,
    SumLab,
)
from attacks.sums.longitudinal import admission_scores
from attacks.sums.poisoning import exchanged
from attacks.sums.probing import correlation, probed_weights
from attacks.threat import Capability

_SEES: Final = frozenset({Capability.PLANS, Capability.AGGREGATES})
_LOUD: Final = 50.0  # times an honest answer, which a clip undoes
_REHEARSED: Final = 8  # groups of its own on which an attacker tries its poisons

_Poison = Callable[[Floats], Floats]


def sum_rows(lab: SumLab) -> tuple[Row, ...]:
    """A1, A9, A12 and P2 on a laboratory."""
    return difference_row(lab), admission_row(lab), probing_row(lab), poisoning_row(lab)


def difference_row(
    lab: DifferenceLab, arms: tuple[str, ...] = ("feigned dropout", "protected")
) -> Row:
    """A1. 32 federations: closeness without a second sum is the baseline's own, to rounding.

    The baseline is the one sum that was to be published. On the control all is exact: its
    relative errors are shown beside, at most 1e-6 in exact arithmetic.
    """

    def play(arm: str, budget: Budget, random: np.random.Generator) -> Measured:
        found, alone, errors = [], [], []
        for one in lab.incidents(arm, budget.targets, random):
            guess = victim_answers(one.published, one.victim, one.prior)
            found.append(closeness(guess, one.answers, one.prior))
            alone.append(closeness(shown_alone(one), one.answers, one.prior))
            errors.append(relative_error(guess, one.answers))
        return Measured(
            arm,
            np.array(found),
            {"the one sum": np.array(alone)},
            np.arange(len(found)),
            extra={
                "median relative error": float(np.median(errors)),
                "largest relative error": float(np.max(errors)),
            },
        )

    return Row(
        "A1",
        "One client's answers from several sums",
        "all sums that are published or can be had, less the coalition's own parts",
        _SEES,
        "1 − distance to the victim's answers / the prior's distance, over that of one sum",
        "gain",
        margin=0.05,
        control_margin=0.3,
        arms=arms,
        play=play,
        tier="fast",
    )


def admission_row(lab: LongitudinalLab) -> Row:
    """A9. 1,400 sites: areas scatter by 0.41/√700."""

    def play(arm: str, budget: Budget, random: np.random.Generator) -> Measured:
        seen = lab.admissions(arm, budget.targets, random)
        scores = admission_scores(seen, lab.knowledge(arm))
        return Measured(arm, scores, {}, np.arange(len(scores)), seen.admitted)

    return Row(
        "A9",
        "A patient who came between two rounds",
        "clear and noised: one client's answers in all rounds; protected: what the coalition sees",
        _SEES,
        "area under the ROC curve of the change of a student's margin",
        "auc",
        margin=0.05,
        control_margin=0.1,
        arms=("clear", "noised", "protected"),
        play=play,
    )


def probing_row(lab: ProbingLab) -> Row:
    """A12. 64 dialogues: correlations over some dozens of rows scatter by about 0.2."""

    def play(arm: str, budget: Budget, random: np.random.Generator) -> Measured:
        pairs: list[tuple[float, float]] = []
        for one in lab.dialogues(arm, budget.targets, random):
            found = one.passive
            if not one.settled:
                found = probed_weights(one.ask, one.passive, one.columns, one.noise)
            pairs.append((correlation(found, one.hidden), correlation(one.passive, one.hidden)))
        scores, passive = np.array(pairs).T
        return Measured(arm, scores, {"reading one round": passive}, np.arange(len(scores)))

    return Row(
        "A12",
        "A client's hidden weights by probing the aggregate",
        "what all clients read after each round, by one that sends chosen answers",
        _SEES,
        "correlation with the victim's weights per row, over that of a passive reader",
        "gain",
        margin=0.1,
        control_margin=0.3,
        arms=("quotient shown", "protected"),
        play=play,
    )


@dataclass(frozen=True)
class _Poisoning:
    lab: PoisoningLab

    def __call__(self, arm: str, budget: Budget, random: np.random.Generator) -> Measured:
        """Accuracy that is lost to one malicious client, and to one that stays away.

        Whether it shouts is what cost more on sites of its own.
        """
        rehearsed = self._mean_accuracies(arm, (_turned, _shouted), random)
        poison = _shouted if rehearsed[1] < rehearsed[0] else _turned
        seeds = random.integers(0, 1 << 31, budget.targets)
        runs = [
            [self._accuracy(arm, one, seed, shadow=False) for one in (_honest, None, poison)]
            for seed in seeds
        ]
        honest, absent, poisoned = np.array(runs).T
        return Measured(
            arm,
            honest - poisoned,
            {"client stays away": honest - absent},
            np.arange(len(seeds)),
            extra={
                "accuracy, all honest": float(honest.mean()),
                "accuracy, one client's classes exchanged": float(poisoned.mean()),
                "times as loud as an honest answer": _LOUD if poison is _shouted else 1.0,
                "rehearsed: accuracy, exchanged": rehearsed[0],
                "rehearsed: accuracy, exchanged and loud": rehearsed[1],
            },
        )

    def _mean_accuracies(
        self, arm: str, poisons: tuple[_Poison, ...], random: np.random.Generator
    ) -> list[float]:
        seeds = random.integers(0, 1 << 31, _REHEARSED)
        return [
            float(np.mean([self._accuracy(arm, poison, seed, shadow=True) for seed in seeds]))
            for poison in poisons
        ]

    def _accuracy(self, arm: str, poison: _Poison | None, seed: np.int64, *, shadow: bool) -> float:
        return self.lab.central_accuracy(arm, poison, int(seed), shadow=shadow)


def _honest(answers: Floats) -> Floats:
    return answers


def _turned(answers: Floats) -> Floats:
    return exchanged(answers, 1.0)


def _shouted(answers: Floats) -> Floats:
    return exchanged(answers, _LOUD)


def poisoning_row(lab: PoisoningLab) -> Row:
    """P2. 64 federations: drops of accuracy scatter by about 0.1. An integrity row, no leak."""
    return Row(
        "P2",
        "False answers of one client (not a leak: harm to the central model)",
        "a malicious client knows the answers that it would have sent",
        frozenset({Capability.PLANS}),
        "accuracy of the central model lost, over that lost if the client stayed away",
        "gain",
        margin=0.05,
        control_margin=0.1,
        arms=("unbounded", "clipped", "protected"),
        play=_Poisoning(lab),
    )

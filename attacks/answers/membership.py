"""L2: who was among a site's records, read from its answers to other images.

No answer on a candidate is ever seen. What stands in for it is the word of a student of the
observation (distilled shadows; Shi, Ouyang and Wang, arXiv 2502.08001), compared with shadow sites
that hold the candidate or do not: LiRA (Carlini et al. 2022, arXiv 2112.03570), RMIA (Zarifzadeh,
Liu and Shokri 2024, arXiv 2312.03262), or with the other sites alone (Co-op LiRA). Beside these a
regression learns, over all shadows at once, how each record moves the whole matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.special import expit, logsumexp, softmax

from attacks.answers.laboratory import Bools, Candidates, Floats, Knowledge
from attacks.answers.regression import learn, views
from attacks.answers.students import strength_of, students
from attacks.scores import auc

_RAISE: Final = 0.3
"""The constant of offline RMIA: how far a mean over sites without the record is below one with."""
_VALIDATED: Final = 3  # every third shadow judges the attacks


@dataclass(frozen=True, eq=False)
class Shadows:
    """Sites that the attacker trained: answers [n, rounds, rows, columns], inside bool[n, P]."""

    answers: Floats
    inside: Bools

    def at(self, chosen: Bools) -> Shadows:
        """These of them."""
        return Shadows(self.answers[chosen], self.inside[chosen])


@dataclass(frozen=True, eq=False)
class Signals:
    """What students say of the candidates: for each site [n, P].

    margin: of the true class in logits, over all others. right: probability of the true classes.
    """

    margin: Floats
    right: Floats


def signals(
    answers: Floats, knowledge: Knowledge, candidates: Candidates, strength: float
) -> Signals:
    """The students' words on the candidates; ridge penalty `strength`."""
    logits = students(answers, knowledge, candidates.features, strength)
    return _signals_of(logits, candidates.targets, multi_label=knowledge.multi_label)


def _signals_of(logits: Floats, targets: Floats, *, multi_label: bool) -> Signals:
    """logits [n, P, classes], targets [P, classes]."""
    if multi_label:
        signed = (2 * targets - 1) * logits
        return Signals(signed.sum(-1), np.exp(np.log(expit(signed)).mean(-1)))
    true = (targets * logits).sum(-1)
    others = logsumexp(np.where(targets > 0, -np.inf, logits), axis=-1)
    return Signals(true - others, (targets * softmax(logits, -1)).sum(-1))


@dataclass(frozen=True, eq=False)
class Trial:
    """All that a membership attack is given: shadows with their signals, and the sites' own."""

    knowledge: Knowledge
    candidates: Candidates
    shadows: Shadows
    known: Signals
    answers: Floats
    seen: Signals


def online_lira(trial: Trial) -> Floats:
    """log p(margin | in)/p(margin | out) of two Gaussians per record, with one variance."""
    inside, margin = trial.shadows.inside, trial.known.margin
    within, without = _means(margin, inside)
    spread = _spread(margin - np.where(inside, within, without))
    odds: Floats = (within - without) * (trial.seen.margin - (within + without) / 2) / spread**2
    return odds


def offline_lira(trial: Trial) -> Floats:
    """How far the margin is above those of shadows without the record, in deviations."""
    inside, margin = trial.shadows.inside, trial.known.margin
    _, without = _means(margin, inside)
    outside = np.where(inside, without, margin)
    apart: Floats = (trial.seen.margin - without) / _spread(outside - without)
    return apart


def coop_lira(trial: Trial) -> Floats:
    """The same against the other sites of the federation, whoever is in them; no shadows."""
    margin = trial.seen.margin
    others = (margin.sum(0) - margin) / max(len(margin) - 1, 1)
    apart: Floats = (margin - others) / _spread(margin - margin.mean(0))
    return apart


def distilled(trial: Trial) -> Floats:
    """The margin as it is; no shadows and no other sites."""
    return trial.seen.margin


def online_rmia(trial: Trial) -> Floats:
    """The share of other candidates z with p(x|site)/p(x) ≥ p(z|site)/p(z)."""
    within, without = _means(trial.known.right, trial.shadows.inside)
    return _share_beaten(trial.seen.right / ((within + without) / 2))


def offline_rmia(trial: Trial) -> Floats:
    """The same with p(x) = ((1 + a)·p_out(x) + 1 − a)/2, from shadows without the record."""
    _, without = _means(trial.known.right, trial.shadows.inside)
    return _share_beaten(trial.seen.right / (((1 + _RAISE) * without + 1 - _RAISE) / 2))


def regressed(trial: Trial) -> Floats:
    """A ridge regression of all membership bits on the whole matrix."""
    learned = learn(
        views(trial.shadows.answers, trial.knowledge),
        trial.shadows.inside.astype(np.float64),
        lambda truth, guess: ((truth - guess) ** 2).mean(-1),
    )
    return learned.guess(views(trial.answers, trial.knowledge)) - learned.prior


ATTACKS: Final[dict[str, Callable[[Trial], Floats]]] = {
    "online LiRA": online_lira,
    "offline LiRA": offline_lira,
    "online RMIA": online_rmia,
    "offline RMIA": offline_rmia,
    "Co-op LiRA": coop_lira,
    "distilled student": distilled,
    "regression": regressed,
}


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores [n, P] of every attack, higher for "a member", and which of them to believe.

    best did best on shadows that were held back, with an area of `rehearsed` under the ROC curve.
    """

    scores: dict[str, Floats]
    best: str
    rehearsed: float


def membership_scores(
    answers: Floats, knowledge: Knowledge, candidates: Candidates, shadows: Shadows
) -> Scored:
    """Score all candidates for sites with answers [n, rounds, rows, columns]."""
    validating = np.arange(len(shadows.inside)) % _VALIDATED == 0
    rehearsal = _trial(shadows.answers[validating], knowledge, candidates, shadows.at(~validating))
    held = shadows.inside[validating]
    areas = {name: _area(attack(rehearsal), held) for name, attack in ATTACKS.items()}
    trial = _trial(answers, knowledge, candidates, shadows)
    scores = {name: attack(trial) for name, attack in ATTACKS.items()}
    # An attack that says the same of all has fallen back to the prior: any other is as good.
    able = [name for name in ATTACKS if np.ptp(scores[name]) > 0]
    best = max(able or ATTACKS, key=lambda name: areas[name])
    return Scored(scores, best, areas[best])


def _trial(
    answers: Floats, knowledge: Knowledge, candidates: Candidates, shadows: Shadows
) -> Trial:
    strength = strength_of(shadows.answers[..., : knowledge.classes], knowledge.proxies)
    known = signals(shadows.answers, knowledge, candidates, strength)
    seen = signals(answers, knowledge, candidates, strength)
    return Trial(knowledge, candidates, shadows, known, answers, seen)


def _area(scores: Floats, inside: Bools) -> float:
    return auc(scores[inside], scores[~inside])


def _means(values: Floats, inside: Bools) -> tuple[Floats, Floats]:
    """Per record, the mean over shadows with it and over those without: [P] each."""
    counts = inside.sum(0)
    within = (values * inside).sum(0) / np.maximum(counts, 1)
    without = (values * ~inside).sum(0) / np.maximum(len(inside) - counts, 1)
    return within, without


def _spread(residuals: Floats) -> Floats:
    """Deviation [P] of each record, half its own variance and half all records' together."""
    own = (residuals**2).mean(0)
    variance: Floats = (own + own.mean()) / 2
    return np.sqrt(np.maximum(variance, np.finfo(float).tiny))


def _share_beaten(ratios: Floats) -> Floats:
    """For each [n, P]: the share of the site's other candidates that are no higher."""
    order = ratios.argsort(1).argsort(1)
    beaten: Floats = order / max(ratios.shape[1] - 1, 1)
    return beaten

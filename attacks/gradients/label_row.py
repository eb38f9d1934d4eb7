"""The row of label attacks: which labels a batch has, from the last layer's gradient alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from attacks.gradients.labels import bias_corrected, multiset_accuracy, rounded
from attacks.gradients.laboratory import GradientLab
from attacks.gradients.playing import arm_named, by_stage, in_time
from attacks.rows import Budget, Floats, Measured, Row
from attacks.threat import Capability


def label_row(lab: GradientLab) -> Row:
    """G2, bound to a laboratory that can play the scene "batch"."""
    return Row(
        id="G2",
        title="Labels of a batch from the last layer's gradient",
        view="gradients",
        needs=frozenset({Capability.CLEAR_CONTRIBUTIONS}),
        metric="share of a batch's labels that are right, as a multiset",
        statistic="gain",
        margin=0.05,
        control_margin=0.08,
        arms=lab.arms("batch"),
        play=partial(play_labels, lab),
        tier="fast",
    )


def play_labels(
    lab: GradientLab, arm: str, budget: Budget, random: np.random.Generator
) -> Measured:
    """Guess the labels of every target's batch. The estimate shrinks itself to the prior."""
    named, prior = arm_named(lab, "batch", arm), lab.prior()
    trials, priors, guesses = [], [], []
    for trial in in_time(lab.trials("batch", named, budget.targets, random), budget):
        known = trial.observation.knowledge
        number, classes = known.images, known.classes
        usual = rounded(torch.full((classes,), number / classes, dtype=torch.float64), number)
        shown = trial.observation.gradient is not None
        trials.append(trial)
        priors.append(usual)
        guesses.append(bias_corrected(trial.observation, prior) if shown else usual)

    def scored(found: Sequence[Tensor]) -> Floats:
        return np.array(
            [
                multiset_accuracy(_scaled(guess, trial.truth.labels), trial.truth.labels, classes)
                for guess, trial in zip(found, trials, strict=True)
            ]
        )

    scores = scored(guesses)
    return Measured(
        arm=arm,
        scores=scores,
        baselines={
            "prior": scored(priors),
            "another client's guess": scored(guesses[-1:] + guesses[:-1]),
        },
        clusters=np.array([trial.truth.cluster for trial in trials]),
        extra={"share of batches all right": float((scores == 1).mean())}
        | by_stage(scores, [trial.stage for trial in trials]),
    )


def _scaled(labels: Tensor, truth: Tensor) -> Tensor:
    """A victim's share of the labels of several clients: as many in proportion."""
    if len(labels) == len(truth):
        return labels
    return rounded(torch.bincount(labels).double() * len(truth) / len(labels), len(truth))

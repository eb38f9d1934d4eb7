"""The row of label attacks: which labels a batch has, from the last layer's gradient alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import Tensor

from attacks.gradients.labels import counted, multiset_accuracy, rounded, wainakh
from attacks.gradients.laboratory import GradientLab, Knowledge, Observation, Trial
from attacks.gradients.playing import arm_named, in_time, mean_by_stage
from attacks.gradients.rehearsal import by_stage, convincing, rehearsals
from attacks.rows import Budget, Floats, Measured, Row
from attacks.threat import Capability

_SHARES: Final = (1.0, 0.75, 0.5, 0.25)
"""How far a guess may leave the prior's counts; at 1 it is believed as it is."""


def _by_signs(seen: Observation, prior: Tensor) -> Tensor:
    del prior
    return torch.bincount(wainakh(seen), minlength=seen.knowledge.classes).double()


_WAYS: Final[Mapping[str, Callable[[Observation, Tensor], Tensor]]] = {
    "bias corrected": counted,
    "signs": _by_signs,
}


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
    """Rehearse on the attacker's own images, then guess the labels of every target's batch."""
    named, prior = arm_named(lab, "batch", arm), lab.prior()
    count = rehearsals(budget.targets, cheap=True)
    chosen, told = _rehearse(list(lab.rehearsals("batch", named, count, random)), prior)
    trials, guesses = [], []
    for trial in in_time(lab.trials("batch", named, budget.targets, random), budget):
        way, share = chosen(trial)
        trials.append(trial)
        guesses.append(_guess(trial, _counts(trial, way, prior), share))
    scores = _scores(guesses, trials)
    return Measured(
        arm=arm,
        scores=scores,
        baselines={
            "prior": _scores([_guess(one, None, 0.0) for one in trials], trials),
            "another client's guess": _scores(guesses[-1:] + guesses[:-1], trials),
        },
        clusters=np.array([trial.truth.cluster for trial in trials]),
        extra=told
        | {"share of batches all right": float((scores == 1).mean())}
        | mean_by_stage(scores, [trial.stage for trial in trials]),
    )


def _rehearse(
    trials: Sequence[Trial], prior: Tensor
) -> tuple[Callable[[Trial], tuple[str, float]], dict[str, float]]:
    """Which way to go with a client, "" for none, and how far to believe it; and what each reached.

    The mean probability of a trained network on other images than the batch's may be far off, the
    more so after steps that overshoot. On images of its own the attacker sees it.
    """
    base = _scores([_guess(trial, None, 0.0) for trial in trials], trials)
    told, gains = {"rehearsed: prior": float(base.mean())}, {}
    for way in _WAYS:
        counts = [_counts(trial, way, prior) for trial in trials]
        for share in _SHARES:
            guesses = [_guess(*pair, share) for pair in zip(trials, counts, strict=True)]
            scores = _scores(guesses, trials)
            gains[way, share] = scores - base
            told[f"rehearsed: {way}, share {share:g}"] = float(scores.mean())

    def best(rows: list[int]) -> tuple[str, float]:
        able = [key for key in gains if convincing(gains[key][rows])]
        return max(able, key=lambda key: float(gains[key][rows].mean()), default=("", 0.0))

    return by_stage(trials, best), told


def _counts(trial: Trial, way: str, prior: Tensor) -> Tensor | None:
    """A way's counts [K] of labels; None where nothing is shown, or nothing believed."""
    if not way or trial.observation.gradient is None:
        return None
    return _WAYS[way](trial.observation, prior)


def _guess(trial: Trial, counts: Tensor | None, share: float) -> Tensor:
    """Labels between the prior's, every class alike, and those counted."""
    known = trial.observation.knowledge
    usual = _usual(known)
    blend = usual if counts is None else usual + share * (counts - usual)
    return rounded(blend, known.images)


def _usual(known: Knowledge) -> Tensor:
    return torch.full((known.classes,), known.images / known.classes, dtype=torch.float64)


def _scores(guesses: Sequence[Tensor], trials: Sequence[Trial]) -> Floats:
    """The share of each victim's labels that are right."""
    return np.array(
        [
            multiset_accuracy(
                _scaled(guess, trial.truth.labels),
                trial.truth.labels,
                trial.observation.knowledge.classes,
            )
            for guess, trial in zip(guesses, trials, strict=True)
        ]
    )


def _scaled(labels: Tensor, truth: Tensor) -> Tensor:
    """A victim's share of the labels of several clients: as many in proportion."""
    if len(labels) == len(truth):
        return labels
    return rounded(torch.bincount(labels).double() * len(truth) / len(labels), len(truth))

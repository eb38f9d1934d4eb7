"""Scores with bootstrap intervals over patients.

Every resample is a vector of image weights (how often each patient was drawn), so a score of B
resamples is one pass over a [B, n] matrix. The weighted scores agree with scikit-learn's
`sample_weight`, which the tests check; resampling through it would take minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secure_natfl.report.model import Interval, Scores, Unit

Floats = NDArray[np.float64]
Score = Callable[[Floats, NDArray[np.bool_], Floats], Floats]
"""(probability [n], truth [n], weights [B, n]) → [B]; NaN where a class is missing."""

RESAMPLES = 1000
_BINS = 10


@dataclass(frozen=True)
class Truth:
    """What is known of a test part: `targets`, `known` [n, C], and the patient of each image.

    Of masks both are [n, C, S, S].
    """

    targets: NDArray[np.float32]
    known: NDArray[np.float32]
    patients: tuple[str, ...]
    unit: Unit
    multi_label: bool


def score(predictions: Sequence[Floats], truth: Truth, seed: int = 0) -> Scores:
    """Mean scores of one or several models' probabilities on one test part, in its targets' shape.

    Masks have a Dice score and nothing else. Two-class tasks score the second class; others take
    the mean over classes that have both positives and negatives. Intervals: 95 % percentile
    bootstrap over patients.
    """
    weights = _resamples(truth.patients, seed)
    units = len(set(truth.patients))
    if truth.targets.ndim > 2:
        dice = _interval([mean_dice(dice_of(p, truth), weights) for p in predictions])
        nothing = dict.fromkeys(("auroc", "auprc", "balanced_accuracy", "ece"))
        return Scores(**nothing, dice=dice, n=units, unit=truth.unit)
    figures = {
        name: _interval([_mean_over_classes(p, truth, weights, each) for p in predictions])
        for name, each in (
            ("auroc", auroc),
            ("auprc", auprc),
            ("balanced_accuracy", balanced_accuracy),
        )
    }
    calibration = _interval([_calibration(p, truth, weights) for p in predictions])
    both = figures["auroc"] is not None
    return Scores(
        auroc=figures["auroc"],
        auprc=figures["auprc"] if both else None,
        balanced_accuracy=figures["balanced_accuracy"] if both else None,
        ece=calibration,
        accuracy=None
        if truth.multi_label
        else _interval([_accuracy(p, truth, weights) for p in predictions]),
        n=units,
        unit=truth.unit,
    )


def auroc_of(predictions: Sequence[Floats], truth: Truth) -> float | None:
    """The models' mean AUROC on the sample itself; None of masks or if no class has both sides."""
    if truth.targets.ndim > 2:
        return None
    once = np.ones((1, len(truth.patients)))
    found = [_mean_over_classes(p, truth, once, auroc) for p in predictions]
    return float(np.mean([f[0] for f in found if f is not None])) if found[0] is not None else None


def quick_dice(predictions: Sequence[Floats], truth: Truth) -> float | None:
    """The models' mean Dice score on the sample itself; None where the targets are no masks."""
    if truth.targets.ndim == 2:
        return None
    once = np.ones((1, len(truth.patients)))
    found = float(np.mean([mean_dice(dice_of(p, truth), once)[0] for p in predictions]))
    return found if np.isfinite(found) else None


def dice_of(p: Floats, truth: Truth) -> Floats:
    """2·|A ∩ B| / (|A| + |B|) of each image and class but the first: [n, C − 1].

    A: pixels at which the class is the most probable; B: those that have it. Unknown pixels count
    in neither. NaN where both are empty. (Dice, Ecology 26:297, 1945.)
    """
    classes = p.shape[1]
    known = truth.known.reshape(len(p), classes, -1)[:, 0] > 0
    called = p.reshape(len(p), classes, -1).argmax(1)
    right = truth.targets.reshape(len(p), classes, -1).argmax(1)
    out = np.full((len(p), classes - 1), np.nan)
    for c in range(1, classes):
        a, b = (called == c) & known, (right == c) & known
        total = (a.sum(1) + b.sum(1)).astype(np.float64)
        np.divide(2 * (a & b).sum(1), total, out=out[:, c - 1], where=total > 0)
    return out


def mean_dice(each: Floats, weights: Floats) -> Floats:
    """Mean of `each` [n, C − 1] over images weighted [B, n] and classes, NaN left out: [B]."""
    defined = np.isfinite(each)
    return _ratio(weights @ np.where(defined, each, 0).sum(1), weights @ defined.sum(1))


def auroc(p: Floats, truth: NDArray[np.bool_], weights: Floats) -> Floats:
    """Probability that a positive outranks a negative, ties counting half."""
    order = np.argsort(p, kind="stable")
    w, t = weights[:, order], truth[order]
    start = np.flatnonzero(np.r_[True, np.diff(p[order]) > 0])
    positive = np.add.reduceat(w * t, start, axis=1)
    negative = np.add.reduceat(w * ~t, start, axis=1)
    below = np.cumsum(negative, axis=1) - negative
    return _ratio((positive * (below + negative / 2)).sum(1), positive.sum(1) * negative.sum(1))


def auprc(p: Floats, truth: NDArray[np.bool_], weights: Floats) -> Floats:
    """Average precision: Σ (R_i − R_{i−1})·P_i over the thresholds from high to low."""
    order = np.argsort(-p, kind="stable")
    w, t = weights[:, order], truth[order]
    start = np.flatnonzero(np.r_[True, np.diff(p[order]) < 0])
    positive = np.add.reduceat(w * t, start, axis=1)
    everything = np.add.reduceat(w, start, axis=1)
    found, seen = np.cumsum(positive, axis=1), np.cumsum(everything, axis=1)
    precision = np.divide(found, seen, out=np.zeros_like(found), where=seen > 0)
    return _ratio((positive * precision).sum(1), positive.sum(1))


def balanced_accuracy(p: Floats, truth: NDArray[np.bool_], weights: Floats) -> Floats:
    """Mean of sensitivity and specificity at probability ½."""
    called = p >= 0.5
    sensitivity = _ratio((weights * (called & truth)).sum(1), (weights * truth).sum(1))
    specificity = _ratio((weights * (~called & ~truth)).sum(1), (weights * ~truth).sum(1))
    return (sensitivity + specificity) / 2


def expected_calibration_error(
    confidence: Floats, right: NDArray[np.bool_], weights: Floats
) -> Floats:
    """Σ over ten equal bins of |share right − mean confidence|, weighted by the bin's mass."""
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    total = np.zeros(len(weights))
    for b in range(_BINS):
        inside = bins == b
        total += np.abs((weights[:, inside] * (right[inside] - confidence[inside])).sum(1))
    return np.asarray(total / weights.sum(1))


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    out = np.full(len(numerator), np.nan)
    np.divide(numerator, denominator, out=out, where=denominator > 0)
    return out


def _mean_over_classes(p: Floats, truth: Truth, weights: Floats, each: Score) -> Floats | None:
    two_class = not truth.multi_label and truth.targets.shape[1] == 2
    columns = [1] if two_class else range(truth.targets.shape[1])
    scores = []
    for c in columns:
        known = truth.known[:, c] > 0
        positive = truth.targets[known, c] > 0
        if positive.any() and not positive.all():
            scores.append(each(p[known, c], positive, weights[:, known]))
    return np.mean(scores, axis=0) if scores else None


def _accuracy(p: Floats, truth: Truth, weights: Floats) -> Floats:
    right = p.argmax(1) == truth.targets.argmax(1)
    return _ratio((weights * right).sum(1), weights.sum(1))


def _calibration(p: Floats, truth: Truth, weights: Floats) -> Floats:
    """ECE of the top class, or of every known label's probability in a multi-label task."""
    if not truth.multi_label:
        right = p.argmax(1) == truth.targets.argmax(1)
        return expected_calibration_error(p.max(1), right, weights)
    rows, columns = np.nonzero(truth.known > 0)
    return expected_calibration_error(
        p[rows, columns], truth.targets[rows, columns] > 0, weights[:, rows]
    )


def _resamples(patients: tuple[str, ...], seed: int) -> Floats:
    """[1 + B, n]: the sample itself, then B patient bootstraps as image weights."""
    names, of_image = np.unique(np.array(patients), return_inverse=True)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    return np.vstack([np.ones(len(of_image)), draws[:, of_image].astype(np.float64)])


def _interval(per_model: Sequence[Floats | None]) -> Interval | None:
    """The models' mean, with the percentile interval of its resamples."""
    present = [scores for scores in per_model if scores is not None]
    if not present:
        return None
    mean = np.mean(present, axis=0)
    usable = mean[1:][np.isfinite(mean[1:])]
    if not np.isfinite(mean[0]) or not len(usable):
        return None
    low, high = np.percentile(usable, [2.5, 97.5])
    return Interval(value=float(mean[0]), low=float(low), high=float(high))

"""AUROC of out-of-fold predictions, with one bootstrap over patients for everything that is paired.

A positive image is ranked against the negatives of its own fold alone, since each fold has a model
of its own; the pairs of all folds are counted together. The rows of a curve are the sample itself
and then the resamples, drawn once per hospital, so that any two curves may be subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secure_natfl.metrics import auroc
from secure_natfl.report.model import Interval
from secure_natfl.study.predictions import Floats, Integers, Truth

RESAMPLES = 1000
_ALPHA = 0.05


@dataclass(frozen=True)
class Difference:
    """A paired difference of AUROCs with its one-sided 95 % bounds: each holds by itself."""

    value: float
    lower: float
    upper: float


def resamples(units: Integers, seed: int = 0) -> Floats:
    """[1 + B, n]: each image once, then how often its patient was drawn."""
    names, of_image = np.unique(units, return_inverse=True)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    return np.vstack([np.ones(len(of_image)), draws[:, of_image].astype(np.float64)])


def curve(probabilities: Floats, truth: Truth, weights: Floats) -> Floats | None:
    """AUROC [1 + B] of one network's probabilities [n, C]; the mean over scored classes.

    None where no class has both sides; NaN in a resample that lost one.
    """
    found = []
    for column in truth.columns:
        known = truth.known[:, column] > 0
        positive = truth.targets[known, column] > 0
        if positive.any() and not positive.all():
            p, fold = probabilities[known, column], truth.fold[known]
            found.append(_within_folds(p, positive, fold, weights[:, known]))
    return np.asarray(np.mean(found, axis=0)) if found else None


def interval(values: Floats) -> Interval | None:
    """The first value, with the central 95 % of the others."""
    usable = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or not len(usable):
        return None
    low, high = np.percentile(usable, [2.5, 97.5])
    return Interval(value=float(values[0]), low=float(low), high=float(high))


def difference(values: Floats, reference: Floats) -> Difference | None:
    """`values` − `reference`, resample by resample."""
    apart = values - reference
    usable = apart[1:][np.isfinite(apart[1:])]
    if not np.isfinite(apart[0]) or not len(usable):
        return None
    lower, upper = np.percentile(usable, [100 * _ALPHA, 100 * (1 - _ALPHA)])
    return Difference(float(apart[0]), float(lower), float(upper))


def _within_folds(
    p: Floats, positive: NDArray[np.bool_], fold: Integers, weights: Floats
) -> Floats:
    """Share of all pairs within a fold that are in the right order: [1 + B]."""
    right, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    for number in np.unique(fold):
        rows = fold == number
        w, t = weights[:, rows], positive[rows]
        count = w[:, t].sum(1) * w[:, ~t].sum(1)
        right += np.nan_to_num(auroc(p[rows], t, w)) * count
        pairs += count
    share = np.full(len(pairs), np.nan)
    np.divide(right, pairs, out=share, where=pairs > 0)
    return share

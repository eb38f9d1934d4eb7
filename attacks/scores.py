"""Scores of attacks, each with an interval: areas, rates, and how sure one can be of them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, rankdata

from protocols.errors import ConfigError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A confidence interval at `level`, both ends included."""

    low: float
    high: float
    level: float = 0.95

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def auc(members: ArrayLike, others: ArrayLike) -> float:
    """Probability that a member scores above another, ties counted half (Mann and Whitney 1947).

    Scores are finite and higher for what the attack takes for a member. 0.5 is chance.
    """
    inside, outside = _scores(members, "members"), _scores(others, "others")
    ranks = rankdata(np.concatenate([inside, outside]))
    count = len(inside)
    wins = ranks[:count].sum() - count * (count + 1) / 2
    return float(wins / (count * len(outside)))


def tpr_at_fpr(members: ArrayLike, others: ArrayLike, fpr: float) -> float:
    """Largest true-positive rate of a threshold whose false-positive rate is at most `fpr`.

    No interpolation: below 1/len(others) it is the rate of members above every other.
    """
    inside, outside = _scores(members, "members"), np.sort(_scores(others, "others"))
    if not 0 <= fpr <= 1:
        raise ConfigError(f"false-positive rate {fpr}", fix="give a rate between 0 and 1")
    allowed = int(np.floor(fpr * len(outside) + 1e-9))
    if allowed == len(outside):
        return 1.0
    return float((inside > outside[len(outside) - 1 - allowed]).mean())


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Exact interval of a proportion (Clopper and Pearson 1934); never below its level."""
    if not 0 <= successes <= trials or trials < 1 or not 0 < level < 1:
        raise ConfigError(
            f"{successes} successes in {trials} trials at level {level}",
            fix="give 0 ≤ successes ≤ trials, at least one trial, and a level within (0, 1)",
        )
    tail = (1 - level) / 2
    low = beta.ppf(tail, successes, trials - successes + 1) if successes else 0.0
    high = beta.ppf(1 - tail, successes + 1, trials - successes) if successes < trials else 1.0
    return Interval(float(low), float(high), level)


def bootstrap(
    statistic: Callable[..., float],
    *samples: ArrayLike,
    random: np.random.Generator,
    level: float = 0.95,
    repeats: int = 1000,
) -> Interval:
    """Percentile interval of a statistic of samples, each resampled by itself (Efron 1979).

    One entry of a sample is one independent unit (a patient, a trial), never one pixel or one
    image of several. A sample that is all alike gives an interval of width zero: use
    `clopper_pearson` for proportions at 0 or 1.
    """
    drawn = [np.asarray(sample) for sample in samples]
    if not drawn or min(map(len, drawn)) < 1:
        raise ConfigError("nothing to resample", where="bootstrap", fix="give non-empty samples")
    values = [
        statistic(*(sample[random.integers(0, len(sample), len(sample))] for sample in drawn))
        for _ in range(repeats)
    ]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level)


def _scores(values: ArrayLike, name: str) -> Floats:
    scores = np.asarray(values, np.float64)
    if scores.ndim != 1 or not len(scores) or not np.isfinite(scores).all():
        raise ConfigError(
            f"scores of shape {scores.shape}",
            where=name,
            why="a score is one finite number per trial, failed trials included",
            fix="give a failed trial the attack's lowest score",
        )
    return scores

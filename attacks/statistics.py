"""How large an effect is and how sure one can be of it, with dependent trials kept together.

Trials of one cluster (a client, a patient, a model) are resampled together or counted as one.
Two kinds of evidence: resampled means and areas, with the bias-corrected and accelerated bootstrap
(BCa, Efron 1987) read both ways, as interval and as p-value, expanded for few clusters as Student's
interval is (Hesterberg 2015); and rates, with the exact binomial law (Clopper and Pearson 1934).
`holm` corrects for a table of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, ndtr, ndtri, stdtr, stdtrit
from scipy.stats import beta, binom

from attacks.scores import Floats, Interval

REPEATS: Final = 9_999
_MOST_CLUSTERS: Final = 1_000  # more are joined in blocks, which stay independent


class Evidence(Protocol):
    """What the trials of one arm say of one effect, in the units of the scores."""

    @property
    def estimate(self) -> float:
        """The effect in the sample."""

    @property
    def clusters(self) -> int:
        """Independent clusters of trials."""

    def interval(self, level: float = 0.95) -> Interval:
        """A two-sided confidence interval of the effect."""

    def p_at_most(self, value: float) -> float:
        """One-sided p-value against "the effect is at most `value`"."""

    def p_at_least(self, value: float) -> float:
        """One-sided p-value against "the effect is at least `value`"."""

    def power(self, effect: float, alpha: float) -> float | None:
        """Probability that an effect so large, with this spread, is found above 0 at `alpha`.

        None where nothing is known of the spread.
        """


@dataclass(frozen=True)
class Resampled:
    """A statistic over resampled clusters.

    draws: float64[REPEATS], sorted. No p-value is below 2^−clusters, the chance that so many
    symmetric effects have one sign: a handful of clusters never proves much.
    """

    estimate: float
    clusters: int
    draws: Floats = field(repr=False)
    bias: float
    acceleration: float

    def interval(self, level: float = 0.95) -> Interval:
        """The BCa interval."""
        tail = (1 - level) / 2
        low, high = np.quantile(self.draws, [self._place(tail), self._place(1 - tail)])
        return Interval(float(low), float(high), level)

    def p_at_most(self, value: float) -> float:
        """The error at which the interval's lower end would stand at `value`."""
        below = np.searchsorted(self.draws, value, side="right")
        return max(self._error((below + 1) / (len(self.draws) + 1)), 0.5**self.clusters)

    def p_at_least(self, value: float) -> float:
        """The error at which the interval's upper end would stand at `value`."""
        below = np.searchsorted(self.draws, value, side="left")
        return max(1 - self._error(below / (len(self.draws) + 1)), 0.5**self.clusters)

    def power(self, effect: float, alpha: float) -> float | None:
        """As of a normal law with the standard deviation of the draws; None if they are alike."""
        spread = float(self.draws.std()) if np.ptp(self.draws) else 0.0
        if 0.5**self.clusters > alpha:
            return 0.0
        return float(ndtr(effect / spread + ndtri(alpha))) if spread else None

    def _place(self, error: float) -> float:
        """The quantile of the draws at which an end with this one-sided error stands."""
        moved = self.bias + self._spread * float(stdtrit(self._freedom, error))
        return float(ndtr(self.bias + moved / (1 - self.acceleration * moved)))

    def _error(self, place: float) -> float:
        """The inverse of `_place`."""
        if not 0 < place < 1:
            return float(place >= 1)
        moved = float(ndtri(place)) - self.bias
        plain = moved / (1 + self.acceleration * moved) - self.bias
        return float(stdtr(self._freedom, plain / self._spread))

    @property
    def _freedom(self) -> int:
        return max(self.clusters - 1, 1)

    @property
    def _spread(self) -> float:
        """A resample scatters less than a sample does, by this factor."""
        return math.sqrt((self._freedom + 1) / self._freedom)


@dataclass(frozen=True)
class Counted:
    """A share of successes over that of guessing; each cluster counts as one trial.

    So the interval holds however alike the trials of a cluster are.
    """

    rate: float
    chance: float
    clusters: int

    @property
    def estimate(self) -> float:
        """Success beyond chance."""
        return self.rate - self.chance

    def interval(self, level: float = 0.95) -> Interval:
        """Clopper and Pearson's, less chance."""
        hits, tail = self.rate * self.clusters, (1 - level) / 2
        misses = self.clusters - hits
        low = beta.ppf(tail, hits, misses + 1) if hits > 0 else 0.0
        high = beta.ppf(1 - tail, hits + 1, misses) if misses > 0 else 1.0
        return Interval(float(low) - self.chance, float(high) - self.chance, level)

    def p_at_most(self, value: float) -> float:
        """P(so many successes or more) at a true rate of chance + value."""
        hits = self.rate * self.clusters
        return float(betainc(hits, self.clusters - hits + 1, self._at(value))) if hits > 0 else 1.0

    def p_at_least(self, value: float) -> float:
        """P(so many successes or fewer) at a true rate of chance + value."""
        hits = self.rate * self.clusters
        misses = self.clusters - hits
        return float(1 - betainc(hits + 1, misses, self._at(value))) if misses > 0 else 1.0

    def power(self, effect: float, alpha: float) -> float:
        """Exact, of the test that `p_at_most(0)` is."""
        needed = int(binom.isf(alpha, self.clusters, self.chance)) + 1
        return float(binom.sf(needed - 1, self.clusters, self._at(effect)))

    def _at(self, value: float) -> float:
        return float(np.clip(self.chance + value, 0.0, 1.0))


def mean_gain(gains: Floats, clusters: NDArray[np.int64], random: np.random.Generator) -> Resampled:
    """The mean of gains [trials] over trials, clusters [trials] resampled as wholes."""
    cluster, count = _numbered(clusters)
    sums = np.bincount(cluster, gains, count)
    sizes = np.bincount(cluster, minlength=count)
    return _resampled(lambda weights: (weights @ sums) / (weights @ sizes), count, random)


def area(
    scores: Floats,
    members: NDArray[np.bool_],
    clusters: NDArray[np.int64],
    random: np.random.Generator,
) -> Resampled:
    """The area under the ROC curve less ½, clusters [trials] resampled as wholes.

    A resample without a member, or without another, counts as chance.
    """
    cluster, count = _numbered(clusters)
    wins = _wins(scores, members, cluster, count)
    inside = np.bincount(cluster[members], minlength=count)
    outside = np.bincount(cluster[~members], minlength=count)

    def over(weights: Floats) -> Floats:
        pairs = (weights @ inside) * (weights @ outside)
        total = ((weights @ wins) * weights).sum(-1)
        return np.where(pairs > 0, total / np.maximum(pairs, 1), 0.5) - 0.5

    return _resampled(over, count, random)


def share(hits: Floats, chance: float, clusters: NDArray[np.int64]) -> Counted:
    """The share of successes among hits [trials], each 0 or 1, against `chance`."""
    return Counted(float(hits.mean()), chance, len(np.unique(clusters)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values that control the chance of any false alarm in a table (Holm 1979)."""
    order = np.argsort(p_values)
    adjusted, largest = [1.0] * len(order), 0.0
    for rank, at in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[at]))
        adjusted[at] = largest
    return adjusted


def kl_divergence(true: Floats, guess: Floats) -> Floats:
    """KL(true ‖ guess) in nats of distributions [..., C]; a guess of 0 where there is some is ∞."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(true > 0, true * np.log(true / guess), 0.0)
    total: Floats = terms.sum(-1)
    return total


def total_variation(true: Floats, guess: Floats) -> Floats:
    """Half the L1 distance of distributions [..., C]: between 0 and 1."""
    total: Floats = np.abs(true - guess).sum(-1) / 2
    return total


def _numbered(clusters: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Clusters as 0, 1, …, at most `_MOST_CLUSTERS` of them."""
    names, numbers = np.unique(clusters, return_inverse=True)
    count = min(len(names), _MOST_CLUSTERS)
    return numbers.reshape(-1).astype(np.int64) % count, count


def _wins(
    scores: Floats, members: NDArray[np.bool_], cluster: NDArray[np.int64], count: int
) -> Floats:
    """[i, j]: pairs of a member in cluster i and another in j that the member wins; ties half."""
    others, theirs = scores[~members], cluster[~members]
    wins = np.zeros((count, count))
    for at in range(count):
        own = np.sort(scores[members & (cluster == at)])
        left, right = np.searchsorted(own, others, "left"), np.searchsorted(own, others, "right")
        wins[at] = np.bincount(theirs, len(own) - (left + right) / 2, count)
    return wins


class _Statistic(Protocol):
    def __call__(self, weights: Floats) -> Floats:
        """The statistic with each cluster so often in it: weights [n, clusters] → [n]."""


def _weights(count: int, draws: int, random: np.random.Generator) -> Floats:
    """How often each of `count` clusters is in each resample: [draws, count]."""
    chosen = random.integers(0, count, (draws, count)) + count * np.arange(draws)[:, None]
    often = np.bincount(chosen.ravel(), minlength=draws * count)
    return often.reshape(draws, count).astype(np.float64)


def _resampled(statistic: _Statistic, count: int, random: np.random.Generator) -> Resampled:
    estimate = float(statistic(np.ones((1, count)))[0])
    parts = (REPEATS // 3,) * 3
    draws = np.concatenate([statistic(_weights(count, part, random)) for part in parts])
    if np.ptp(draws) <= 1e-12 * max(1.0, abs(estimate)):
        return Resampled(estimate, count, np.full(len(draws), estimate), 0.0, 0.0)
    without = statistic(1 - np.eye(count))
    off = without.mean() - without
    skew = float((off**3).sum() / (6 * (off**2).sum() ** 1.5))
    below = ((draws < estimate).mean() + (draws <= estimate).mean()) / 2
    inside = float(np.clip(below, 0.5 / REPEATS, 1 - 0.5 / REPEATS))
    return Resampled(estimate, count, np.sort(draws), float(ndtri(inside)), skew)

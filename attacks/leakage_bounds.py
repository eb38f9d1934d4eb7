"""From counts at one threshold to a lower bound on what a mechanism leaks, in μ or ε.

Sources: Clopper and Pearson 1934 for rates; Nasr et al. 2023 (arXiv 2302.07956) for Gaussian
differential privacy in two worlds; Steinke, Nasr and Jagielski 2023 (arXiv 2305.08846) and
Mahloujifar, Melis and Chaudhuri 2024 (arXiv 2410.22235) for many canaries in one run; Dong, Roth
and Su 2022 (arXiv 1905.02383) for the exact ε of a Gaussian.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Final, Literal, NamedTuple

import numpy as np
from scipy.special import bdtrc, expit, log_ndtr, ndtr, ndtri

from attacks.scores import clopper_pearson

Quantity = Literal["mu", "epsilon"]

_LARGEST: Final = 64.0  # of ε or μ; no audit of a billion trials reaches it


class Counts(NamedTuple):
    """What one threshold gives: trials above it and trials, with the canary and without."""

    caught: int
    inside: int
    alarms: int
    outside: int


class Method(ABC):
    """A test of "no more than `value`" by counts, in units of μ or ε; its bound inverts it."""

    name: ClassVar[str]
    quantity: ClassVar[Quantity]
    paired: ClassVar[bool]
    """Whether trials with and without are separate runs, rather than canaries of one run."""

    @abstractmethod
    def rejects(self, counts: Counts, value: float, delta: float, confidence: float) -> bool:
        """Whether counts refute `value`; of a true one this happens with at most 1 - confidence."""

    @abstractmethod
    def point(self, counts: Counts, delta: float) -> float:
        """The estimate without any interval; ∞ where no error was seen."""

    def bound(self, counts: Counts, delta: float, confidence: float) -> float:
        """The largest value that counts refute, to six digits; 0 if they refute none."""
        low, high = 0.0, _LARGEST
        if not self.rejects(counts, low, delta, confidence):
            return 0.0
        while high - low > 1e-7:
            middle = (low + high) / 2
            if self.rejects(counts, middle, delta, confidence):
                low = middle
            else:
                high = middle
        return low


class _TwoWorlds(Method):
    paired = True

    def rejects(self, counts: Counts, value: float, delta: float, confidence: float) -> bool:
        """Whether the bound, which has a closed form here, is above `value`."""
        return self.bound(counts, delta, confidence) > value

    def bound(self, counts: Counts, delta: float, confidence: float) -> float:
        """The value at upper bounds on both error rates that hold together."""
        missed = counts.inside - counts.caught
        return self._value(
            clopper_pearson(counts.alarms, counts.outside, confidence).high,
            clopper_pearson(missed, counts.inside, confidence).high,
            delta,
        )

    def point(self, counts: Counts, delta: float) -> float:
        """The value at the observed rates."""
        return self._value(counts.alarms / counts.outside, 1 - counts.caught / counts.inside, delta)

    @abstractmethod
    def _value(self, alarms: float, missed: float, delta: float) -> float:
        """What two error rates refute, at least 0."""


class TwoWorldGaussian(_TwoWorlds):
    """Reruns in two worlds, and the whole trade-off curve of a Gaussian (Nasr et al. 2023)."""

    name, quantity = "two worlds, Gaussian DP", "mu"

    def _value(self, alarms: float, missed: float, delta: float) -> float:
        del delta
        return float(max(-ndtri(alarms) - ndtri(missed), 0.0)) if max(alarms, missed) < 1 else 0.0


class TwoWorldRates(_TwoWorlds):
    """Reruns in two worlds, and nothing assumed of the noise (Clopper and Pearson 1934)."""

    name, quantity = "two worlds, rates alone", "epsilon"

    def _value(self, alarms: float, missed: float, delta: float) -> float:
        gains = [0.0] + [
            math.log((1 - other - delta) / rate) if rate > 0 else math.inf
            for rate, other in ((alarms, missed), (missed, alarms))
            if 1 - other > delta
        ]
        return max(gains)


class _OneRun(Method):
    paired = False

    def point(self, counts: Counts, delta: float) -> float:
        """The value at which the observed guesses are as likely too good as too bad."""
        return self.bound(counts, delta, 0.5)


class OneRun(_OneRun):
    """Many canaries of one run, each in it with probability 1/2 (Steinke et al. 2023)."""

    name, quantity = "one run, (ε, δ)", "epsilon"

    def rejects(self, counts: Counts, value: float, delta: float, confidence: float) -> bool:
        """Whether so many right guesses are too improbable under (value, δ) (Theorem 5.2)."""
        correct, guesses = counts.caught, counts.caught + counts.alarms
        steps = np.arange(correct + 1)
        tails = np.where(steps < correct, bdtrc(correct - 1 - steps, guesses, expit(value)), 1.0)
        beta, spread = tails[0], ((tails[1:] - tails[0]) / steps[1:]).max(initial=0.0)
        canaries = counts.inside + counts.outside
        return bool(beta + 2 * canaries * delta * spread <= 1 - confidence)


class OneRunGaussian(_OneRun):
    """The same run, and the whole trade-off curve of a Gaussian (Mahloujifar et al. 2024)."""

    name, quantity = "one run, Gaussian DP", "mu"

    def rejects(self, counts: Counts, value: float, delta: float, confidence: float) -> bool:
        """Whether right guesses as many as these are too improbable under μ = `value`.

        Algorithm 3 there: from the probability that is tested, the recursion bounds the chances of
        ever fewer right guesses from below; that they exceed 1 in all is the contradiction.
        """
        del delta
        correct, guesses = counts.caught, counts.caught + counts.alarms
        canaries = counts.inside + counts.outside
        right = (1 - confidence) * correct / canaries
        wrong = (1 - confidence) * (guesses - correct) / canaries
        for fewer in range(correct - 1, -1, -1):
            least = float(ndtr(ndtri(right) - value))
            if least <= wrong:
                break
            right = min(right + fewer / (guesses - fewer) * (least - wrong), 1.0)
            wrong = least
        return right + wrong > guesses / canaries


def gaussian_delta(mu: float, epsilon: float) -> float:
    """The exact δ at `epsilon` of μ-Gaussian DP (Dong, Roth and Su 2022, Corollary 2.13)."""
    if mu == 0:
        return 0.0
    above = log_ndtr(-epsilon / mu + mu / 2)
    below = epsilon + log_ndtr(-epsilon / mu - mu / 2)
    return float(-np.expm1(below - above) * np.exp(above))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The exact ε at `delta` of μ-Gaussian DP, to nine digits; 0 where δ covers all."""
    if math.isinf(mu):
        return math.inf
    low, high = 0.0, 1.0
    if gaussian_delta(mu, low) <= delta:
        return 0.0
    while gaussian_delta(mu, high) > delta:
        low, high = high, 2 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(mu, middle) > delta else (low, middle)
    return low

"""Audits: scores of trials with and without a canary, held against a claim.

A rule says which threshold counts, so that no bound is the best of several without paying for the
choice; `attacks.leakage_bounds` turns the counts there into a bound.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr

from attacks.leakage_bounds import Counts, Method, Quantity, gaussian_epsilon
from attacks.scores import Floats
from protocols.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a statement promises: (ε, δ), and μ = √(2ρ) where the mechanism is a Gaussian one."""

    epsilon: float
    delta: float
    mu: float
    relation: str
    unit: str
    adversary: str

    def value(self, quantity: Quantity) -> float:
        """The promised `mu` or `epsilon`."""
        return self.mu if quantity == "mu" else self.epsilon


class Part(NamedTuple):
    """One threshold that is tested, what was counted there, and at which confidence."""

    threshold: float
    counts: Counts
    confidence: float


class Rule(Protocol):
    """Which thresholds a bound may use."""

    @property
    def name(self) -> str:
        """What it is called in a report."""

    def parts(
        self, inside: Floats, outside: Floats, confidence: float, worth: Callable[[Counts], float]
    ) -> Iterator[Part]:
        """The tests that hold together at `confidence`; `worth` is what a count would bound."""


@dataclass(frozen=True)
class Explicit:
    """Thresholds that were fixed before; several share the error equally (Bonferroni)."""

    thresholds: tuple[float, ...]

    @property
    def name(self) -> str:
        """How many thresholds were fixed."""
        count = len(self.thresholds)
        return "threshold fixed before" if count == 1 else f"{count} thresholds, Bonferroni"

    def parts(
        self, inside: Floats, outside: Floats, confidence: float, worth: Callable[[Counts], float]
    ) -> Iterator[Part]:
        """One test per threshold, each on all trials."""
        del worth
        each = 1 - (1 - confidence) / len(self.thresholds)
        for threshold in self.thresholds:
            yield Part(threshold, count(inside, outside, threshold), each)

    @classmethod
    def planned(cls, method: Method, claim: Claim, trials: int, confidence: float) -> "Explicit":
        """The threshold whose bound would be best if a Gaussian mechanism kept its claim exactly.

        For scores in standard deviations of the claimed noise, mean 0 without the canary. Uses no
        score, so the choice costs nothing.
        """
        places = claim.mu / 2 + np.arange(-8, 25) / 8
        expected = (_expected(place, claim.mu, trials) for place in places)
        worth = [method.bound(counts, claim.delta, confidence) for counts in expected]
        return cls((float(places[int(np.argmax(worth))]),))


@dataclass(frozen=True)
class Split:
    """Every other trial chooses the threshold, the rest are counted. Trials in random order."""

    candidates: int = 24
    name: ClassVar[str] = "threshold from one half, counted on the other"

    def parts(
        self, inside: Floats, outside: Floats, confidence: float, worth: Callable[[Counts], float]
    ) -> Iterator[Part]:
        """One test, on the second half."""
        pool = np.concatenate([inside[::2], outside[::2]])
        places = np.quantile(pool, (np.arange(self.candidates) + 0.5) / self.candidates)
        values = [worth(count(inside[::2], outside[::2], place)) for place in places]
        best = float(places[int(np.argmax(values))])
        yield Part(best, count(inside[1::2], outside[1::2], best), confidence)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """One audit beside the claim that it tested. `str` prints it.

    `point` and `bound` are of the method's quantity, `epsilon` is the bound as an ε at the claim's
    δ. `trials` were counted, canaries or runs. `power`: defect → probability that this very audit
    would have flagged it, or None where nothing says what the scores of a defect look like.
    """

    claim: Claim
    method: str
    quantity: Quantity
    rule: str
    threshold: float
    trials: int
    confidence: float
    point: float
    bound: float
    power: dict[str, float] | None

    @property
    def verdict(self) -> Literal["consistent", "VIOLATION"]:
        """VIOLATION if the lower bound is above the claim."""
        return "VIOLATION" if self.bound > self.claim.value(self.quantity) else "consistent"

    @property
    def epsilon(self) -> float:
        """The lower bound as an ε at the claim's δ."""
        exact = self.quantity == "epsilon"
        return self.bound if exact else gaussian_epsilon(self.bound, self.claim.delta)

    def __str__(self) -> str:
        claim, named = self.claim, {"mu": "μ", "epsilon": "ε"}[self.quantity]
        power = "not computed"
        if self.power is not None:
            power = ", ".join(f"{name} {chance:.3f}" for name, chance in self.power.items())
        return (
            f"{self.verdict}: claim ε = {claim.epsilon:.4g} at δ = {claim.delta:g} (μ = "
            f"{claim.mu:.4g}), {claim.relation} of one {claim.unit}, against {claim.adversary}. "
            f"{self.method}, {self.rule}, {self.trials} trials: {named} is at least "
            f"{self.bound:.4g} with confidence {self.confidence:.8g} (point {self.point:.4g}; ε at "
            f"least {self.epsilon:.4g}). Power: {power}. A lower bound below the claim is no "
            f"evidence of privacy."
        )


DEFECTS: Final = {"noise × 0.707": math.sqrt(0.5), "noise / 2": 0.5, "noise / 10": 0.1}
"""Defects whose power is printed → the factor on the noise."""


def audit(
    inside: ArrayLike,
    outside: ArrayLike,
    claim: Claim,
    *,
    method: Method,
    rule: Rule,
    confidence: float,
    whitened: bool = True,
) -> Audit:
    """Test `claim` by the scores of trials with the canary and without it.

    Scores are finite, higher with the canary. `whitened` says that they are in standard deviations
    of the claimed noise, with mean 0 without the canary and μ with it if the claim is exact; power
    is printed only then. For one run, each canary was in it with probability 1/2.
    """
    if not 0.5 <= confidence < 1:
        raise ConfigError(f"confidence {confidence}", fix="choose one from 0.5 to below 1")
    scores = _finite(inside), _finite(outside)
    parts = rule.parts(*scores, confidence, lambda c: method.bound(c, claim.delta, confidence))
    tested = [(method.bound(p.counts, claim.delta, p.confidence), p) for p in parts]
    bound, best = max(tested, key=lambda pair: pair[0])
    return Audit(
        claim=claim,
        method=method.name,
        quantity=method.quantity,
        rule=rule.name,
        threshold=best.threshold,
        trials=best.counts.inside + best.counts.outside,
        confidence=confidence,
        point=method.point(best.counts, claim.delta),
        bound=bound,
        power={name: power(method, best, claim, f) for name, f in DEFECTS.items()}
        if whitened
        else None,
    )


def power(method: Method, part: Part, claim: Claim, factor: float, repeats: int = 200) -> float:
    """How often this test refutes the claim if the noise is `factor` times the claimed one.

    Counts are drawn from the two Gaussian laws, with a fixed seed: a figure about the audit, not
    part of it. Each of one run's canaries is in it or not by a coin.
    """
    draw = np.random.default_rng(0)
    trials = part.counts.inside + part.counts.outside
    flagged = 0
    for _ in range(repeats):
        inside = part.counts.inside if method.paired else int(draw.binomial(trials, 0.5))
        caught = draw.binomial(inside, ndtr((claim.mu - part.threshold) / factor))
        alarms = draw.binomial(trials - inside, ndtr(-part.threshold / factor))
        counts = Counts(int(caught), inside, int(alarms), trials - inside)
        value = claim.value(method.quantity)
        flagged += method.rejects(counts, value, claim.delta, part.confidence)
    return flagged / repeats


def count(inside: Floats, outside: Floats, threshold: float) -> Counts:
    """Scores above a threshold and scores, of trials with the canary and without."""
    caught, alarms = int((inside > threshold).sum()), int((outside > threshold).sum())
    return Counts(caught, len(inside), alarms, len(outside))


def _expected(place: float, mu: float, trials: int) -> Counts:
    half = trials // 2
    return Counts(round(half * ndtr(mu - place)), half, round(half * ndtr(-place)), half)


def _finite(values: ArrayLike) -> Floats:
    scores = np.asarray(values, np.float64)
    if scores.ndim != 1 or len(scores) < 2 or not np.isfinite(scores).all():
        raise ConfigError(
            f"scores of shape {scores.shape}",
            where="audit",
            why="a score is one finite number per trial, and a split needs two",
            fix="give a failed trial the lowest score of its world",
        )
    return scores

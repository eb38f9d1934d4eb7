"""DP-SGD at one site: Poisson samples of units, exact clipping, discrete Gaussian noise, counted.

A unit is one patient, image or client; its gradient is made of its own records alone and clipped
as a whole. One charge pays for all steps of one training, and what is trained is post-processing.
Source: Abadi et al. 2016, with integers in place of floats (Mironov 2012 says why).

Why the accountant of continuous Gaussians applies. An integer sum plus continuous Gaussian noise,
rounded, is post-processing of the Gaussian mechanism, and rounding adds up with the integer:
the noise is a rounded Gaussian. Discrete Gaussian noise of deviation σ differs from it, per
coordinate, by a Kullback-Leibler divergence of at most 1/(320·σ⁴): the rounded mass at k is
E[cosh(k·t/σ²)·exp(-t²/2σ²)] for uniform t in ±1/2 times the discrete one, up to normalisation
within exp(-2π²σ²), and Jensen's inequality with log cosh u ≥ u²/2 - u⁴/12 bounds its logarithm.
Divergences add up over coordinates and adaptive steps, and Pinsker's inequality turns n of them
into a total variation below √n/(25·σ²), which the event states as `closeness`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import InitVar, dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray

from protocols.accounting import ADD_OR_REMOVE_ONE, Event, check_target, compose, total_delta
from protocols.chain import RandomBytes
from protocols.errors import PrivacyError
from protocols.ledger import Ledger, ReleaseKey
from protocols.noise_search import LEAST, MOST, least_noise
from protocols.quantize import Floats, Integers
from protocols.sampler import DISTANCE, discrete_gaussian
from protocols.unit_clip import clipped

_SEAL = object()
# About where the deviation of the integer noise lies, and the coarsest grid of a clip norm.
_WIDTH, _COARSEST = 2.0**30, 2**20


@dataclass(frozen=True, kw_only=True)
class DpSgd:
    """The plan of one charge: `steps` noisy sums of clipped unit gradients.

    clip_norm: L2 clip of a unit's gradient, real units. noise_multiplier: deviation of the noise
    on the sum, in clip norms, 0.05 to 2^18. rate: probability (above 0, at most 1) with which each
    unit is in a step's sample, public. steps: steps of one charge. size: trainable parameters.
    expected: public normaliser, expected units per step. layers: what the parameters are, for
    statements. Relation: add or remove one unit.
    """

    clip_norm: float
    noise_multiplier: float
    rate: float
    steps: int
    size: int
    expected: float
    layers: str = "all"

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise PrivacyError(
                f"sampling rate {self.rate:g}", fix="choose it above 0 and at most 1: 0.1"
            )
        if min(self.steps, self.size) < 1:
            raise PrivacyError(
                f"{self.steps} steps on {self.size} parameters", fix="at least 1 of each"
            )
        if not 0 < self.clip_norm < math.inf or not 0 < self.expected < math.inf:
            raise PrivacyError(
                f"clip norm {self.clip_norm:g}, {self.expected:g} units expected per step",
                fix="use finite figures above 0, for instance a clip norm of 1",
            )
        if not LEAST <= self.noise_multiplier <= MOST:
            raise PrivacyError(
                f"noise multiplier {self.noise_multiplier:g}",
                fix=f"choose it between {LEAST:g} and {MOST:g}",
            )

    @classmethod
    def calibrate(
        cls,
        *,
        epsilon: float,
        delta: float,
        rounds: int,
        clip_norm: float,
        rate: float,
        steps: int,
        size: int,
        expected: float,
        layers: str = "all",
    ) -> DpSgd:
        """The least noise (to 1e-4) whose ε over `rounds` charges is at most `epsilon`.

        Raises PrivacyError, with a figure that would work, for an ε or δ out of range, a rate
        outside (0, 1], or where no noise in range gives `epsilon`.
        """
        draft = cls(
            clip_norm=clip_norm,
            noise_multiplier=1.0,
            rate=rate,
            steps=steps,
            size=size,
            expected=expected,
            layers=layers,
        )
        check_target(epsilon, delta, math.ceil(expected / rate))
        if rounds < 1 or epsilon == math.inf:
            raise PrivacyError(
                f"{rounds} rounds at ε = {epsilon:g}",
                fix="plan at least 1 round at a finite ε, or choose the mechanism none",
            )
        noise = least_noise(epsilon, delta, rate, rounds * steps)
        plan = replace(draft, noise_multiplier=noise)
        total = total_delta(epsilon, delta, rounds * plan.event().slack)
        if total > 1.01 * delta:
            raise PrivacyError(
                f"integer noise costs δ = {total - delta:.2g} on top of {delta:g}",
                why=f"its distance from a Gaussian counts e^ε times, and ε is {epsilon:g}",
                fix=f"ε = {epsilon - math.log(100 * (total - delta) / delta):.3g} would work",
            )
        return plan

    @property
    def name(self) -> str:
        """`dp-sgd`."""
        return "dp-sgd"

    @property
    def clip_int(self) -> int:
        """The clip norm in grid steps (S): so that the noise has a deviation of about 2^30."""
        return max(round(_WIDTH / self.noise_multiplier), _COARSEST)

    @property
    def sigma_int(self) -> float:
        """Deviation of the integer noise: noise_multiplier · S."""
        return self.noise_multiplier * self.clip_int

    def event(self) -> Event:
        """The cost of one charge, for one unit of this site."""
        draws = self.steps * self.size
        return Event(
            mechanism=self.name,
            relation=ADD_OR_REMOVE_ONE,
            rho=0.0,
            rho_isolated=0.0,
            closeness=math.sqrt(draws) / (25 * self.sigma_int**2),
            clamp=0.0,
            sampling=draws * DISTANCE,
            rate=self.rate,
            noise_multiplier=self.noise_multiplier,
            steps=self.steps,
        )

    def begin(self, ledger: Ledger, key: ReleaseKey, random: RandomBytes) -> Descent:
        """Charge `key` durably, then hand out the only object that makes noisy gradients of it.

        After a crash a site begins again from its first step under the same charge, unless
        integers are stored for `key`. That is sound: what leaves a site is stored first, so nobody
        else has seen anything of the lost run, and the one run that is seen drew its own samples
        and noise. It assumes that a run is not ended because of what it has learned, and that
        nothing half-trained is kept or sent. Raises LedgerError when the budget does not suffice,
        for a key with integers, and for a second begin on the same open ledger.
        """
        ledger.begin(key, self.event())
        return Descent(self, ledger, random, _SEAL)

    def statement(self) -> str:
        """What one charge guarantees to one unit of this site."""
        spent = compose([self.event()], 1e-5)
        return (
            f"One training of {self.steps} steps satisfies ({spent.epsilon:.4g}, 1e-05)-DP with "
            f"respect to {ADD_OR_REMOVE_ONE} of one unit: each step sums the gradients of a "
            f"Poisson sample of rate {self.rate:g}, each unit clipped as a whole to L2 norm "
            f"{self.clip_norm:g} over {self.size} parameters (layers: {self.layers}), with "
            f"Gaussian noise of "
            f"{self.noise_multiplier:.4g} clip norms; off this ideal by at most "
            f"{self.event().slack:.1e} in total variation. Outputs of the trained model cost "
            f"nothing more."
        )


@dataclass(eq=False)
class Descent:
    """The steps of one charge, each sample() then step(). Only `DpSgd.begin` makes one."""

    plan: DpSgd
    ledger: Ledger
    random: RandomBytes
    seal: InitVar[object] = None

    def __post_init__(self, seal: object) -> None:
        if seal is not _SEAL:
            raise PrivacyError(
                "a Descent cannot be made by hand", fix="obtain it from DpSgd.begin()"
            )
        self._left, self._sampled = self.plan.steps, -1

    @property
    def left(self) -> int:
        """Steps that are still paid for."""
        return self._left

    def sample(self, units: int) -> Integers:
        """Which of the site's `units` are in this step's sample, in order; often none.

        Independent coins of the plan's rate, up to 2^-64 below it. PrivacyError when all steps are
        done, or the last sample still waits for its step.
        """
        self.ledger.demand_open()
        if not self._left or self._sampled >= 0:
            raise PrivacyError(
                "one more sample",
                why=f"all {self.plan.steps} steps are done"
                if not self._left
                else "the last sample waits for its step",
                fix="plan more steps and charge them, or call step() after each sample()",
            )
        chosen = poisson_sample(units, self.plan.rate, self.random)
        self._sampled = chosen.size
        return chosen

    def step(self, gradients: Iterable[ArrayLike]) -> Floats:
        """The noisy sum of the sample's gradients over `expected`, float64 [size].

        gradients: one array [size] per sampled unit, of any float type, taken one at a time. One
        that is not finite throughout counts as zero. An empty sample is noised and counted like
        any other. PrivacyError, with no noise drawn, for another number or shape of gradients.
        """
        self.ledger.demand_open()
        if self._sampled < 0:
            raise PrivacyError("a step without a sample", fix="call sample() before each step()")
        total, seen = np.zeros(self.plan.size, np.int64), 0
        for gradient in gradients:
            total += clipped(gradient, self.plan.size, self.plan.clip_norm, self.plan.clip_int)
            seen += 1
        if seen != self._sampled:
            raise PrivacyError(
                f"{seen} gradients for a sample of {self._sampled} units",
                why="sensitivity holds for one gradient per sampled unit",
                fix="give the mean over a unit's records, for each sampled unit once",
            )
        self._left, self._sampled = self._left - 1, -1
        total += discrete_gaussian(self.plan.size, self.plan.sigma_int, self.random)
        grid = self.plan.clip_norm / self.plan.clip_int
        return total.astype(np.float64) * (grid / self.plan.expected)

    def __reduce__(self) -> str:
        raise PrivacyError(
            "a Descent cannot be copied", why="each step draws its noise once", fix="pass it on"
        )


def poisson_sample(units: int, rate: float, random: RandomBytes) -> Integers:
    """Indices below `units`, each in with probability `rate` (rounded down to 64 bits)."""
    if rate == 1:
        return np.arange(units)
    coins: NDArray[np.uint64] = np.frombuffer(random(8 * units), dtype="<u8")
    chosen: Integers = np.flatnonzero(coins < np.uint64(int(Fraction(rate) * 2**64)))
    return chosen

"""The mechanisms with noise at release, and without noise: both act on a clipped sum of teachers.

Everything a site needs for a release is exported from here; `protocols.noise_plan` makes the
mechanisms of all sites of a plan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from protocols.accounting import REPLACE_ONE, Event
from protocols.chain import RandomBytes
from protocols.errors import PrivacyError
from protocols.ledger import ReleaseKey
from protocols.quantize import Integers
from protocols.release import (
    RELEASED_BITS,
    Bounded,
    ClippedSum,
    FurtherOutput,
    Mechanism,
    Paid,
    Released,
    TrainedOutput,
    largest_integer,
)
from protocols.sampler import DISTANCE, discrete_gaussian

__all__ = [
    "Bounded",
    "FurtherOutput",
    "Mechanism",
    "NoNoise",
    "Paid",
    "ReleaseKey",
    "Released",
    "ShardTeachers",
    "TrainedOutput",
]


@dataclass(frozen=True, kw_only=True)
class NoNoise(ClippedSum):
    """The clipped sum as it is: ε = ∞, and still one ledger line per release."""

    @classmethod
    def for_sites(
        cls, *, shards: Mapping[str, int], clip_norm: float, size: int, bits: int = RELEASED_BITS
    ) -> dict[str, NoNoise]:
        """One mechanism per site (site → number of teachers) on the finest common grid."""
        if not shards or min(shards.values()) < 1:
            raise PrivacyError(f"shards {dict(shards)}", fix="give each site at least one teacher")
        clip_int = largest_integer(bits) // max(shards.values())
        return {
            site: cls(shards=count, clip_norm=clip_norm, clip_int=clip_int, size=size, bits=bits)
            for site, count in shards.items()
        }

    @property
    def name(self) -> str:
        """`none`."""
        return "none"

    def _noised(self, values: Integers, random: RandomBytes) -> Integers:
        del random
        return values.copy()

    def event(self) -> Event:
        """ρ = ∞: whatever the accountant adds to it, ε stays infinite."""
        return Event(self.name, REPLACE_ONE, math.inf, math.inf, 0.0, 0.0, 0.0)

    def statement(self) -> str:
        """That nothing is guaranteed."""
        return "No noise covers this release: ε = inf for every patient of this site."


@dataclass(frozen=True, kw_only=True)
class ShardTeachers(ClippedSum):
    """One teacher per disjoint shard of patients; noise covers any one patient.

    A patient touches one teacher, and each teacher is clipped as a whole: replacing the patient's
    records moves the sum by at most 2·S, and so does removing them (the number of shards is
    fixed). Each site adds a discrete Gaussian share; after the public weights all shares of a
    group have the same standard deviation, and the plan counts on `honest` of them.
    Source: PATE (Papernot et al. 2018), federated; distributed discrete Gaussian (Kairouz, Liu
    and Steinke 2021). `NoisePlan.calibrate` makes consistent mechanisms for all sites.

    sigma_share: this site's share, in grid steps. alpha: this site's public integer weight;
    alpha_max: the largest in its group. honest: shares that remain at least, n - t - d. tail:
    standard deviations of noise that fit below the clamp.
    """

    sigma_share: float
    alpha: int
    alpha_max: int
    honest: int
    tail: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.alpha <= self.alpha_max or self.honest < 1 or not self.tail > 0:
            raise PrivacyError(
                f"weight {self.alpha} of {self.alpha_max}, {self.honest} honest shares, tail "
                f"{self.tail}",
                fix="take the mechanism from NoisePlan.calibrate",
            )
        if not self._smallest_share >= 4 * self.alpha_max:
            raise PrivacyError(
                f"a noise share of {self._smallest_share:.4g} grid steps is too narrow for "
                f"weights up to {self.alpha_max}",
                why="weighted discrete Gaussians add up to a comb unless each has σ ≥ 4·α_max",
                fix="lower the largest weight, raise bits, or lower ε",
            )

    @property
    def name(self) -> str:
        """`shard-teachers`."""
        return "shard-teachers"

    @property
    def reach(self) -> float:
        """M·S + tail·σ: the sum and its noise."""
        return self.signal_bound + self.tail * self.sigma_share

    @property
    def _smallest_share(self) -> float:
        """The group's smallest σ, at its largest weight, since α·σ is the same at all sites."""
        return self.sigma_share * self.alpha / self.alpha_max

    @property
    def closeness(self) -> float:
        """τ, per integer: how far the weighted sum of shares is from one discrete Gaussian.

        Kairouz, Liu and Steinke 2021 for equal weights; for other weights a share counts as
        σ/α_max (smoothing of the kernel lattice, Micciancio and Peikert 2013, Theorem 3.3).
        """
        ratio = self._smallest_share / self.alpha_max
        return 10 * (self.honest - 1) * math.exp(-((math.pi * ratio) ** 2))

    def _noised(self, values: Integers, random: RandomBytes) -> Integers:
        noise = discrete_gaussian(values.size, self.sigma_share, random)
        clamped: Integers = np.clip(values + noise, -self.limit, self.limit)
        return clamped

    def event(self) -> Event:
        """ρ = Δ²/(2σ²) of one release (Canonne, Kamath and Steinke 2020).

        In this site's own units the honest shares add up to variance honest·σ_share².
        """
        alone = self.sensitivity**2 / (2 * self.sigma_share**2)
        values = self.honest * self.size
        return Event(
            mechanism=self.name,
            relation=REPLACE_ONE,
            rho=alone / self.honest,
            rho_isolated=alone,
            closeness=self.size * self.closeness,
            clamp=values * 2 * math.exp(-(self.tail**2) / 2),
            sampling=values * DISTANCE,
        )

    def statement(self) -> str:
        """What one release guarantees to one patient of this site."""
        event = self.event()
        return (
            f"One release satisfies {event.rho:.4g}-zCDP ({event.rho_isolated:.4g} if only this "
            f"site's own noise remains) with respect to {event.relation} of one patient: "
            f"{self.shards} teachers on disjoint patients, each clipped to L2 norm "
            f"{self.clip_norm:g} over all {self.size} values together, discrete Gaussian share "
            f"σ = {self.sigma_share * self.step:.4g} in the same units, at least {self.honest} "
            f"honest shares; off this ideal by at most {event.slack:.1e} in total variation."
        )

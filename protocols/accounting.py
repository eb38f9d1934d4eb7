"""Privacy accounting: frozen events, and the one place where they become (ε, δ).

A release with discrete Gaussian noise satisfies ρ-zCDP (Bun and Steinke 2016), ρ adds up over
releases, and the total is converted once. Nothing else in the project computes ε.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from protocols.errors import PrivacyError

REPLACE_ONE = "replace_one"
"""All records of one patient (or one image) are replaced by others, under the same identifier."""

# The optimal order is near 1 + √(log(1/δ)/ρ); this grid covers ρ from 1e-10 to 1e5.
_ORDERS = 1 + np.geomspace(0.0101, 1e6, 1000)


@dataclass(frozen=True)
class Event:
    """What one release of one site costs, for one patient of that site.

    `rho`: zCDP of the released aggregate, under the honest noise that the plan counts on.
    `rho_isolated`: zCDP if only this site's own noise share remains; at least `rho`.
    `closeness`, `clamp`, `sampling`: three probabilities (upper bounds on total variation) by
    which the release differs from that ideal: the sum of shares is not quite a discrete Gaussian,
    a share may be clamped, the sampler is not quite exact. An unprotected release has ρ = ∞.
    """

    mechanism: str
    relation: str
    rho: float
    rho_isolated: float
    closeness: float
    clamp: float
    sampling: float

    def __post_init__(self) -> None:
        figures = (self.rho, self.closeness, self.clamp, self.sampling)
        if not all(figure >= 0 for figure in figures) or not self.rho_isolated >= self.rho:
            raise PrivacyError(f"no such privacy event: {self}", fix="give figures of at least 0")

    @property
    def slack(self) -> float:
        """Total variation between this release and the ideal one that satisfies `rho`."""
        return self.closeness + self.clamp + self.sampling

    def line(self) -> dict[str, Any]:
        """JSON form; an infinite ρ reads "inf"."""
        return {name: "inf" if value == math.inf else value for name, value in asdict(self).items()}

    @classmethod
    def from_line(cls, line: dict[str, Any]) -> Event:
        """Undo `line`; PrivacyError when a figure is missing, unknown or malformed."""
        texts = ("mechanism", "relation")
        try:
            fields: dict[str, Any] = {k: v if k in texts else float(v) for k, v in line.items()}
            return cls(**fields)
        except (TypeError, ValueError) as error:
            raise PrivacyError("a privacy event cannot be read", why=str(error)) from error


@dataclass(frozen=True)
class Spent:
    """What a patient set has spent over `charges` releases, at the target δ of the question.

    `delta_total` is that δ plus the price of everything that is not ideal (see `total_delta`).
    """

    charges: int
    rho: float
    epsilon: float
    epsilon_isolated: float
    delta: float
    delta_total: float


def compose(events: Iterable[Event], delta: float) -> Spent:
    """(ε, δ) of all `events` together, at the target `delta`, by adaptive zCDP composition."""
    listed = list(events)
    rho = math.fsum(event.rho for event in listed)
    epsilon = epsilon_from_rho(rho, delta)
    return Spent(
        charges=len(listed),
        rho=rho,
        epsilon=epsilon,
        epsilon_isolated=epsilon_from_rho(math.fsum(e.rho_isolated for e in listed), delta),
        delta=delta,
        delta_total=total_delta(epsilon, delta, math.fsum(e.slack for e in listed)),
    )


def total_delta(epsilon: float, delta: float, slack: float) -> float:
    """δ of a release that lies within total variation `slack` of an (ε, δ)-DP one.

    P'(E) ≤ P(E) + slack ≤ e^ε·Q(E) + δ + slack ≤ e^ε·Q'(E) + δ + (1 + e^ε)·slack.
    """
    if slack == 0 or epsilon == math.inf:
        return delta
    log_price = np.logaddexp(0.0, epsilon) + math.log(slack)
    return delta + math.exp(log_price) if log_price < 0 else 1.0


def check_target(epsilon: float, delta: float, units: int | None = None) -> None:
    """Refuse an ε that is not above 0 and a δ outside (0, 1/units).

    `units` is the number of patients (or images) at the smallest site, where it is known: with
    δ ≥ 1/units, publishing one random patient's records would count as private.
    """
    if not epsilon > 0:
        raise PrivacyError(f"epsilon = {epsilon:g}", fix="choose ε above 0, for instance 4")
    bound = 1.0 if units is None else 1.0 / max(units, 1)
    if not 0 < delta < bound:
        raise PrivacyError(
            f"delta = {delta:g}",
            why=f"δ must lie between 0 and {bound:.3g}"
            + ("" if units is None else f", one over {units} units"),
            fix=f"choose δ = {min(1e-5, bound / 10):.2g} or less",
        )


def epsilon_from_rho(rho: float, delta: float) -> float:
    """ε at `delta` of ρ-zCDP; the headline figure (∞ for ρ = ∞, 0 for ρ = 0).

    dp-accounting's Rényi accountant, whose conversion is Proposition 12 of Canonne, Kamath and
    Steinke 2020, minimised over fine orders; any order gives a valid upper bound.
    """
    check_target(math.inf, delta)
    if not rho >= 0:
        raise PrivacyError(f"zCDP ρ = {rho:g}", fix="ρ is a sum of squares: at least 0")
    if rho in (0, math.inf):
        return rho
    from dp_accounting import ZCDpEvent
    from dp_accounting.rdp import RdpAccountant

    return float(RdpAccountant(_ORDERS).compose(ZCDpEvent(rho)).get_epsilon(delta))


def rho_from_epsilon(epsilon: float, delta: float) -> float:
    """The largest ρ (to nine digits) with `epsilon_from_rho(ρ, delta)` ≤ `epsilon`."""
    check_target(epsilon, delta)
    if epsilon == math.inf:
        return math.inf
    # For every δ of use, ρ-zCDP costs more than ρ itself: the root lies below ρ = ε.
    low, high = 0.0, epsilon
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if epsilon_from_rho(middle, delta) <= epsilon else (low, middle)
    # Leaves room for the rounding of a sum over rounds, so that T·(ρ/T) still fits ε.
    return low * (1 - 1e-9)


def gaussian_epsilon(rho: float, delta: float) -> float:
    """Cross-check, for print only: ε of a continuous Gaussian with the same ρ, by PLD.

    Not a proven figure for discrete noise. The event's noise multiplier is already relative to the
    sensitivity of the relation in use, hence the accountant's default relation.
    """
    check_target(math.inf, delta)
    if rho in (0, math.inf):
        return rho
    from dp_accounting import GaussianDpEvent
    from dp_accounting.pld import PLDAccountant

    event = GaussianDpEvent(1 / math.sqrt(2 * rho))
    return float(PLDAccountant().compose(event).get_epsilon(delta))

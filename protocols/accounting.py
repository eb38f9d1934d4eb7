"""Privacy accounting: frozen events, and the one place where they become (ε, δ).

Two kinds of cost. A release with discrete Gaussian noise satisfies ρ-zCDP (Bun and Steinke 2016);
ρ adds up over releases, and the total is converted once. Poisson-subsampled Gaussian steps are
composed by their privacy loss distributions (Koskela et al. 2020; Doroshenko et al. 2022), with
Rényi accounting beside it as a cross-check, and in its place where the distribution is too wide
for a grid. Where a patient set has both, each gets half of δ and the two ε add up: basic
composition, which holds for mechanisms used in turns as well (Vadhan and Zhang 2023). Nothing else
in the project computes ε.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from protocols.errors import PrivacyError

REPLACE_ONE = "replace_one"
"""All records of one patient (or one image) are replaced by others, under the same identifier."""

ADD_OR_REMOVE_ONE = "add_or_remove_one"
"""One patient (image, or client) is there with all records, or counts as zero in every sum."""

Steps = tuple[tuple[float, float, int], ...]
"""Poisson-subsampled Gaussian steps: (sampling rate, noise multiplier, how many) of each kind."""

# Finest grid of privacy losses, and how many of its points the Rényi ε may span: seconds, not more.
_FINEST, _POINTS = 1e-4, 1e6

# Whole orders only: for others the series of the subsampled Gaussian does not always converge.
_SAMPLED_ORDERS = (*range(2, 257), *(2**k for k in range(9, 15)))
_FEW_ORDERS = (2, 3, 4, 6, 8, 12, 16, 32)

# The optimal order is near 1 + √(log(1/δ)/ρ); this grid covers ρ from 1e-10 to 1e5.
_ORDERS = 1 + np.geomspace(0.0101, 1e6, 1000)


@dataclass(frozen=True)
class Event:
    """What one release of one site costs, for one patient of that site.

    Either `rho` or `steps` carries the cost; an unprotected release has ρ = ∞.
    `rho`: zCDP of the released aggregate, under the honest noise that the plan counts on.
    `rho_isolated`: zCDP if only this site's own noise share remains; at least `rho`.
    `closeness`, `clamp`, `sampling`: three probabilities (upper bounds on total variation) by
    which the release differs from that ideal: the noise is not quite the law that the accountant
    takes it for, a share may be clamped, the sampler is not quite exact.
    `steps` queries, each on a Poisson sample of the units of rate `rate` (0 to 1), with Gaussian
    noise of `noise_multiplier` times the norm to which a unit is clipped. All of that noise is the
    site's own. `unit`: who is protected, where it is not the unit of the ledger's patient set.
    """

    mechanism: str
    relation: str
    rho: float
    rho_isolated: float
    closeness: float
    clamp: float
    sampling: float
    rate: float = 1.0
    noise_multiplier: float = 0.0
    steps: int = 0
    unit: str = ""

    def __post_init__(self) -> None:
        figures = (self.rho, self.closeness, self.clamp, self.sampling)
        proper = all(figure >= 0 for figure in figures) and self.rho_isolated >= self.rho
        if self.steps:
            proper &= self.steps > 0 and self.rho == self.rho_isolated == 0
            proper &= 0 < self.rate <= 1 and 0 < self.noise_multiplier < math.inf
        elif (self.rate, self.noise_multiplier) != (1, 0):
            proper = False
        if not proper:
            raise PrivacyError(
                f"no such privacy event: {self}",
                fix="give figures of at least 0; steps need 0 < rate ≤ 1 and noise, and no ρ",
            )

    @property
    def slack(self) -> float:
        """Total variation between this release and the ideal one that is accounted for."""
        return self.closeness + self.clamp + self.sampling

    def line(self) -> dict[str, Any]:
        """JSON form; an infinite ρ reads "inf", and what has its default is left out."""
        optional = {"rate": 1.0, "noise_multiplier": 0.0, "steps": 0, "unit": ""}
        return {
            name: "inf" if value == math.inf else value
            for name, value in asdict(self).items()
            if name not in optional or value != optional[name]
        }

    @classmethod
    def from_line(cls, line: dict[str, Any]) -> Event:
        """Undo `line`; PrivacyError when a figure is missing, unknown or malformed."""
        kept = ("mechanism", "relation", "unit", "steps")
        try:
            fields: dict[str, Any] = {k: v if k in kept else float(v) for k, v in line.items()}
            if type(fields.get("steps", 0)) is not int:
                raise ValueError(f"steps = {fields['steps']!r}")
            return cls(**fields)
        except (TypeError, ValueError) as error:
            raise PrivacyError("a privacy event cannot be read", why=str(error)) from error


@dataclass(frozen=True)
class Spent:
    """What a patient set has spent over `charges` releases, at the target δ of the question.

    `delta_total` is that δ plus the price of everything that is not ideal (see `total_delta`).
    `rho` is the part of the discrete Gaussian releases, `accountant` says how ε came about, and
    `cross_check` is ε by Rényi accounting alone where subsampled steps are in it, for print.
    """

    charges: int
    rho: float
    epsilon: float
    epsilon_isolated: float
    delta: float
    delta_total: float
    accountant: str = "zCDP"
    cross_check: float | None = None


def compose(events: Iterable[Event], delta: float) -> Spent:
    """(ε, δ) of all `events` together, at the target `delta`, adaptively composed.

    Raises PrivacyError when events differ in relation or unit: such figures do not add up.
    """
    listed = list(events)
    relation = _common(listed)
    rho = math.fsum(event.rho for event in listed)
    isolated = math.fsum(event.rho_isolated for event in listed)
    steps = _steps(listed)
    names = ["zCDP"] if rho or not steps else []
    share = delta / 2 if rho and steps else delta
    sampled, method = subsampled_epsilon(steps, share, relation)
    epsilon = epsilon_from_rho(rho, share) + sampled
    return Spent(
        charges=len(listed),
        rho=rho,
        epsilon=epsilon,
        epsilon_isolated=epsilon_from_rho(isolated, share) + sampled,
        delta=delta,
        delta_total=total_delta(epsilon, delta, math.fsum(e.slack for e in listed)),
        accountant=" + ".join([*names, method] if steps else names),
        cross_check=_renyi(steps, rho, delta, relation) if steps else None,
    )


def _common(events: list[Event]) -> str:
    """The one relation of all `events`."""
    kinds = {(event.relation, event.unit) for event in events}
    if len(kinds) > 1:
        raise PrivacyError(
            f"figures for {sorted(kinds)} together",
            why="figures under different neighbouring relations or units do not add up",
            fix="account for each of them apart",
        )
    return kinds.pop()[0] if kinds else REPLACE_ONE


def _steps(events: list[Event]) -> Steps:
    """The subsampled steps of `events`, equal ones together, in a fixed order."""
    counts: Counter[tuple[float, float]] = Counter()
    for event in events:
        if event.steps:
            counts[event.rate, event.noise_multiplier] += event.steps
    return tuple((*kind, count) for kind, count in sorted(counts.items()))


def subsampled_epsilon(
    steps: Steps, delta: float, relation: str, coarser: int = 1
) -> tuple[float, str]:
    """ε at `delta` of Poisson-subsampled Gaussian steps, and the accountant that gave it.

    The privacy loss distribution of dp-accounting, rounded up at every turn; where it has no
    finite answer, Rényi accounting. No steps cost nothing. Replacing one record under Poisson
    sampling has no Rényi bound here: there ε = ∞ stands in. A search looks first on a grid that is
    `coarser` times as wide: as valid, less tight, and as many times faster.
    """
    check_target(math.inf, delta)
    if not steps:
        return 0.0, ""
    loss = _pld(steps, delta, relation, coarser)
    if loss < math.inf:
        return loss, "PLD"
    renyi = _renyi(steps, 0.0, delta, relation)
    return math.inf if renyi is None else renyi, "RDP"


@lru_cache(maxsize=256)
def _pld(steps: Steps, delta: float, relation: str, coarser: int) -> float:
    """ε by privacy loss distribution; ∞ where the computation does not succeed.

    Rounding is upwards on every grid, so a coarser one is no less valid, only less tight.
    """
    from dp_accounting.pld import PLDAccountant

    try:
        accountant = PLDAccountant(_relation(relation), coarser * _grid(steps, delta))
        for event, count in _dp_events(steps):
            accountant.compose(event, count)
        epsilon = float(accountant.get_epsilon(delta))
    except (ArithmeticError, ValueError, MemoryError):
        return math.inf
    return epsilon if epsilon >= 0 else math.inf


def _grid(steps: Steps, delta: float) -> float:
    """The finest grid, or a wider one where the Rényi ε would span too many of its points."""
    few = _renyi(steps, 0.0, delta, ADD_OR_REMOVE_ONE, orders=_FEW_ORDERS) or 0.0
    if few <= _FINEST * _POINTS:
        return _FINEST
    return max(_FINEST, (_renyi(steps, 0.0, delta, ADD_OR_REMOVE_ONE) or 0.0) / _POINTS)


@lru_cache(maxsize=256)
def _renyi(
    steps: Steps,
    rho: float,
    delta: float,
    relation: str,
    orders: tuple[int, ...] = _SAMPLED_ORDERS,
) -> float | None:
    """ε by Rényi accounting of the steps and of `rho` together; None where there is no bound."""
    from dp_accounting import UnsupportedEventError, ZCDpEvent
    from dp_accounting.rdp import RdpAccountant

    if rho == math.inf:
        return math.inf
    if relation == REPLACE_ONE and all(rate == 1 for rate, _, _ in steps):
        # Replacing moves a sum by up to twice the clip.
        steps = tuple((rate, multiplier / 2, count) for rate, multiplier, count in steps)
    accountant = RdpAccountant(orders, _relation(relation))
    try:
        for event, count in _dp_events(steps):
            accountant.compose(event, count)
        return float(accountant.compose(ZCDpEvent(rho)).get_epsilon(delta))
    except UnsupportedEventError:
        return None


def _dp_events(steps: Steps) -> Iterable[tuple[Any, int]]:
    """dp-accounting's events and their counts."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent

    for rate, multiplier, count in steps:
        whole = GaussianDpEvent(multiplier)
        yield (whole if rate == 1 else PoissonSampledDpEvent(rate, whole)), count


def _relation(name: str) -> Any:
    """dp-accounting's neighbouring relation of that name."""
    from dp_accounting import NeighboringRelation

    try:
        return NeighboringRelation[name.upper()]
    except KeyError:
        raise PrivacyError(
            f"no such neighbouring relation: {name}",
            fix=f"use {REPLACE_ONE} or {ADD_OR_REMOVE_ONE}",
        ) from None


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

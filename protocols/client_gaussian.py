"""Client-level privacy of clipped logits: the literal form, with its prospects stated first.

A client's whole contribution is clipped to one joint norm, and noise hides whether it is there at
all. With few clients there is no crowd to hide in, so the plan predicts what is left of the
consensus and refuses where that is next to nothing. The shares of noise are those of
`protocols.mechanisms.ShardTeachers`: a client counts as one teacher.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
from scipy import special

from protocols.accounting import ADD_OR_REMOVE_ONE, Event, check_target, epsilon_from_rho
from protocols.errors import PrivacyError
from protocols.mechanisms import ShardTeachers
from protocols.noise_plan import NoisePlan
from protocols.release import RELEASED_BITS, largest_integer

CLIENT = "client"
"""The unit of every figure here: all that one client contributes."""

# Beyond this an ε bounds next to nothing, and is not offered.
_LOOSEST = 32.0


class ClientGaussian(ShardTeachers):
    """The whole contribution of one client, clipped and noised; counted as zero if removed.

    Fields as of ShardTeachers, with shards = 1. `plan_clients` makes consistent ones.
    """

    @property
    def name(self) -> str:
        """`client-gaussian`."""
        return "client-gaussian"

    @property
    def sensitivity(self) -> int:
        """L2 distance of two sums, one without this client's contribution: S."""
        return self.clip_int

    def event(self) -> Event:
        """ρ = Δ²/(2σ²) of one release, for the client as a whole."""
        return replace(super().event(), relation=ADD_OR_REMOVE_ONE, unit=CLIENT)

    def statement(self) -> str:
        """What one release guarantees to the client."""
        event = self.event()
        return (
            f"One release satisfies {event.rho:.4g}-zCDP ({event.rho_isolated:.4g} if only this "
            f"site's own noise remains) with respect to {event.relation} of the whole client: its "
            f"{self.size} values clipped together to L2 norm {self.clip_norm:g}, discrete Gaussian "
            f"share σ = {self.sigma_share * self.step:.4g} in the same units, at least "
            f"{self.honest} honest shares; off this ideal by at most {event.slack:.1e} in total "
            f"variation."
        )


class ClientPlan(NoisePlan):
    """A noise plan whose unit is the client; `plan_clients` makes it."""

    @property
    def relation(self) -> str:
        """The neighbouring relation of every figure."""
        return ADD_OR_REMOVE_ONE


@dataclass(frozen=True)
class Prospect:
    """What a noisy consensus is worth.

    signal_to_noise: L2 norm of the aggregate's mean signal in one row (proxy image), over the
    noise's standard deviation in one value. consensus: share of rows whose largest value is still
    the class that the clients mean. chance: that share if nothing but noise were left.
    """

    signal_to_noise: float
    consensus: float
    chance: float

    @property
    def useful(self) -> bool:
        """At least half of the way from chance to certainty."""
        return 2 * self.consensus >= 1 + self.chance


def prospect(
    *, weights: float, noise: float, rows: int, classes: int, quality: float = 0.4
) -> Prospect:
    """Predict the consensus of one release.

    weights: sum of the clients' α. noise: deviation of the aggregate's noise in clip norms. rows:
    proxy images, among which a clip norm is shared out evenly. quality: mean part of its clip that
    a client puts on the right class, 0 to 1; 1 if all clients are sure and right, 0.4 about for
    four of five right at two thirds of full confidence. Every row has one of `classes` classes.
    """
    ratio = quality * weights / (noise * math.sqrt(rows))
    # A centred vote of norm 1 leads each other class by this much.
    gap = ratio / math.sqrt(1 - 1 / classes)
    points, mass = np.polynomial.hermite_e.hermegauss(100)
    won = special.ndtr(points + gap) ** (classes - 1)
    return Prospect(ratio, float(mass @ won / mass.sum()), 1 / classes)


def plan_clients(
    *,
    epsilon: float,
    delta: float,
    rounds: int,
    alphas: Mapping[str, int],
    groups: Mapping[str, str],
    colluders: int,
    dropouts: int,
    clip_norm: float,
    size: int,
    rows: int,
    classes: int,
    quality: float = 0.4,
    override: bool = False,
    bits: int = RELEASED_BITS,
) -> ClientPlan:
    """The plan whose worst client has `epsilon` at `delta` after all `rounds`.

    Arguments as of NoisePlan.calibrate; rows, classes, quality as of `prospect`. Raises
    PrivacyError with the predicted figure, and with what would work, where the worst group's
    consensus is not useful, unless `override`.
    """
    check_target(epsilon, delta)
    # A clamped share counts e^ε times: as much headroom as that takes.
    odds = math.log(max(2 * rounds * len(groups) * size, 1) / (0.004 * delta)) + epsilon
    # The same target for teachers: replacing one moves the sum twice as far as removing it.
    twice = NoisePlan.calibrate(
        epsilon=epsilon,
        delta=delta,
        rounds=rounds,
        alphas=alphas,
        groups=groups,
        colluders=colluders,
        dropouts=dropouts,
        shards=dict.fromkeys(groups, 1),
        clip_norm=clip_norm,
        size=size,
        bits=bits,
        tail=max(10.0, math.sqrt(2 * odds)),
    )
    worst = _Worst.of(twice, alphas, rows, classes, quality)
    if not override and not worst.ahead(worst.rho, worst.members).useful:
        raise worst.refusal(epsilon, rounds)
    shares = {site: m.sigma_share / m.clip_int / 2 for site, m in twice.mechanisms.items()}
    tail = max(m.tail for m in twice.mechanisms.values())
    clip_int = math.floor(largest_integer(bits) / (1 + tail * max(shares.values())))
    mechanisms = {
        site: ClientGaussian(
            **{field.name: getattr(m, field.name) for field in fields(m)}
            | {"clip_int": clip_int, "sigma_share": shares[site] * clip_int}
        )
        for site, m in twice.mechanisms.items()
    }
    kept = {field.name: getattr(twice, field.name) for field in fields(twice)}
    return ClientPlan(**kept | {"mechanisms": mechanisms})


def _offer(epsilon: float) -> str:
    return f"or ε = {epsilon:g}" if epsilon <= _LOOSEST else f"no ε up to {_LOOSEST:g} would do"


@dataclass(frozen=True)
class _Worst:
    """The group with the least to hope for, and what other figures would bring it."""

    group: str
    members: int
    absent: int
    evenness: float
    rho: float
    delta: float
    rows: int
    classes: int
    quality: float

    @classmethod
    def of(
        cls,
        plan: NoisePlan,
        alphas: Mapping[str, int],
        rows: int,
        classes: int,
        quality: float,
    ) -> _Worst:
        if rows < 1 or classes < 2 or not 0 < quality <= 1:
            raise PrivacyError(
                f"{rows} rows, {classes} classes, quality {quality:g}",
                fix="at least 1 row, 2 classes, and a quality above 0 and at most 1",
            )
        found = []
        for group, honest in plan.honest.items():
            own = [alphas[site] for site in plan.groups if plan.groups[site] == group]
            even = sum(own) / (len(own) * max(own))
            absent = len(own) - honest
            # Per round and client; a useful consensus is one of every round.
            figures = (1 / (2 * plan.z**2), plan.delta, rows, classes, quality)
            found.append(cls(group, len(own), absent, even, *figures))
        return min(found, key=lambda w: w.ahead(w.rho, w.members).signal_to_noise)

    def ahead(self, rho: float, members: int) -> Prospect:
        """The prospect of `members` clients at `rho` a round, weights as uneven as here."""
        return prospect(
            weights=members * self.evenness,
            noise=math.sqrt(members / (2 * rho * (members - self.absent))),
            rows=self.rows,
            classes=self.classes,
            quality=self.quality,
        )

    def refusal(self, epsilon: float, rounds: int) -> PrivacyError:
        """Why not, and the least that would do."""
        now = self.ahead(self.rho, self.members)
        members, rho = self.members, self.rho
        while not self.ahead(self.rho, members).useful:
            members = math.ceil(1.05 * members)
        while not self.ahead(rho, self.members).useful:
            rho *= 1.05
        enough = math.ceil(10 * epsilon_from_rho(1.01 * rounds * rho, self.delta)) / 10
        return PrivacyError(
            f"a consensus right in {now.consensus:.1%} of rows (chance {now.chance:.1%}), signal "
            f"to noise {now.signal_to_noise:.3g}",
            where=f"group {self.group}",
            why=f"{self.members} clients are no crowd to hide one in, at ε = {epsilon:g}",
            fix=f"shard-teachers, which hide a patient among patients; or {members} clients; "
            f"{_offer(enough)}; or override the refusal for a study",
        )

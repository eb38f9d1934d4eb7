"""From a target ε to one mechanism per site: the noise plan of a federation.

The server adds α_j·(x_j + η_j) over the sites of a group. Site j draws its share with
σ_j = z·2S·α_max/(α_j·√h), so that after the weights all shares are equal and any h of them carry
the noise z·(2·S·α_max), whatever the others do. The client with the largest α has the noise
multiplier z; every other has more.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from protocols.accounting import REPLACE_ONE, check_target, rho_from_epsilon
from protocols.errors import PrivacyError
from protocols.mechanisms import ShardTeachers
from protocols.plan import Plan
from protocols.release import RELEASED_BITS, largest_integer


@dataclass(frozen=True)
class NoisePlan(Plan):
    """Noise, weights and guarantees of all sites over all rounds, with noise at release.

    Fields as of every plan, and: colluders: clients per group (t) that may pool what they know, or
    add no noise. dropouts: clients per group and round (d) that may fail. z: noise multiplier of
    the client with the largest weight.
    """

    mechanisms: Mapping[str, ShardTeachers]
    colluders: int
    dropouts: int
    z: float

    @classmethod
    def calibrate(
        cls,
        *,
        epsilon: float,
        delta: float,
        rounds: int,
        alphas: Mapping[str, int],
        groups: Mapping[str, str],
        colluders: int,
        dropouts: int,
        shards: Mapping[str, int],
        clip_norm: float,
        size: int,
        bits: int = RELEASED_BITS,
        tail: float = 10.0,
    ) -> NoisePlan:
        """The plan whose worst client has `epsilon` at `delta` after all `rounds`.

        alphas, groups, shards: per site, the public weight, the group and the number of teachers.
        clip_norm: joint L2 clip of a teacher, real units. size: released integers per round.
        Raises PrivacyError when a group is too small, weights are too far apart for the grid, or
        the figures ask for the impossible.
        """
        check_target(epsilon, delta)
        _check_parties(epsilon, rounds, alphas, groups, shards, colluders)
        honest = _honest(groups, colluders, dropouts)
        heaviest = {g: max(alphas[s] for s in groups if groups[s] == g) for g in honest}
        z = math.sqrt(rounds / (2 * rho_from_epsilon(epsilon, delta)))
        ratios = {
            site: 2 * z * heaviest[g] / (alphas[site] * math.sqrt(honest[g]))
            for site, g in groups.items()
        }
        clip_int = _clip_int(bits, max(shards.values()), tail, max(ratios.values()))
        mechanisms = {
            site: ShardTeachers(
                shards=shards[site],
                clip_norm=clip_norm,
                clip_int=clip_int,
                size=size,
                bits=bits,
                sigma_share=ratios[site] * clip_int,
                alpha=alphas[site],
                alpha_max=heaviest[group],
                honest=honest[group],
                tail=tail,
            )
            for site, group in groups.items()
        }
        plan = cls(mechanisms, dict(groups), rounds, delta, colluders, dropouts, z)
        plan._check_slack()
        return plan

    @property
    def relation(self) -> str:
        """The neighbouring relation of every figure."""
        return REPLACE_ONE

    @property
    def honest(self) -> dict[str, int]:
        """Noise shares that remain at least in each group: h = n - t - d."""
        return _honest(self.groups, self.colluders, self.dropouts)

    @property
    def min_participants(self) -> dict[str, int]:
        """Contributions per group below which nothing may be opened: n - d.

        All shares have the same variance after the weights, so counting them counts variance.
        """
        return {group: h + self.colluders for group, h in self.honest.items()}

    @property
    def signal_bound(self) -> dict[str, int]:
        """Per group, the largest L2 norm of the weighted sum without noise, in grid steps."""
        bounds: dict[str, int] = defaultdict(int)
        for site, mechanism in self.mechanisms.items():
            bounds[self.groups[site]] += mechanism.alpha * mechanism.signal_bound
        return dict(bounds)

    @property
    def noise_norm(self) -> dict[str, float]:
        """Per group, the root mean square L2 norm of the noise in that sum, all shares present."""
        variance: dict[str, float] = defaultdict(float)
        for site, m in self.mechanisms.items():
            variance[self.groups[site]] += m.size * (m.alpha * m.sigma_share) ** 2
        return {group: math.sqrt(total) for group, total in variance.items()}

    @property
    def adversary(self) -> str:
        """Against whom the figures hold, in one sentence."""
        return (
            f"the server, every key holder below the opening threshold, and up to "
            f"{self.colluders} client(s) of a group together, honest-but-curious, seeing every "
            f"aggregate of all {self.rounds} round(s), with up to {self.dropouts} dropout(s) per "
            f"group and round; rests on the encryption hiding single contributions"
        )

    def _check_slack(self) -> None:
        """Refuse when clamping would eat a hundredth of δ."""
        if self.delta_total <= 1.01 * self.delta:
            return
        releases = 2 * self.rounds * max(m.honest * m.size for m in self.mechanisms.values())
        odds = math.log(releases / (0.005 * self.delta)) + self.epsilon
        raise PrivacyError(
            f"the headroom costs δ = {self.delta_total - self.delta:.2g} on top of {self.delta:g}",
            why=f"a clamped share counts e^ε times, and ε is {self.epsilon:.3g}",
            fix=f"raise tail to {math.ceil(10 * math.sqrt(2 * odds)) / 10} or lower ε",
        )


def _check_parties(
    epsilon: float,
    rounds: int,
    alphas: Mapping[str, int],
    groups: Mapping[str, str],
    shards: Mapping[str, int],
    colluders: int,
) -> None:
    if not alphas or not set(alphas) == set(groups) == set(shards):
        raise PrivacyError(
            f"weights for {sorted(alphas)}, groups for {sorted(groups)}, shards for "
            f"{sorted(shards)}",
            fix="give each site a weight, a group and a number of shards",
        )
    if min(alphas.values()) < 1 or min(shards.values()) < 1 or rounds < 1:
        raise PrivacyError(
            f"weights {dict(alphas)}, shards {dict(shards)}, {rounds} rounds",
            fix="all of them must be at least 1",
        )
    if colluders < 1:
        raise PrivacyError(
            f"{colluders} colluders",
            why="every client knows its own noise, so one is always to be counted",
            fix="set t to 1 or more",
        )
    if epsilon == math.inf:
        raise PrivacyError("ε = inf has no noise plan", fix="choose the mechanism none")


def _honest(groups: Mapping[str, str], colluders: int, dropouts: int) -> dict[str, int]:
    """h = n - t - d per group; refuses a group in which none is left."""
    members: dict[str, int] = defaultdict(int)
    for group in groups.values():
        members[group] += 1
    for group, count in members.items():
        if count - colluders - dropouts < 1 or dropouts < 0:
            raise PrivacyError(
                f"{count} participant(s), {colluders} colluder(s), {dropouts} dropout(s)",
                where=f"group {group}",
                why="no honest noise share would be left",
                fix=f"{colluders + max(dropouts, 0) + 1} participants would work; join groups, or "
                "lower t (not below 1) or d (not below 0)",
            )
    return {group: count - colluders - dropouts for group, count in members.items()}


def _clip_int(bits: int, shards: int, tail: float, ratio: float) -> int:
    """The finest grid on which `shards` teachers and `tail` deviations of noise fit `bits`.

    ratio: the largest noise share in units of the clip. Floor leaves the headroom by construction.
    """
    clip_int = math.floor(largest_integer(bits) / (shards + tail * ratio))
    if clip_int < 1:
        needed = math.ceil(math.log2(shards + tail * ratio + 1)) + 1
        raise PrivacyError(
            f"{bits} bits do not hold {shards} teachers and noise of {ratio:.3g} clips",
            fix=f"raise bits to {needed} at the very least, raise ε, or bring the weights together",
        )
    return clip_int

"""What all parties agree on before the first round: weights, groups, and each site's mechanism.

It rests on declared figures alone, spends nothing, and its digest enters every signed plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from protocols.chain import canonical, digest
from protocols.errors import ConfigError, PrivacyError
from protocols.mechanisms import NoNoise, ShardTeachers
from protocols.messages import Floors, Mode
from protocols.multikey import MK18_39, MK18_49
from protocols.noise_plan import NoisePlan
from protocols.policy import cap, threshold_of
from protocols.presets import find_preset
from protocols.quantize import Layout
from protocols.rlwe import PK18_44
from protocols.slots import SLOTS18_140
from secure_natfl.config import Config
from secure_natfl.config import ShardTeachers as ShardTeachersTable
from secure_natfl.federation import Federation

PATIENTS_PER_SHARD = 3
"""Expected patients of a shard, at least: with fewer many shards would be empty."""

_PRESETS: Final[Mapping[Mode, tuple[str, ...]]] = {
    "ckks/threshold": (MK18_39.name, MK18_49.name),
    "ckks/decryptor": (PK18_44.name,),
    "ring/decryptor": (PK18_44.name,),
    "plain/none": (PK18_44.name,),
    "slots/shared": (SLOTS18_140.name,),
}
"""The presets of each mode, the shortest messages first."""


@dataclass(frozen=True)
class Terms:
    """What all parties agree on before the first round: α, groups, and each site's mechanism.

    preset: name of the cryptosystem's parameters. least: group → the number of contributions
    below which nothing of it is opened: n − d with noise, for the guarantee counts on so many.
    """

    alphas: dict[str, int]
    groups: dict[str, list[str]]
    preset: str
    least: dict[str, int]
    mechanisms: Mapping[str, NoNoise | ShardTeachers]
    noise_plan: NoisePlan | None

    @property
    def digest(self) -> str:
        """SHA-256 that the enrolment and every plan carry."""
        stated = {
            "alphas": self.alphas,
            "groups": self.groups,
            "least": self.least,
            "mechanisms": {name: repr(m) for name, m in self.mechanisms.items()},
        }
        return digest(canonical(stated))

    def among(self, participants: Mapping[str, Sequence[str]]) -> Terms:
        """The terms of sums over group → these sites alone: their denominators, their noise.

        Whoever reads a round's aggregates runs it; sites may have dropped out of them.
        """
        return replace(self, groups={group: list(sites) for group, sites in participants.items()})

    @property
    def teachers(self) -> dict[str, float]:
        """Group → Σα·M: the denominator where every answer counts the same."""
        return {
            group: float(sum(self.alphas[s] * self.mechanisms[s].shards for s in sites))
            for group, sites in self.groups.items()
        }

    @property
    def noise(self) -> dict[str, float]:
        """Group → standard deviation of the noise on each released number, in real units."""
        return {
            group: math.sqrt(sum(self._deviation(site) ** 2 for site in sites))
            for group, sites in self.groups.items()
        }

    def _deviation(self, site: str) -> float:
        """Standard deviation of α times a site's noise share, in real units."""
        mechanism = self.mechanisms[site]
        if not isinstance(mechanism, ShardTeachers):
            return 0.0
        return mechanism.alpha * mechanism.sigma_share * mechanism.step


def agree(
    config: Config,
    federation: Federation,
    layout: Layout,
    alphas: Mapping[str, int],
    groups: Mapping[str, str],
) -> Terms:
    """Cap α until every group meets its floors, then calibrate. Spends nothing.

    Raises PrivacyError or ConfigError with the number that would work.
    """
    floors = floors_of(config)
    members: dict[str, list[str]] = {}
    for site, group in groups.items():
        members.setdefault(group, []).append(site)
    capped: dict[str, int] = {}
    for sites in members.values():
        capped |= cap({site: alphas[site] for site in sites}, floors)
    weights = [[capped[site] for site in sites] for sites in members.values()]
    preset = preset_of(config.mode, weights)
    bits = find_preset(preset).bits
    table = config.privacy
    if not isinstance(table, ShardTeachersTable):
        silent = NoNoise.for_sites(
            shards=teachers_of(config, federation),
            clip_norm=table.clip,
            size=layout.size,
            bits=bits,
        )
        least = dict.fromkeys(members, floors.participants)
        return Terms(capped, members, preset, least, silent, None)
    _check_patients(table, federation)
    noise = NoisePlan.calibrate(
        epsilon=table.epsilon,
        delta=table.delta,
        rounds=config.system.rounds,
        alphas=capped,
        groups=groups,
        colluders=table.colluders,
        dropouts=table.dropouts,
        shards=teachers_of(config, federation),
        clip_norm=table.clip,
        size=layout.size,
        bits=bits,
    )
    if config.mode == "ckks/threshold":
        _check_colluding_holders(noise, members)
    return Terms(capped, members, preset, noise.min_participants, noise.mechanisms, noise)


def preset_of(mode: Mode, weights: Iterable[Sequence[int]]) -> str:
    """The preset with the shortest messages under which the sum of every group is exact.

    weights: the α of each group. ConfigError, saying what would do, where there is none.
    """
    groups = list(weights)
    *shorter, longest = _PRESETS[mode]
    for name in shorter:
        with suppress(ConfigError):
            _prove(name, groups)
            return name
    _prove(longest, groups)
    return longest


def _prove(name: str, weights: Iterable[Sequence[int]]) -> None:
    for alphas in weights:
        find_preset(name).prove(alphas)


def teachers_of(config: Config, federation: Federation) -> dict[str, int]:
    """Site → number of teachers: `privacy.shards`, or fewer where a shard would be left empty.

    Depends on declared figures alone.
    """
    table = config.privacy
    if not isinstance(table, ShardTeachersTable) and table.speaking == "network":
        return {site.name: 1 for site in federation.sites}
    return {
        site.name: min(table.shards, site.patients // PATIENTS_PER_SHARD)
        for site in federation.sites
    }


def floors_of(config: Config) -> Floors:
    """The least that a group must have, as configured."""
    table = config.aggregation
    return Floors(participants=table.min_participants, effective=table.min_effective)


def _check_colluding_holders(noise: NoisePlan, groups: Mapping[str, Sequence[str]]) -> None:
    """Sites hold the key shares: the colluders counted on must be too few to open.

    Otherwise only a site's own noise would stand between them and its contribution; where no
    more than that is counted on anyway, nothing is lost.
    """
    needed, _ = threshold_of(sum(map(len, groups.values())))
    holders = sum(min(noise.colluders, len(sites)) for sites in groups.values())
    if holders >= needed and max(noise.honest.values()) > 1:
        raise PrivacyError(
            f"{noise.colluders} colluders in each group hold {holders} key shares",
            where="privacy.colluders",
            why=f"{needed} of them open single contributions, and others' noise would not help",
            fix=f"lower it to {(needed - 1) // len(groups)}, "
            'or set aggregation.custody = "decryptor"',
        )


def _check_patients(table: ShardTeachersTable, federation: Federation) -> None:
    """δ must be below one patient's share, and every site must fill two shards."""
    for site in sorted(federation.sites, key=lambda site: site.patients, reverse=True):
        if table.delta >= 1 / site.patients:
            raise PrivacyError(
                f"δ = {table.delta:g} is not below 1/{site.patients} {site.unit}s",
                where=f"privacy.delta, {site.name}",
                why="such a δ allows to publish one of them whole",
                fix=f"set it to at most {0.1 / site.patients:.1g}",
            )
        if site.patients < 2 * PATIENTS_PER_SHARD:
            raise PrivacyError(
                f"{site.patients} {site.unit}s are too few for two shards",
                where=site.name,
                why=f"a shard takes {PATIENTS_PER_SHARD} at least, or some stay empty",
                fix="leave the site out, or join it with another",
            )

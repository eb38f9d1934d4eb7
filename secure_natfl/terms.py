"""What all parties agree on before the first round: weights, groups, and each site's mechanism.

It rests on declared figures alone, spends nothing, and its digest enters every signed plan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from protocols.chain import canonical, digest
from protocols.errors import PrivacyError
from protocols.mechanisms import NoNoise, ShardTeachers
from protocols.messages import Floors
from protocols.noise_plan import NoisePlan
from protocols.policy import cap
from protocols.quantize import Layout
from protocols.rlwe import PK20_44
from secure_natfl.config import Config
from secure_natfl.config import ShardTeachers as ShardTeachersTable
from secure_natfl.federation import Federation

PATIENTS_PER_SHARD = 3
"""Expected patients of a shard, at least: with fewer many shards would be empty."""


@dataclass(frozen=True)
class Terms:
    """What all parties agree on before the first round: α, groups, and each site's mechanism."""

    alphas: dict[str, int]
    groups: dict[str, list[str]]
    mechanisms: Mapping[str, NoNoise | ShardTeachers]
    noise_plan: NoisePlan | None

    @property
    def digest(self) -> str:
        """SHA-256 that the enrolment and every plan carry."""
        stated = {
            "alphas": self.alphas,
            "groups": self.groups,
            "mechanisms": {name: repr(m) for name, m in self.mechanisms.items()},
        }
        return digest(canonical(stated))

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
        if self.noise_plan is None:
            return dict.fromkeys(self.groups, 0.0)
        found = {}
        for group, sites in self.groups.items():
            mechanism = self.mechanisms[sites[0]]
            norm = self.noise_plan.noise_norm[group]
            found[group] = norm * mechanism.step / math.sqrt(mechanism.size)
        return found


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
    for sites in members.values():
        PK20_44.prove(sum(capped[site] for site in sites))
    table = config.privacy
    if not isinstance(table, ShardTeachersTable):
        silent = NoNoise.for_sites(
            shards=teachers_of(config, federation), clip_norm=table.clip, size=layout.size
        )
        return Terms(capped, members, silent, None)
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
    )
    return Terms(capped, members, noise.mechanisms, noise)


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

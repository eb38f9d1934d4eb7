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
from protocols.mechanisms import NoNoise, ShardTeachers, TrainedOutput
from protocols.messages import Floors, Mode
from protocols.multikey import MK18_39, MK18_49
from protocols.noise_plan import NoisePlan
from protocols.policy import cap, threshold_of
from protocols.presets import find_preset
from protocols.quantize import Layout
from protocols.rlwe import PK18_44
from protocols.slots import SLOTS18_140
from protocols.training_plan import TrainingPlan
from secure_natfl import config as tables
from secure_natfl.config import Config
from secure_natfl.federation import Federation
from secure_natfl.planner import Planner, Sending, check_patients

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
    below which nothing of it is opened: n − d where the guarantee counts on so many noise shares.
    noise_plan: what noise promises, at release or in training; None without noise.
    """

    alphas: dict[str, int]
    groups: dict[str, list[str]]
    preset: str
    least: dict[str, int]
    mechanisms: Mapping[str, NoNoise | ShardTeachers | TrainedOutput]
    noise_plan: NoisePlan | TrainingPlan | None

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
        """Group → standard deviation of the noise on each released number, in real units.

        0 where a model was trained under noise: none is put on what it says.
        """
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
    floors, members = floors_of(config), members_of(groups)
    capped: dict[str, int] = {}
    for sites in members.values():
        capped |= cap({site: alphas[site] for site in sites}, floors)
    return settled(config, federation, Sending(layout.size), capped, groups)


def members_of(groups: Mapping[str, str]) -> dict[str, list[str]]:
    """Group → its sites, from site → group."""
    members: dict[str, list[str]] = {}
    for site, group in groups.items():
        members.setdefault(group, []).append(site)
    return members


def settled(
    config: Config,
    federation: Federation,
    sending: Sending,
    capped: dict[str, int],
    groups: Mapping[str, str],
) -> Terms:
    """The terms for what is sent, once the weights are capped. Spends nothing."""
    members, floors = members_of(groups), floors_of(config)
    weights = [[capped[site] for site in sites] for sites in members.values()]
    preset = preset_of(config.mode, weights)
    least = dict.fromkeys(members, floors.participants)
    plan = Planner(config, federation, sending, find_preset(preset).bits, capped, groups)
    table = config.privacy
    if isinstance(table, tables.NoNoise):
        return Terms(capped, members, preset, least, plan.silent(table), None)
    check_patients(table, federation)
    if isinstance(table, tables.DpSgd):
        training = plan.training(table)
        return Terms(capped, members, preset, least, training.mechanisms, training)
    noise = plan.noise(table)
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

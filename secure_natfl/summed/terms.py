"""The terms of a system that learns from sums: every phase, every round's cohort, before any data.

It rests on declared figures alone and spends nothing. A cohort smaller than all sites is a plan
with fewer participants: the floors hold for it, and noise counts the others as dropped out.
"""

from __future__ import annotations

from collections.abc import Mapping

from protocols.errors import ConfigError, ModelError
from protocols.messages import Floors
from protocols.policy import cap
from secure_natfl import config as tables
from secure_natfl.config import Config
from secure_natfl.federation import Federation
from secure_natfl.planner import Sending
from secure_natfl.schedule import Agreed, Schedule
from secure_natfl.systems.summed import SummedSystem
from secure_natfl.terms import floors_of, members_of, settled


def agree_sums(config: Config, federation: Federation, system: SummedSystem) -> Schedule:
    """What all parties agree on, or ConfigError or PrivacyError with what would work."""
    rounds = range(config.system.rounds)
    groups = {site.name: system.group_of(site) for site in federation.sites}
    cohorts = tuple(_cohort(system.cohort(number), groups, number) for number in rounds)
    members, floors = members_of(groups), floors_of(config)
    alphas = _capped(system.weights(), members, cohorts, floors)
    absent = _absent(members, cohorts)
    trained = None
    if isinstance(config.privacy, tables.DpSgd):
        trained = {site.name: system.trained_parameters(site) for site in federation.sites}
    phases = system.phases(0)
    if len(phases) != config.system.phases:
        raise ModelError(
            f"a round of {len(phases)} sums, and the configuration's table says "
            f"{config.system.phases}",
            where=system.name,
            fix="let the table's `phases` say how many the system opens",
        )
    agreed = []
    for number, phase in enumerate(phases):
        sending = Sending(phase.layout.size, trained, phase.span, absent, answers=False)
        terms = settled(config, federation, sending, alphas, groups)
        agreed.append(Agreed(phase.name, terms, phase.layout, further=number > 0))
    return Schedule(tuple(agreed), cohorts)


def _cohort(cohort: tuple[str, ...], groups: Mapping[str, str], number: int) -> tuple[str, ...]:
    strangers = set(cohort) - set(groups)
    if strangers or not cohort or len(set(cohort)) < len(cohort):
        raise ConfigError(
            f"round {number + 1} asks {', '.join(cohort) or 'no site'}",
            where="the system's cohort",
            fix="ask sites of the federation, each once, and at least as many as the floors say",
        )
    return cohort


def _capped(
    alphas: Mapping[str, int],
    members: Mapping[str, list[str]],
    cohorts: tuple[tuple[str, ...], ...],
    floors: Floors,
) -> dict[str, int]:
    """α lowered until every group of every round meets the floors."""
    capped = dict(alphas)
    while True:
        before = dict(capped)
        for number, cohort in enumerate(cohorts):
            for group, sites in members.items():
                asked = {site: capped[site] for site in sites if site in cohort}
                if asked:
                    capped |= _capped_once(asked, floors, f"group {group}, round {number + 1}")
        if capped == before:
            return capped


def _capped_once(asked: Mapping[str, int], floors: Floors, where: str) -> dict[str, int]:
    try:
        return cap(asked, floors)
    except ConfigError as error:
        raise ConfigError(
            error.what,
            where=where,
            why=error.why,
            fix="let more sites take part in a round, or merge groups",
        ) from None


def _absent(members: Mapping[str, list[str]], cohorts: tuple[tuple[str, ...], ...]) -> int:
    """The most sites of a group that a round leaves out while it asks others of it."""
    return max(
        len(sites) - len(asked)
        for cohort in cohorts
        for sites in members.values()
        if (asked := set(sites) & set(cohort))
    )

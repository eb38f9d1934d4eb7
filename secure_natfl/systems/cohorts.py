"""Weights and cohorts from declared figures, as systems that learn from sums share them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from protocols.errors import ConfigError
from secure_natfl.federation import Federation, Site
from secure_natfl.seeds import Seeds
from secure_natfl.system_tables import NatImg, Summing

GroupOf = Callable[[Site], str]


def declared_weights(
    table: Summing | NatImg, federation: Federation, group_of: GroupOf
) -> dict[str, int]:
    """α of every site: 1, or its declared size against the smallest of its group, capped."""
    if table.alpha == "equal":
        return {site.name: 1 for site in federation.sites}
    smallest: dict[str, int] = {}
    for site in federation.sites:
        group = group_of(site)
        smallest[group] = min(smallest.get(group, site.patients), site.patients)
    return {
        site.name: max(1, min(table.alpha_max, round(site.patients / smallest[group_of(site)])))
        for site in federation.sites
    }


def drawn_cohort(
    table: Summing,
    federation: Federation,
    group_of: GroupOf,
    round_number: int,
    seeds: Seeds,
    fewest: int,
) -> tuple[str, ...]:
    """The sites of a round: of each group a share of `table.participation`, rounded up, at random.

    fewest: the floor on participants. ConfigError where the share of a group would be below it.
    """
    groups: dict[str, list[str]] = {}
    for site in federation.sites:
        groups.setdefault(group_of(site), []).append(site.name)
    chosen: set[str] = set()
    for group, sites in groups.items():
        count = math.ceil(round(table.participation * len(sites), 9))
        if count < min(fewest, len(sites)):
            raise ConfigError(
                f"{table.participation:g} of {len(sites)} sites are {count}",
                where=f"system.participation, group {group}",
                why=f"a sum is opened over {fewest} at least",
                fix=f"raise it to {math.ceil(100 * fewest / len(sites)) / 100:g}",
            )
        order = torch.randperm(
            len(sites), generator=seeds.torch("cohort", group, round_number)
        ).tolist()
        chosen |= {sites[at] for at in order[:count]}
    return tuple(site.name for site in federation.sites if site.name in chosen)

"""The run's mechanism with a teacher for each canary, so that one release holds a thousand."""

from __future__ import annotations

from typing import Final

from attacks.canaries import Group
from protocols.client_gaussian import ClientPlan
from protocols.errors import ConfigError
from protocols.noise_plan import NoisePlan
from secure_natfl.leakage.attacked import AttackedRun

_CANARIES: Final = 1_000


def canary_group(run: AttackedRun) -> Group:
    """The first group of a run's noise plan, calibrated anew for a thousand shards per site.

    Target, weights, colluders, dropouts and clip are the run's; more shards change the grid and
    not the claim. ConfigError where no noise is put on a release.
    """
    plan = run.terms.noise_plan
    if isinstance(plan, ClientPlan):
        raise ConfigError(
            "one release of a mechanism that hides a whole site has room for one canary",
            where="L3: canaries in one release",
            why="a canary is a unit, and a site is one",
            fix="audit the mechanism over many releases (attacks.canaries.two_worlds)",
        )
    if not isinstance(plan, NoisePlan):
        raise ConfigError(
            f"releases of {run.config.privacy.mechanism} have no noise of their own",
            where="L3: canaries in one release",
            why="the canaries' mechanism is noise at release",
            fix="attack a run with noise at release",
        )
    name, sites = next(iter(run.terms.groups.items()))
    some = plan.mechanisms[sites[0]]
    audited = NoisePlan.calibrate(
        epsilon=plan.epsilon,
        delta=plan.delta,
        rounds=plan.rounds,
        alphas={site: run.terms.alphas[site] for site in sites},
        groups=dict.fromkeys(sites, name),
        colluders=plan.colluders,
        dropouts=plan.dropouts,
        shards=dict.fromkeys(sites, _CANARIES),
        clip_norm=some.clip_norm,
        size=max(some.size, _CANARIES),
        bits=some.bits,
    )
    victim = max(sites, key=lambda site: run.terms.alphas[site])
    others = [site for site in sites if site != victim]
    return Group(
        mechanisms=audited.mechanisms,
        victim=victim,
        colluders=frozenset(others[: plan.colluders]),
    )

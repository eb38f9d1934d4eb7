"""The report's part on privacy: the guarantee in words and figures, for every mechanism alike."""

from __future__ import annotations

import os
from importlib.metadata import version

from protocols.client_gaussian import CLIENT
from protocols.mechanisms import TrainedOutput
from protocols.noise_plan import NoisePlan
from protocols.promises import PROMISES
from protocols.statement import PrivacyStatement
from protocols.training_plan import TrainingPlan
from secure_natfl.config import Config
from secure_natfl.exposure import hides_from_server, not_covered
from secure_natfl.federation import Site
from secure_natfl.report.model import Budget, Privacy, SiteLedger
from secure_natfl.results import Played
from secure_natfl.site_state import state_folder
from secure_natfl.terms import Terms

Parameters = dict[str, int | float | str]


def privacy(config: Config, results: Played) -> Privacy:
    """What the run promises: of its worst site, over all rounds."""
    plan, sites = results.terms.noise_plan, {site.name: site for site in results.federation.sites}
    worst = sites[plan.worst if plan else min(sites)]
    guarantee = statement_of(config, results, worst)
    ratios = [r["signal_to_noise"] for r in results.rounds] if isinstance(plan, NoisePlan) else []
    return Privacy(
        mechanism=guarantee.mechanism,
        epsilon=plan.epsilon if plan else float("inf"),
        epsilon_isolated=plan.epsilon_isolated if plan else float("inf"),
        delta=plan.delta_total if plan else 0.0,
        unit=CLIENT if guarantee.unit == CLIENT else results.federation.unit,
        relation=guarantee.relation,
        t=plan.colluders if plan else 0,
        d=plan.dropouts if plan else 0,
        rounds=config.system.rounds,
        adversary=guarantee.adversary,
        statement=guarantee.paragraph(),
        guarantee=guarantee,
        accountant=f"{guarantee.accountant} {version('dp-accounting')}",
        crosscheck_epsilon=guarantee.cross_check,
        parameters=_parameters(results.terms),
        signal_to_noise=min(ratios) if ratios else None,
        randomness="a seeded stream: not private" if config.seeded else "the operating system's",
        not_covered=not_covered(config),
        ledger=tuple(site_ledger(config, results, site) for site in results.federation.sites),
    )


def statement_of(config: Config, results: Played, site: Site) -> PrivacyStatement:
    """One site's guarantee over all rounds of the run."""
    mechanism, plan = results.terms.mechanisms[site.name], results.terms.noise_plan
    return PrivacyStatement.of(
        mechanism.training if isinstance(mechanism, TrainedOutput) else mechanism,
        config.system.rounds if isinstance(mechanism, TrainedOutput) else config.openings,
        plan.delta if plan else results.accounts[site.name].spent.delta,
        unit=site.unit,
        adversary=_adversary(config, results.terms),
        random=results.seeds.protective(os.urandom, "statement"),
        colluders=plan.colluders if plan else None,
        dropouts=plan.dropouts if plan else None,
    )


def site_ledger(config: Config, results: Played, site: Site) -> SiteLedger:
    """A site's ledger as the consortium may see it."""
    account = results.accounts[site.name]
    own = state_folder(config, results.folder) == results.folder / "sites"
    return SiteLedger(
        site=site.name,
        lines=len(account.lines),
        spent_epsilon=account.spent.epsilon,
        spans="this run only" if own else "all runs on these patients",
        head_sha256=account.head,
    )


def budgets(results: Played, site: Site) -> tuple[Budget, ...]:
    """What each patient set of a site's ledger has spent: per session, and in all."""
    return tuple(
        Budget(
            patients=found.patients,
            session=found.session,
            charges=found.spent.charges,
            epsilon=found.spent.epsilon,
            cross_check=found.spent.cross_check,
        )
        for found in results.accounts[site.name].budgets
    )


def _adversary(config: Config, terms: Terms) -> str:
    plan = terms.noise_plan
    if plan is None:
        return "nobody: no noise is added"
    if isinstance(plan, TrainingPlan):
        return plan.adversary
    promise = PROMISES[config.mode]
    if not hides_from_server(promise):
        return (
            "those who see the aggregates alone; the server and every listener read each "
            f"contribution, and against them only ε = {plan.epsilon_isolated:.3g} holds"
        )
    return (
        f"up to {plan.colluders} client(s) of a group with {promise.adversary}, honest but "
        f"curious, seeing every aggregate of all {plan.rounds} round(s), with up to "
        f"{plan.dropouts} dropout(s) per group and round"
    )


def _parameters(terms: Terms) -> Parameters:
    plan, mechanisms = terms.noise_plan, terms.mechanisms.values()
    one = next(iter(mechanisms))
    common: Parameters = {
        "bits of a released integer": one.bits,
        "released integers per round": one.size,
    }
    if isinstance(plan, TrainingPlan):
        return common | _of_training(plan)
    clips = {m.clip_norm: m.clip_int for m in mechanisms if not isinstance(m, TrainedOutput)}
    common |= {
        "clip norm, real units": next(iter(clips)),
        "clip, grid steps": next(iter(clips.values())),
        "teachers of a site, at most": max(m.shards for m in mechanisms),
    }
    return common if plan is None else common | _of_noise(plan)


def _of_noise(plan: NoisePlan) -> Parameters:
    return {
        "noise multiplier z of the worst client": plan.z,
        "smallest noise share σ, grid steps": min(m.sigma_share for m in plan.mechanisms.values()),
        "zCDP ρ of the worst client, all rounds": plan.spending(plan.worst).rho,
        "honest noise shares counted on": ", ".join(
            f"{count} in {group}" for group, count in plan.honest.items()
        ),
    }


def _of_training(plan: TrainingPlan) -> Parameters:
    worst = plan.mechanisms[plan.worst]
    trainings = [m.training for m in plan.mechanisms.values()]
    return {
        "clip norm of a unit's gradient": worst.training.clip_norm,
        "noise multiplier, clip norms": worst.training.noise_multiplier,
        "sampling rate": worst.training.rate,
        "steps per round": worst.training.steps,
        "layers trained": worst.training.layers,
        "parameters trained, at most": max(t.size for t in trainings),
        "noise σ of a step's mean gradient, clip norms, at most": max(
            t.noise_multiplier / t.expected for t in trainings
        ),
        "largest value sent, real units": worst.span,
    }

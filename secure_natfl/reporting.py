"""From a run's results to the consortium's report: the figures, and the words that bound them."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from importlib.metadata import version

from protocols.accounting import REPLACE_ONE, gaussian_epsilon
from protocols.multikey import MultiKeyPreset
from protocols.policy import effective
from protocols.presets import find_preset
from protocols.promises import PROMISES
from protocols.rlwe import TABLE_128, Preset
from secure_natfl import __version__, baselines
from secure_natfl.config import Config
from secure_natfl.config import ShardTeachers as ShardTeachersTable
from secure_natfl.costs import environment, peak_memory, samples, timing, wire
from secure_natfl.evaluation import TestPart, hospital_tests, predict, scores
from secure_natfl.exposure import exposure, hides_from_server, not_covered, uncovered
from secure_natfl.federation import Site
from secure_natfl.report.model import (
    Absence,
    Aggregation,
    Baseline,
    Central,
    Client,
    CurvePoint,
    LossPoint,
    Privacy,
    Proxy,
    Report,
    SiteLedger,
)
from secure_natfl.results import Results, head_of
from secure_natfl.site_state import state_folder
from secure_natfl.systems.natimg_fl import NAME, RECONSTRUCTION


def headline(config: Config, results: Results, command: str) -> dict[str, object]:
    """What every report of the run says first."""
    reasons = []
    if config.seeded:
        reasons.append(
            f"the run was seeded (run.seed = {config.run.seed}): whoever knows the seed can take "
            "the noise away"
        )
    if results.terms.noise_plan is None:
        reasons.append("no noise was added, so no ε bounds what the released figures reveal")
    return {
        "product_version": __version__,
        "created_utc": datetime.now(UTC),
        "name": config.run.name,
        "command": command,
        "config_sha256": config.identity,
        "simulated": True,
        "seeded": config.seeded,
        "not_private_because": tuple(reasons),
        "system": NAME,
        "reconstruction": RECONSTRUCTION,
    }


def consortium(config: Config, results: Results, command: str) -> Report:
    """The report that all parties share."""
    tests = hospital_tests(results.federation)
    return Report(
        **headline(config, results, command),
        parts=_parts(config),
        aggregation=_aggregation(config, results),
        aggregate_sha256=tuple(h for r in results.rounds for h in r["aggregate_sha256"]),
        absent=tuple(
            Absence(round=i + 1, party=party, why=why)
            for i, summary in enumerate(results.rounds)
            for party, why in summary["absent"].items()
        ),
        privacy=_privacy(config, results),
        clients=tuple(client(results, site, tests) for site in results.federation.sites),
        central=Central(
            architecture=config.models.central,
            heads=tuple(results.system.heads),
            scores={
                name: scores(
                    [predict(results.state.central, part, head_of(results.system, name))], part
                )
                for name, part in tests.items()
            },
        ),
        baselines={arm: _baseline(results, arm, tests) for arm in results.arms},
        curves=_curves(results, list(tests)),
        losses=tuple(
            LossPoint(model=model, step=i + 1, loss=loss)
            for i, summary in enumerate(results.rounds)
            for model, loss in summary["losses"].items()
        ),
        wire=wire(config, results),
        seconds=timing(config, results),
        peak_memory_mib=peak_memory(),
        exposure=exposure(config, results.terms),
        uncovered_releases=uncovered(config),
        environment=environment(),
        proxy=Proxy(
            name=results.federation.natural_records.name,
            images=len(results.federation.natural_records),
            asked_per_round=config.proxies.per_round,
            classes=results.federation.task.natural_classes,
            overlap_check="no private image is among them, nor a re-encoded or re-exposed copy",
        ),
        proxy_samples=samples(results),
    )


def client(results: Results, site: Site, tests: dict[str, TestPart]) -> Client:
    """One site's row: what it declares, its privacy loss, its personalised model's scores."""
    epsilon = isolated = float("inf")
    if results.terms.noise_plan is not None:
        spent = results.terms.noise_plan.spending(site.name)
        epsilon, isolated = spent.epsilon, spent.epsilon_isolated
    network, part = results.state.personal[site.name], tests[site.hospital]
    return Client(
        name=site.name,
        hospital=site.hospital,
        group=results.system.group_of(site),
        architecture=site.architecture,
        parameters=network.parameter_count,
        unit=site.unit,
        patients=site.patients,
        train_images=len(site.train),
        test_images=len(site.test),
        one_class=site.one_class,
        alpha=results.terms.alphas[site.name],
        epsilon=epsilon,
        epsilon_isolated=isolated,
        scores=scores([predict(network, part)], part),
    )


def site_ledger(config: Config, results: Results, site: Site) -> SiteLedger:
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


def _parts(config: Config) -> dict[str, bool]:
    options = config.system
    return {
        "natural images as auxiliary supervision": options.natural_weight > 0,
        "alignment to public statistics": options.alignment_weight > 0,
        "distillation back to the sites": options.distillation_weight > 0,
        f"fine-grained upward weight β ({options.beta})": options.beta != "uniform",
        f"client weight α ({options.alpha})": options.alpha != "equal",
        f"downward weight w↓ ({options.downward})": options.downward != "off",
        "one head per group of hospitals": options.heads == "group",
        "differential privacy": isinstance(config.privacy, ShardTeachersTable),
        "encryption": config.aggregation.kind != "plain",
    }


def _aggregation(config: Config, results: Results) -> Aggregation:
    terms = results.terms
    common = {
        "kind": config.aggregation.kind,
        "custody": config.aggregation.custody,
        "holders": list(results.holders),
        "threshold": results.threshold,
        "alpha": terms.alphas,
        "n_eff": {
            group: effective([terms.alphas[site] for site in sites])
            for group, sites in terms.groups.items()
        },
        "groups": {group: tuple(sites) for group, sites in terms.groups.items()},
    }
    if config.aggregation.kind == "plain":
        return Aggregation(**common)
    ring = find_preset(terms.preset)
    moduli = (ring.prime, ring.special) if isinstance(ring, Preset) else ring.primes
    used = math.prod(moduli).bit_length()
    own = isinstance(ring, MultiKeyPreset)
    return Aggregation(
        **common,
        preset=ring.name,
        poly_modulus_degree=ring.degree,
        coeff_mod_bits=tuple(modulus.bit_length() for modulus in moduli),
        scale=ring.scale,
        security_bits_table=f"128-bit table: limit {TABLE_128[ring.degree]}, used {used}",
        implementation="protocols.multikey_ckks" if own else f"TenSEAL {version('tenseal')}",
    )


def _privacy(config: Config, results: Results) -> Privacy:
    noise, table = results.terms.noise_plan, config.privacy
    worst = max(results.terms.mechanisms.values(), key=lambda m: m.event().rho)
    parameters: dict[str, int | float | str] = {
        "clip norm, real units": table.clip,
        "clip, grid steps": worst.clip_int,
        "bits of a released integer": worst.bits,
        "teachers of a site, at most": max(m.shards for m in results.terms.mechanisms.values()),
        "released integers per round": worst.size,
    }
    if noise is not None:
        parameters |= {
            "noise multiplier z of the worst client": noise.z,
            "smallest noise share σ, grid steps": min(
                m.sigma_share for m in noise.mechanisms.values()
            ),
            "zCDP ρ of the worst client, all rounds": max(
                noise.spending(site).rho for site in noise.mechanisms
            ),
            "honest noise shares counted on": ", ".join(
                f"{count} in {group}" for group, count in noise.honest.items()
            ),
        }
    epsilons = [noise.epsilon, noise.epsilon_isolated] if noise else [float("inf")] * 2
    rho = max((noise.spending(site).rho for site in noise.mechanisms), default=0) if noise else 0
    ratios = [r["signal_to_noise"] for r in results.rounds] if noise else []
    return Privacy(
        mechanism=table.mechanism,
        epsilon=epsilons[0],
        epsilon_isolated=epsilons[1],
        delta=noise.delta_total if noise else getattr(table, "delta", 0.0),
        unit=results.federation.unit,
        relation=REPLACE_ONE,
        t=noise.colluders if noise else 0,
        d=noise.dropouts if noise else 0,
        rounds=config.system.rounds,
        adversary=_adversary(config, results),
        statement=worst.statement(),
        accountant=f"zCDP, converted by dp-accounting {version('dp-accounting')}",
        crosscheck_epsilon=gaussian_epsilon(rho, noise.delta) if noise else None,
        parameters=parameters,
        signal_to_noise=min(ratios) if ratios else None,
        randomness="a seeded stream: not private" if config.seeded else "the operating system's",
        not_covered=not_covered(config),
        ledger=tuple(site_ledger(config, results, site) for site in results.federation.sites),
    )


def _adversary(config: Config, results: Results) -> str:
    noise = results.terms.noise_plan
    if noise is None:
        return "nobody: no noise is added"
    promise = PROMISES[config.mode]
    if not hides_from_server(promise):
        return (
            "those who see the aggregates alone; the server and every listener read each "
            f"contribution, and against them only ε = {noise.epsilon_isolated:.3g} holds"
        )
    return (
        f"up to {noise.colluders} client(s) of a group with {promise.adversary}, honest but "
        f"curious, seeing every aggregate of all {noise.rounds} round(s), with up to "
        f"{noise.dropouts} dropout(s) per group and round"
    )


def _baseline(results: Results, arm: str, tests: dict[str, TestPart]) -> Baseline:
    label, note = baselines.LABELS[arm]
    networks = results.arms[arm]
    found = {}
    for hospital, part in tests.items():
        head = head_of(results.system, hospital) if arm == "noise_proxies" else 0
        sites = results.federation.hospitals[hospital]
        names = [site.name for site in sites] if arm == "local_only" else [""]
        found[hospital] = scores([predict(networks[name], part, head) for name in names], part)
    return Baseline(label=label, simulation_only=True, note=note, scores=found)


def _curves(results: Results, hospitals: list[str]) -> tuple[CurvePoint, ...]:
    return tuple(
        CurvePoint(arm=arm, hospital=hospital, round=i + 1, auroc=summary["auroc"][arm][hospital])
        for i, summary in enumerate(results.rounds)
        for arm in ("central", "personalised")
        for hospital in hospitals
    )

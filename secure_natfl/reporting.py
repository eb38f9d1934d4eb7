"""From a run's results to the consortium's report: the figures, and the words that bound them."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from importlib.metadata import version

from protocols.multikey import MultiKeyPreset
from protocols.policy import effective
from protocols.presets import find_preset
from protocols.rlwe import TABLE_128, Preset
from secure_natfl import __version__, baselines
from secure_natfl.config import Config, NoNoise
from secure_natfl.costs import environment, peak_memory, samples, timing, wire
from secure_natfl.evaluation import TestPart, hospital_tests, predict, scores
from secure_natfl.exposure import exposure, uncovered
from secure_natfl.federation import Site
from secure_natfl.holdings import holdings
from secure_natfl.privacy_reporting import privacy
from secure_natfl.report.model import (
    Absence,
    Aggregation,
    Baseline,
    Central,
    Client,
    CurvePoint,
    LossPoint,
    Proxy,
    Report,
)
from secure_natfl.results import Played, Results, head_of
from secure_natfl.systems.natimg_fl import NAME, RECONSTRUCTION


def headline(
    config: Config, results: Played, command: str, system: str = NAME, said: str = RECONSTRUCTION
) -> dict[str, object]:
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
        "system": system,
        "reconstruction": said,
    }


def consortium(config: Config, results: Results, command: str) -> Report:
    """The report that all parties share."""
    tests = hospital_tests(results.federation)
    return Report(
        **headline(config, results, command),
        parts=parts(config),
        aggregation=aggregation(config, results),
        aggregate_sha256=tuple(h for r in results.rounds for h in r["aggregate_sha256"]),
        absent=absences(results),
        privacy=privacy(config, results),
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
        losses=losses(results),
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
        holdings=holdings(config, results.federation),
    )


def client(results: Results, site: Site, tests: dict[str, TestPart]) -> Client:
    """One site's row: what it declares, its privacy loss, its personalised model's scores."""
    epsilon = isolated = float("inf")
    if results.terms.noise_plan is not None:
        spent = results.terms.noise_plan.spending(site.name)
        epsilon, isolated = spent.epsilon, spent.epsilon_isolated
    network, part = results.state.answering[site.name], tests[site.hospital]
    return Client(
        name=site.name,
        hospital=site.hospital,
        group=results.system.group_of(site),
        architecture=site.architecture,
        parameters=results.state.personal[site.name].parameter_count,
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


def parts(config: Config) -> dict[str, bool]:
    """Which parts of NatIMG-FL are on, for a report."""
    options = config.natimg
    return {
        "natural images as auxiliary supervision": options.natural_weight > 0,
        "alignment to public statistics": options.alignment_weight > 0,
        "distillation back to the sites": options.distillation_weight > 0,
        f"fine-grained upward weight β ({options.beta})": options.beta != "uniform",
        f"client weight α ({options.alpha})": options.alpha != "equal",
        f"downward weight w↓ ({options.downward})": options.downward != "off",
        "one head per group of hospitals": options.heads == "group",
        "differential privacy": not isinstance(config.privacy, NoNoise),
        "encryption": config.aggregation.kind != "plain",
    }


def absences(results: Played) -> tuple[Absence, ...]:
    """Who was left out of which round."""
    return tuple(
        Absence(round=i + 1, party=party, why=why)
        for i, summary in enumerate(results.rounds)
        for party, why in summary["absent"].items()
    )


def losses(results: Played) -> tuple[LossPoint, ...]:
    """The training losses of all rounds."""
    return tuple(
        LossPoint(model=model, step=i + 1, loss=loss)
        for i, summary in enumerate(results.rounds)
        for model, loss in summary["losses"].items()
    )


def aggregation(config: Config, results: Played) -> Aggregation:
    """How the contributions were added, and by whose leave they were opened."""
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

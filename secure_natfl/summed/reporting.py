"""From a run of a system that learns from sums to its reports: the consortium's and each site's."""

from __future__ import annotations

from typing import Final

import numpy as np

from protocols.messages import Opening
from secure_natfl.config import Config, NoNoise
from secure_natfl.costs import environment, peak_memory, samples, timing
from secure_natfl.evaluation import hospital_tests, probabilities, scores, site_test
from secure_natfl.exposure import exposure, uncovered
from secure_natfl.federation import Site
from secure_natfl.holdings import holdings
from secure_natfl.methods.plain_models import parameter_count
from secure_natfl.privacy_reporting import budgets, privacy, site_ledger, statement_of
from secure_natfl.report.model import (
    Baseline,
    Central,
    Client,
    CurvePoint,
    MessageTotal,
    Proxy,
    Report,
    Wire,
)
from secure_natfl.report.site_model import SiteCurvePoint, SiteReport
from secure_natfl.reporting import absences, aggregation, headline, losses
from secure_natfl.results import SummedResults
from secure_natfl.site_reporting import class_figures, ledger_lines
from secure_natfl.summed.arms import LABELS
from secure_natfl.summed.evaluation import central_scores, site_scores

_SLOT_BYTES: Final = 57
"""Of one number of a CKKS ciphertext of degree 8192 and moduli [60, 40, 60], as serialised."""


def summed_report(config: Config, results: SummedResults, command: str) -> Report:
    """The report that all parties share."""
    system = results.system
    said = headline(config, results, command, system.name, system.reconstruction)
    private = privacy(config, results)
    numbers = sum(one.layout.size for one in results.schedule.agreed)
    parameters = private.parameters | {"released integers per round": numbers}
    return Report(
        **said,
        parts=system.parts()
        | {
            "differential privacy": not isinstance(config.privacy, NoNoise),
            "encryption": config.aggregation.kind != "plain",
        },
        traits=_traits(results),
        leaves=_leaves(results, numbers),
        aggregation=aggregation(config, results),
        aggregate_sha256=tuple(h for r in results.rounds for h in r["aggregate_sha256"]),
        absent=absences(results),
        privacy=private.model_copy(update={"parameters": parameters}),
        clients=tuple(_client(results, site) for site in results.federation.sites),
        central=_central(config, results),
        baselines={arm: _baseline(results, arm) for arm in results.arms},
        curves=_curves(results),
        losses=losses(results),
        wire=_wire(results, numbers),
        seconds=timing(config, results),
        peak_memory_mib=peak_memory(),
        exposure=exposure(config, results.terms),
        uncovered_releases=uncovered(config),
        environment=environment(),
        proxy=_proxy(results),
        proxy_samples=samples(results) if _asked(results) else (),
        holdings=holdings(config, results.federation),
    )


def summed_site_report(
    config: Config, results: SummedResults, site: Site, command: str
) -> SiteReport:
    """All figures that only this site may see, on its own test part."""
    part, system = site_test(site), results.system
    guarantee = statement_of(config, results, site)
    own = probabilities(system.answering(site), part)
    shared = system.central(site)
    arms = {"central": site_scores(shared, site)} if shared is not None else {}
    arms |= {arm: site_scores(networks[site.name], site) for arm, networks in results.arms.items()}
    masks = site.task.form == "mask"
    return SiteReport(
        **headline(config, results, command, system.name, system.reconstruction),
        client=_client(results, site),
        delta=results.accounts[site.name].spent.delta,
        relation=guarantee.relation,
        statement=guarantee.paragraph(),
        guarantee=guarantee,
        budgets=budgets(results, site),
        arms=arms,
        curve=_site_curve(results, site),
        classes=()
        if masks
        else tuple(
            class_figures(name, own[:, c], part, c) for c, name in enumerate(site.task.classes)
        ),
        ledger=site_ledger(config, results, site),
        ledger_lines=ledger_lines(results, site),
    )


def _client(results: SummedResults, site: Site) -> Client:
    """One site's row: what it declares, its privacy loss, its own model on its own test part."""
    epsilon = isolated = float("inf")
    if results.terms.noise_plan is not None:
        spent = results.terms.noise_plan.spending(site.name)
        epsilon, isolated = spent.epsilon, spent.epsilon_isolated
    network = results.system.answering(site)
    return Client(
        name=site.name,
        hospital=site.hospital,
        group=results.system.group_of(site),
        architecture=site.architecture,
        parameters=parameter_count(network),
        unit=site.unit,
        patients=site.patients,
        train_images=len(site.train),
        test_images=len(site.test),
        one_class=site.one_class,
        alpha=results.terms.alphas[site.name],
        epsilon=epsilon,
        epsilon_isolated=isolated,
        scores=site_scores(network, site),
    )


def _central(config: Config, results: SummedResults) -> Central | None:
    found = central_scores(results.federation, results.system)
    if not found:
        return None
    names = dict.fromkeys(site.architecture for site in results.federation.sites)
    return Central(
        architecture=", ".join(names) or config.models.central,
        heads=tuple(results.terms.groups),
        scores=found,
    )


def _baseline(results: SummedResults, arm: str) -> Baseline:
    label, note = LABELS[arm]
    found = {}
    for hospital, part in hospital_tests(results.federation).items():
        networks = {
            id(network): network
            for site in results.federation.hospitals[hospital]
            for network in [results.arms[arm][site.name]]
        }
        said = [probabilities(network, part) for network in networks.values()]
        found[hospital] = scores(said, part)
    return Baseline(label=label, simulation_only=arm == "pooled", note=note, scores=found)


def _curves(results: SummedResults) -> tuple[CurvePoint, ...]:
    hospitals = results.federation.hospitals
    return tuple(
        CurvePoint(
            arm=arm,
            hospital=hospital,
            round=i + 1,
            auroc=figure,
            dice=summary["dice"][arm][hospital],
        )
        for i, summary in enumerate(results.rounds)
        for arm in ("central", "personalised")
        for hospital, figure in summary["auroc"].get(arm, {}).items()
        if hospital in hospitals
    )


def _site_curve(results: SummedResults, site: Site) -> tuple[SiteCurvePoint, ...]:
    return tuple(
        SiteCurvePoint(
            arm=arm, round=i + 1, auroc=summary["auroc"][f"{arm} at {site.name}"][site.name]
        )
        for i, summary in enumerate(results.rounds)
        for arm in ("central", "personalised")
        if f"{arm} at {site.name}" in summary["auroc"]
    )


def _wire(results: SummedResults, numbers: int) -> Wire:
    """Bytes of one client and round, beside what sending its model would be."""
    sizes = {
        site.architecture: parameter_count(results.system.answering(site))
        for site in results.federation.sites
    }
    opening = results.messages.get(Opening.kind)
    return Wire(
        upload_bytes=max(r["upload_bytes"] for r in results.rounds),
        fp32_bytes=4 * numbers,
        download_bytes=max(r["download_bytes"] for r in results.rounds),
        opening_bytes=opening.largest if opening else 0,
        model_fp32_bytes={name: 4 * count for name, count in sizes.items()},
        slots_model_bytes={name: _SLOT_BYTES * count for name, count in sizes.items()},
        by_message={
            kind: MessageTotal(count=traffic.count, bytes=traffic.bytes)
            for kind, traffic in results.messages.items()
        },
    )


def _leaves(results: SummedResults, numbers: int) -> str:
    names = [one.name for one in results.schedule.agreed]
    asked = _asked(results)
    said = f"{numbers:,}".replace(",", "\u202f") + " numbers computed from its training"
    said += f" ({', '.join(names)})" if names else ""
    return said + (f", on {asked} public images" if asked else "")


def _asked(results: SummedResults) -> int:
    """Public images asked in the first round, over its phases."""
    phases = results.system.phases(0)
    return sum(len(results.system.asked(0, phase.name)) for phase in phases)


def _proxy(results: SummedResults) -> Proxy | None:
    asked = _asked(results)
    if not asked:
        return None
    public = results.federation.natural_records
    return Proxy(
        name=public.name,
        images=len(public),
        asked_per_round=asked,
        classes=len(np.unique(public.labels)),
        overlap_check="no private image is among them, nor a re-encoded or re-exposed copy",
    )


def _traits(results: SummedResults) -> dict[str, int | float | str]:
    """The system's own figures, and how many updates the clip shortened."""
    own: dict[str, int | float | str] = dict(results.system.traits())
    clipped = sum(summary["clipped"] for summary in results.rounds)
    sent = sum(len(summary["cohort"]) for summary in results.rounds) * len(results.schedule.agreed)
    return own | {"vectors that the clip shortened": f"{clipped} of {sent}"}

"""The deployed session's report: the same page as a simulation's, from what the sites shared."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from protocols.accounting import Event, compose
from protocols.audit_events import Charged
from secure_natfl.costs import environment, peak_memory, per_site, samples, timing, wire
from secure_natfl.deploy.server import Coordinator
from secure_natfl.deploy.standing import Standing
from secure_natfl.exposure import exposure, uncovered
from secure_natfl.federation import Site
from secure_natfl.metrics_table import write_metrics
from secure_natfl.privacy_reporting import privacy
from secure_natfl.report.model import Central, Client, CurvePoint, Proxy, Report, Scores
from secure_natfl.report.render import write_report
from secure_natfl.reporting import absences, aggregation, headline, losses, parts
from secure_natfl.results import Results, SiteAccount, State, by_message

COMMAND = "natfl deploy server"


def write_reports(served: Coordinator) -> None:
    """report.json, report.html and metrics.parquet in the run folder; called once, at the end."""
    report = consortium(served)
    write_metrics(report, served.folder.path)
    write_report(report, served.folder.path)


def consortium(served: Coordinator) -> Report:
    """What all parties may see; a site that shares no figures is there without them."""
    config, results = served.agreed.config, _results(served)
    last = served.standings(config.system.rounds - 1)
    proxies = results.federation.natural_records
    return Report(
        **{**headline(config, results, COMMAND), "simulated": False},
        parts=parts(config),
        aggregation=aggregation(config, results),
        aggregate_sha256=tuple(h for r in results.rounds for h in r["aggregate_sha256"]),
        absent=absences(results),
        privacy=privacy(config, results),
        clients=tuple(_clients(results, last)),
        central=Central(
            architecture=config.models.central,
            heads=tuple(results.system.heads),
            scores={site.name: _scores(last, site, "central") for site in results.federation.sites},
        ),
        baselines={},
        curves=_curves(served),
        losses=losses(results),
        wire=wire(config, results),
        seconds=timing(config, results),
        peak_memory_mib=peak_memory(),
        exposure=exposure(config, results.terms),
        uncovered_releases=uncovered(config),
        environment=environment(),
        proxy=Proxy(
            name=proxies.name,
            images=len(proxies),
            asked_per_round=config.proxies.per_round,
            classes=results.federation.task.natural_classes,
            overlap_check="each site compared its own images with these before it took part",
        ),
        proxy_samples=samples(results),
    )


def _results(served: Coordinator) -> Results:
    agreed, enrolment = served.agreed, served.enrolled.enrolment
    rounds = served.learning.summaries()
    for number, summary in enumerate(rounds):
        traffic = per_site(served.transcript.entries.of_round(number), enrolment.clients)
        summary["upload_bytes"] = max(up for up, _ in traffic.values())
        summary["download_bytes"] = max(down for _, down in traffic.values())
        # Seconds of protection at the sites are the sites' own; the server's are not told apart.
        summary["protection"] = {}
        shared = served.standings(number).items()
        summary["losses"] |= {name: one.loss for name, one in shared if one.loss is not None}
    return Results(
        federation=agreed.federation,
        terms=agreed.terms,
        rounds=rounds,
        accounts={site: _account(served, site) for site in enrolment.clients},
        messages=by_message(served.transcript),
        holders=enrolment.holder_order,
        threshold=enrolment.threshold,
        folder=served.folder.path,
        stages=served.stages,
        started=served.started,
        seeds=agreed.seeds,
        system=agreed.system,
        state=State(served.learning.central, {}),
        arms={},
        networks={agreed.config.models.central: served.learning.start},
    )


def _account(served: Coordinator, site: str) -> SiteAccount:
    """What the log has of a site's ledger: this session's charges, and where it stood."""
    charged = [
        body
        for actor, body in served.minutes.records
        if actor == site and isinstance(body, Charged)
    ]
    events = [Event.from_line(json.loads(body.cost)) for body in charged]
    delta = getattr(served.agreed.config.privacy, "delta", 1e-5)
    session = served.enrolled.session
    return SiteAccount(
        lines=tuple(
            ({"event": event.line()}, body.head)
            for event, body in zip(events, charged, strict=True)
        ),
        session=session,
        spent=compose(events, delta),
        head=charged[-1].head if charged else "0" * 64,
        budgets=(),
    )


def _clients(results: Results, last: Mapping[str, Standing]) -> Iterator[Client]:
    plan = results.terms.noise_plan
    for site in results.federation.sites:
        told = last.get(site.name, Standing(parameters=0))
        spent = plan.spending(site.name) if plan else None
        yield Client(
            name=site.name,
            hospital=site.hospital,
            group=results.system.group_of(site),
            architecture=site.architecture,
            parameters=told.parameters,
            unit=site.unit,
            patients=site.patients,
            train_images=told.train_images,
            test_images=told.test_images,
            one_class=told.one_class,
            alpha=results.terms.alphas[site.name],
            epsilon=spent.epsilon if spent else float("inf"),
            epsilon_isolated=spent.epsilon_isolated if spent else float("inf"),
            scores=_scores(last, site, "personalised"),
        )


def _scores(last: Mapping[str, Standing], site: Site, arm: str) -> Scores:
    told = last[site.name].scores if site.name in last else {}
    nothing = Scores(auroc=None, auprc=None, balanced_accuracy=None, ece=None, n=0, unit=site.unit)
    return told.get(arm, nothing)


def _curves(served: Coordinator) -> tuple[CurvePoint, ...]:
    return tuple(
        CurvePoint(arm=arm, hospital=name, round=number + 1, auroc=one.auroc[arm])
        for number in range(served.agreed.config.system.rounds)
        for name, one in served.standings(number).items()
        for arm in ("central", "personalised")
        if arm in one.auroc
    )

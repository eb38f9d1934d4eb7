"""From a run's results to each site's own report, which stays at the site."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.calibration import calibration_curve
from sklearn.metrics import roc_curve

from protocols.accounting import Event, compose
from secure_natfl.config import Config
from secure_natfl.evaluation import TestPart, predict, scores, site_test
from secure_natfl.federation import Site
from secure_natfl.privacy_reporting import budgets, site_ledger, statement_of
from secure_natfl.report.model import Scores
from secure_natfl.report.site_model import (
    ClassFigures,
    LedgerLine,
    ReliabilityBin,
    SiteCurvePoint,
    SiteReport,
)
from secure_natfl.reporting import client, headline
from secure_natfl.results import Played, Results, head_of

_BINS = 10


def site_report(config: Config, results: Results, site: Site, command: str) -> SiteReport:
    """All figures that only this site may see, on its own test part."""
    part = site_test(site)
    guarantee = statement_of(config, results, site)
    own = predict(results.state.answering[site.name], part)
    return SiteReport(
        **headline(config, results, command),
        client=client(results, site, {site.hospital: part}),
        delta=results.accounts[site.name].spent.delta,
        relation=guarantee.relation,
        statement=guarantee.paragraph(),
        guarantee=guarantee,
        budgets=budgets(results, site),
        arms=_arms(results, site, part),
        curve=tuple(
            SiteCurvePoint(
                arm=arm, round=i + 1, auroc=summary["auroc"][f"{arm} at {site.name}"][site.name]
            )
            for i, summary in enumerate(results.rounds)
            for arm in ("central", "personalised")
        ),
        classes=tuple(
            class_figures(name, own[:, c], part, c)
            for c, name in enumerate(results.federation.task.classes)
        ),
        ledger=site_ledger(config, results, site),
        ledger_lines=ledger_lines(results, site),
    )


def _arms(results: Results, site: Site, part: TestPart) -> dict[str, Scores]:
    head = head_of(results.system, site.hospital)
    found = {"central": scores([predict(results.state.central, part, head)], part)}
    for arm, networks in results.arms.items():
        network = networks.get(site.name) or networks[""]
        at = head if arm == "noise_proxies" else 0
        found[arm] = scores([predict(network, part, at)], part)
    return found


def class_figures(name: str, p: NDArray[np.float64], part: TestPart, c: int) -> ClassFigures:
    """One class on a test part, from its probabilities p [n]."""
    known = part.truth.known[:, c] > 0
    truth, p = part.truth.targets[known, c] > 0, p[known]
    called = p >= 0.5
    roc: tuple[tuple[float, float], ...] = ()
    if truth.any() and not truth.all():
        false_rate, true_rate, _ = roc_curve(truth, p)
        roc = tuple((float(f), float(t)) for f, t in zip(false_rate, true_rate, strict=True))
    return ClassFigures(
        class_name=name,
        roc=roc,
        true_positive=int((called & truth).sum()),
        false_positive=int((called & ~truth).sum()),
        true_negative=int((~called & ~truth).sum()),
        false_negative=int((~called & truth).sum()),
        reliability=_reliability(truth, p),
    )


def _reliability(truth: NDArray[np.bool_], p: NDArray[np.float64]) -> tuple[ReliabilityBin, ...]:
    if not len(p):
        return ()
    observed, predicted = calibration_curve(truth, p, n_bins=_BINS)
    inner = np.linspace(0, 1, _BINS + 1)[1:-1]
    counts = np.bincount(np.searchsorted(inner, p))
    return tuple(
        ReliabilityBin(predicted=float(x), observed=float(y), n=int(n))
        for x, y, n in zip(predicted, observed, counts[counts > 0], strict=True)
    )


def ledger_lines(results: Played, site: Site) -> tuple[LedgerLine, ...]:
    """Every charge of a site's ledger, in order."""
    account = results.accounts[site.name]
    events: list[Event] = []
    lines = []
    for line, hash_ in account.lines:
        events.append(Event.from_line(line["event"]))
        lines.append(
            LedgerLine(
                session=line["session"],
                round=line["round"],
                mechanism=line["event"]["mechanism"],
                rho=events[-1].rho,
                cost=_cost(events[-1]),
                spent_epsilon=compose(events, account.spent.delta).epsilon,
                sha256=hash_,
            )
        )
    return tuple(lines)


def _cost(event: Event) -> str:
    """What a charge paid for, in words."""
    if event.steps:
        return (
            f"{event.steps} steps, rate {event.rate:g}, noise multiplier "
            f"{event.noise_multiplier:.4g}"
        )
    if event.mechanism == "post-processing":
        return "nothing: computed from a training that was paid for"
    return "no noise" if event.rho == float("inf") else f"ρ = {event.rho:.4g}"

"""Ledgers against rounds, ε recomputed from events, and parameters against their tables."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from functools import partial

from protocols.accounting import REPLACE_ONE, Event, Spent, compose
from protocols.audit_events import Charged
from protocols.chain import verify
from protocols.ledger import Ledger
from protocols.ledger_heads import Head, check_heads, parse_kept
from protocols.multikey import MultiKeyPreset
from protocols.policy import Enrolment
from protocols.presets import find_preset
from protocols.rlwe import TABLE_128, Preset
from secure_natfl.audit.findings import Findings, demand
from secure_natfl.audit.reading import RunFiles, Story
from secure_natfl.config import NoNoise
from secure_natfl.report.model import Epsilon, Report

_TOLERANCE = 1e-6
FREE = "post-processing"
_HEADS = "heads.jsonl"


@dataclass(frozen=True)
class Spending:
    """What one site's ledger shows: this session's events, and what they add up to.

    head: the ledger's hash at the end; lines: of all sessions.
    """

    events: tuple[Event, ...]
    spent: Spent
    lines: int
    head: str


def check_privacy(
    files: RunFiles, enrolment: Enrolment, story: Story, findings: Findings
) -> dict[str, Spending]:
    """All checks on what was spent; per site, what its ledger shows."""
    found: dict[str, Spending] = {}
    for site in enrolment.clients:
        findings.check(f"ledger.{site}", partial(_ledger, files, story, site, found))
    findings.check("privacy.epsilon", lambda: _epsilon(files, found))
    findings.check("privacy.parameters", lambda: _parameters(files, found))
    findings.check("crypto.security", lambda: _security(enrolment, files.report()))
    return found


def _ledger(files: RunFiles, story: Story, site: str, found: dict[str, Spending]) -> str:
    """A line for every round with this site in its sums, and each one as the log has it.

    A site that dropped out after it was charged stays charged.
    """
    report, session = files.report(), story.session.session
    delta = getattr(files.config.privacy, "delta", 1e-5)
    charges = {body.round: body for actor, body in story.charged() if actor == site}
    demand(bool(charges), "the log has no charge of this site", where=site)
    patients = next(iter(charges.values())).patients
    with files.ledger(site, patients, report.privacy.relation, delta) as ledger:
        ledger.verify()
        lines = [line for line in ledger.lines() if line["session"] == session]
        rounds = {line["round"] for line in lines}
        demand(
            len(lines) == len(rounds) and rounds == set(charges),
            f"the ledger charges rounds {sorted(rounds)}, the log {sorted(charges)}",
            where=site,
        )
        for number, body in story.opened().items():
            free = any(site in one.participants for one in body.sums) and number not in rounds
            demand(not free, f"round {number} was opened and never charged", where=site)
        for line in lines:
            same = Event.from_line(line["event"]) == _event(charges[line["round"]])
            demand(same, f"round {line['round']} cost another figure than was logged", where=site)
        kept = _heads(files, story, ledger, site, charges)
        events = tuple(Event.from_line(line["event"]) for line in lines)
        spent = compose(events, delta)
        found[site] = Spending(events, spent, len(ledger.lines()), ledger.head)
    return f"{len(lines)} charges, one per round; {kept} signed or kept heads agree"


def _event(charge: Charged) -> Event:
    return Event.from_line(json.loads(charge.cost))


def _heads(
    files: RunFiles, story: Story, ledger: Ledger, site: str, charges: dict[int, Charged]
) -> int:
    """The site's own signed heads in the log, and the copies that other sites kept."""
    keys, chain = story.keys.clients, ledger.chained()
    for charge in charges.values():
        head = Head(
            site=site,
            patients=charge.patients,
            seq=charge.seq,
            hash=charge.head,
            signature=charge.signature,
        )
        verify(keys[site], head.said(), bytes.fromhex(head.signature))
        demand(head.seq <= len(chain), "the ledger was rolled back", where=site)
        demand(chain[head.seq - 1] == head.hash, "the ledger was forked", where=site)
    count = len(charges)
    for keeper in keys.keys() - {site}:
        path = files.sites / keeper / _HEADS
        kept = [parse_kept(line) for line in path.read_bytes().splitlines()]
        mine = [one for one in kept if one.head.site == site]
        count += check_heads(ledger, mine, keys[site], {keeper: keys[keeper]})
    return count


def _epsilon(files: RunFiles, found: dict[str, Spending]) -> str:
    """The figures of the report are those that the ledgers' events give."""
    report = files.report()
    demand(set(found) == {one.name for one in report.clients}, "a site's ledger was not read")
    for client in report.clients:
        spent = found[client.name].spent
        for stated, again in (
            (client.epsilon, spent.epsilon),
            (client.epsilon_isolated, spent.epsilon_isolated),
        ):
            all_rounds = found[client.name].spent.charges == files.config.openings
            demand(
                _same(stated, again) if all_rounds else _covers(stated, again),
                f"the report says ε = {stated}, the ledger's events give {again:.9g}",
                where=client.name,
            )
    worst = max(one.spent.epsilon for one in found.values())
    demand(_covers(report.privacy.epsilon, worst), "the report's ε is below the worst site's")
    limit = math.inf if isinstance(files.config.privacy, NoNoise) else files.config.privacy.epsilon
    demand(worst <= limit * (1 + 1e-9), f"ε = {worst:.6g} is above the configured {limit:g}")
    budget = files.config.ledger.budget_epsilon
    demand(budget == "none" or worst <= budget, f"ε = {worst:.6g} is above the budget of {budget}")
    accountants = {one.spent.accountant for one in found.values()}
    return f"ε = {worst:.6g} for the worst site, from events by {', '.join(sorted(accountants))}"


def _same(stated: Epsilon, again: float) -> bool:
    if stated == "inf":
        return again == math.inf
    return abs(float(stated) - again) <= _TOLERANCE * max(1.0, again)


def _covers(stated: Epsilon, again: float) -> bool:
    """Whether a stated figure is no lower: who missed rounds spent less than planned."""
    return stated == "inf" or again <= float(stated) + _TOLERANCE


def _parameters(files: RunFiles, found: dict[str, Spending]) -> str:
    """What the worst site was charged is what its stated noise and clip cost."""
    report = files.report()
    guarantee = report.privacy.guarantee
    if guarantee is None or guarantee.mechanism == "none":
        demand(report.privacy.epsilon == "inf", "no mechanism, and yet a finite ε")
        return "no noise was added, and none is claimed: ε = ∞"
    stated = guarantee.parameters
    worst = max(found.values(), key=lambda one: one.spent.epsilon)
    for event in worst.events:
        if event.mechanism == FREE and not event.rho_isolated:
            demand(stated.get("steps") is not None, "something was sent free of any training")
            continue
        if event.steps:
            charged = (event.steps, event.rate, event.noise_multiplier)
            declared = tuple(stated[name] for name in ("steps", "rate", "noise_multiplier"))
            demand(charged == declared, f"charged {charged}, declared {declared}")
            continue
        # Replacing moves a clipped sum by twice the clip, adding or removing by the clip.
        moves = 2 if event.relation == REPLACE_ONE else 1
        sensitivity = moves * float(stated["clip_int"])
        alone = sensitivity**2 / (2 * float(stated["sigma_share"]) ** 2)
        rho = alone / float(stated["honest"])
        demand(
            math.isclose(event.rho, rho, rel_tol=1e-9)
            and math.isclose(event.rho_isolated, alone, rel_tol=1e-9),
            f"charged ρ = {event.rho:.9g}, the stated clip and noise cost {rho:.9g}",
        )
    return f"{guarantee.mechanism}: the charges are those of the stated noise and clip"


def _security(enrolment: Enrolment, report: Report) -> str:
    """Modulus and degree against the 128-bit table, and the report against both."""
    ring = find_preset(enrolment.preset)
    if enrolment.mode == "plain/none":
        return "no encryption, and none is claimed"
    moduli = moduli_of(ring)
    bits = math.prod(moduli).bit_length()
    limit = TABLE_128.get(ring.degree, 0)
    demand(bits <= limit, f"{bits} modulus bits at degree {ring.degree}, 128 bits allow {limit}")
    stated = report.aggregation
    same = (stated.preset, stated.poly_modulus_degree, stated.scale) == (
        ring.name,
        ring.degree,
        ring.scale,
    )
    demand(same, "the report names other parameters than the enrolment")
    return f"{ring.name}: {bits} modulus bits at degree {ring.degree}, 128-bit limit {limit}"


def moduli_of(ring: object) -> tuple[int, ...]:
    """The primes of a preset, the special one included."""
    if isinstance(ring, Preset):
        return (ring.prime, ring.special)
    return ring.primes if isinstance(ring, MultiKeyPreset) else tuple(getattr(ring, "primes", ()))


def by_round(story: Story) -> dict[int, dict[str, Event]]:
    """Round → site → what it was charged, as the log has it."""
    found: dict[int, dict[str, Event]] = defaultdict(dict)
    for site, charge in story.charged():
        found[charge.round][site] = _event(charge)
    return found

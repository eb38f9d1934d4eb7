"""The evidence's larger groups: privacy, encryption, rounds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from importlib.metadata import version

from protocols.audit_events import PlannedGroup
from protocols.messages import Mode
from protocols.multikey import MultiKeyPreset
from protocols.policy import Enrolment, effective
from protocols.presets import find_preset
from protocols.promises import PROMISES
from protocols.rlwe import TABLE_128
from secure_natfl.audit import evidence_parts as model
from secure_natfl.audit.check_privacy import Spending, moduli_of
from secure_natfl.audit.reading import RunFiles, Story
from secure_natfl.audit.said import ASSUMPTIONS
from secure_natfl.audit.statements import Operator
from secure_natfl.report.model import Report


def privacy_evidence(
    files: RunFiles, report: Report, spending: dict[str, Spending]
) -> model.PrivacyEvidence:
    """Groups 6 to 10, ε as the ledgers' events give it."""
    stated, guarantee = report.privacy, report.privacy.guarantee
    worst = max(spending.values(), key=lambda one: one.spent.epsilon).spent
    return model.PrivacyEvidence(
        unit=model.Unit(
            kind=stated.unit,
            contribution_bound=getattr(files.config.privacy, "max_images_per_patient", None),
            neighbouring=stated.relation,
        ),
        mechanisms=(
            model.MechanismFacts(
                id=stated.mechanism,
                parameters=dict(guarantee.parameters) if guarantee else {},
                noise_location=_noise_location(stated.mechanism),
                sampling=guarantee.sampling if guarantee else "none",
                randomness=stated.randomness,
            ),
        ),
        accounting=model.Accounting(
            native="zCDP" if worst.accountant == "zCDP" else "privacy loss distribution",
            accountant=worst.accountant,
            accountant_version=f"dp-accounting {version('dp-accounting')}",
            delta=worst.delta,
            delta_total=worst.delta_total,
            epsilon=worst.epsilon,
            epsilon_reported=stated.epsilon,
            epsilon_isolated=max(one.spent.epsilon_isolated for one in spending.values()),
            cross_check=stated.crosscheck_epsilon,
            by_client=tuple(
                model.SiteSpending(
                    client=name,
                    charges=one.spent.charges,
                    rho=one.spent.rho,
                    epsilon=one.spent.epsilon,
                    epsilon_isolated=one.spent.epsilon_isolated,
                    lines=one.lines,
                    head=one.head,
                )
                for name, one in spending.items()
            ),
            colluders=stated.t,
            dropouts=stated.d,
            hyperparameter_search="not charged: the choice of hyper-parameters is not covered",
        ),
        non_dp_releases=tuple(
            model.NonPrivateRelease(what=one.what, why=one.why, recipient=one.seen_by)
            for one in report.uncovered_releases
        ),
        trust_model=model.TrustModel(
            model="distributed: each site adds its own share of the noise before it encrypts",
            adversary=stated.adversary,
            assumptions=ASSUMPTIONS,
        ),
        not_covered=stated.not_covered,
    )


def _noise_location(mechanism: str) -> str:
    return {
        "none": "none",
        "dp-sgd": "at the client, in training",
    }.get(mechanism, "at the client, before encryption")


def crypto_evidence(
    enrolment: Enrolment, report: Report, operator: Operator, story: Story
) -> model.Crypto:
    """Groups 11 and 12."""
    ring, mode = find_preset(enrolment.preset), enrolment.mode
    encrypted = mode != "plain/none"
    own = isinstance(ring, MultiKeyPreset)
    return model.Crypto(
        he=model.Encryption(
            scheme=_scheme(mode),
            mode=mode,
            library=report.aggregation.implementation or "none",
            preset=ring.name,
            degree=ring.degree if encrypted else None,
            modulus_bits=math.prod(moduli_of(ring)).bit_length() if encrypted else None,
            limit_128=TABLE_128[ring.degree] if encrypted else None,
            scale=ring.scale if encrypted else None,
            secret=("uniform, used once" if own else "ternary") if encrypted else "none",
            exact="approximate: what is read gives the key away"
            if mode == "slots/shared"
            else "every sum is exact, whatever the randomness",
            key_lifetime=PROMISES[mode].keys,
            holders=enrolment.holder_order,
            threshold=enrolment.threshold,
            malicious=enrolment.malicious,
            sums_opened=sum(len(body.sums) for body in story.opened().values()),
        ),
        transport=operator.transport,
        signatures=model.Signatures(
            algorithm="Ed25519 (RFC 8032)",
            hash="SHA-256 (FIPS 180-4)",
            library=f"cryptography {version('cryptography')}",
        ),
    )


def _scheme(mode: Mode) -> str:
    if mode == "plain/none":
        return "none"
    if mode == "slots/shared":
        return "CKKS in slots, one key for all"
    return "exact integers in CKKS coefficients (additive ring-LWE)"


def rounds_evidence(story: Story) -> Iterator[model.RoundEvidence]:
    """Group 13, as the log has it."""
    planned, learned = story.planned(), story.learned()
    moments = {(r.body.event, getattr(r.body, "round", -1)): r.utc for r in story.records}
    costs: dict[int, dict[str, str]] = {}
    for site, charge in story.charged():
        costs.setdefault(charge.round, {})[site] = charge.cost
    for number, body in sorted(story.opened().items()):
        plan = planned[number]
        groups = {group.name: group for group in plan.groups}
        yield model.RoundEvidence(
            round=number,
            planned_utc=moments["round-planned", number],
            opened_utc=moments["round-opened", number],
            proxies=plan.proxies,
            sums=tuple(
                model.SumEvidence(
                    group=one.group,
                    invited=groups[one.group].participants,
                    included=one.participants,
                    alphas=groups[one.group].alphas,
                    effective=effective(_weights(groups[one.group], one.participants)),
                    attempt=one.attempt,
                    aggregate=one.sha256,
                )
                for one in body.sums
            ),
            absent=body.absent,
            costs=costs.get(number, {}),
            model=learned[number].model,
            transcript_entries=body.transcript_entries,
            transcript_head=body.transcript_head,
        )


def _weights(group: PlannedGroup, names: tuple[str, ...]) -> list[int]:
    weights = dict(zip(group.participants, group.alphas, strict=True))
    return [weights[name] for name in names]

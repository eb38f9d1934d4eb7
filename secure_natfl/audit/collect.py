"""From a run's verified files to its evidence; every figure comes from them and nowhere else."""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import resources
from importlib.metadata import version
from pathlib import Path

from protocols.audit_events import Refused, Torn
from protocols.audit_log import Log
from protocols.chain import digest
from protocols.checkpoints import read_checkpoints
from protocols.policy import Enrolment
from protocols.promises import PROMISES
from secure_natfl import __version__
from secure_natfl.audit import evidence as model
from secure_natfl.audit.attack_table import TABLE
from secure_natfl.audit.check_privacy import Spending
from secure_natfl.audit.clauses import clause_rows, missing
from secure_natfl.audit.collect_parts import crypto_evidence, privacy_evidence, rounds_evidence
from secure_natfl.audit.findings import Findings
from secure_natfl.audit.reading import RunFiles, Story
from secure_natfl.audit.said import NOT_CLAIMED, limits, unverifiable
from secure_natfl.audit.statements import Operator, SiteFacts
from secure_natfl.audit.trail import CHECKPOINTS, ENROLMENT, LOG
from secure_natfl.report import words
from secure_natfl.report.model import Report

_LIBRARIES = ("torch", "tenseal", "cryptography", "dp-accounting", "numpy", "opacus", "rfc8785")
_FILES = (LOG, CHECKPOINTS, ENROLMENT, "config.toml", "run.json", "report.json", "metrics.parquet")


def collect(
    files: RunFiles,
    log: Log,
    story: Story,
    spending: dict[str, Spending],
    findings: Findings,
    attacks: tuple[tuple[model.AttackRow, ...], str],
    operator: Operator,
) -> model.Evidence:
    """The evidence of a run whose files could be read, whatever the checks found."""
    report, enrolment = files.report(), files.enrolment()
    rows, said = attacks
    whole = model.Evidence(
        study_id=operator.study.id,
        run_id=enrolment.session,
        run_name=report.name,
        created_utc=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        simulated=report.simulated,
        seeded=report.seeded,
        verdict="broken" if findings.broken else "holds",
        summary=_summary(report, findings),
        checks=tuple(
            model.Check(check=one.check, outcome=one.outcome, said=one.said)
            for one in findings.found
        ),
        tool=_tool(),
        study=operator.study,
        participants=tuple(
            model.Participant(
                client=name,
                public_key=key,
                enrolled_utc=story.records[0].utc,
                organisation=_facts(operator, name).organisation,
            )
            for name, key in enrolment.clients.items()
        ),
        data_governance=tuple(_governance(files, report, operator)),
        proxy_set=model.ProxySet(
            name=report.proxy.name if report.proxy else "none",
            digest=enrolment.proxies,
            images=report.proxy.images if report.proxy else 0,
            asked_per_round=report.proxy.asked_per_round if report.proxy else 0,
            overlap_check=report.proxy.overlap_check
            if report.proxy
            else "no public image is asked",
        ),
        privacy=privacy_evidence(files, report, spending),
        crypto=crypto_evidence(enrolment, report, operator, story),
        rounds=tuple(rounds_evidence(story)),
        attacks=rows,
        attacks_said=said,
        memorisation=_memorisation(report),
        identifiability=operator.identifiability,
        utility=_utility(report),
        robustness=_robustness(enrolment),
        incidents=operator.incidents,
        log=_log(files, log, story, operator),
        retention=operator.retention,
        keys_lifecycle=tuple(_keys(enrolment, story)),
        consent_policy=_consent(files, enrolment),
        supply_chain=operator.supply_chain,
        limits=limits(report),
        not_claimed=NOT_CLAIMED,
        unverifiable=unverifiable(enrolment.mode, report),
        missing=(),
        clauses=(),
        files={
            str(name): digest((files.path / name).read_bytes())
            for name in (*_FILES, TABLE)
            if (files.path / name).exists()
        },
    )
    whole = whole.model_copy(update={"missing": missing(whole)})
    return whole.model_copy(update={"clauses": clause_rows(whole)})


def _summary(report: Report, findings: Findings) -> tuple[str, ...]:
    """What a person reads first."""
    held = sum(one.outcome == "holds" for one in findings.found)
    skipped = sum(one.outcome == "unchecked" for one in findings.found)
    if findings.broken:
        first = f"{len(findings.broken)} of {len(findings.found)} checks are broken."
    else:
        first = f"No check is broken: {held} hold, {skipped} could not be made."
    warnings = words.why_not_private(report, report.privacy.epsilon)
    said = (first, words.what_left(report), words.what_epsilon(report))
    return (*said, *(f"NOT PRIVATE: {reason}." for reason in warnings))


def _tool() -> model.Tool:
    return model.Tool(
        name="secure_natfl",
        version=__version__,
        code=_code(),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        libraries={name: version(name) for name in _LIBRARIES},
    )


def _code() -> str:
    """A digest over all installed sources, by path."""
    found = hashlib.sha256()
    for package in ("protocols", "attacks", "secure_natfl"):
        root = Path(str(resources.files(package)))
        for file in sorted(root.rglob("*.py")):
            found.update(f"{package}/{file.relative_to(root).as_posix()}\n".encode())
            found.update(hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()


def _facts(operator: Operator, site: str) -> SiteFacts:
    return operator.sites.get(site, SiteFacts())


def _governance(
    files: RunFiles, report: Report, operator: Operator
) -> Iterator[model.DataGovernance]:
    most = getattr(files.config.privacy, "max_images_per_patient", None)
    for client in report.clients:
        facts = _facts(operator, client.name)
        yield model.DataGovernance(
            client=client.name,
            hospital=client.hospital,
            unit=client.unit,
            units=client.patients,
            training_images=client.train_images,
            one_class=client.one_class,
            max_images_per_unit=most,
            split_seed=files.config.data.split_seed,
            unit_disjoint_splits=True,
            deidentification=facts.deidentification,
            licence=facts.licence,
        )


def _memorisation(report: Report) -> model.Memorisation:
    images = sum(client.train_images for client in report.clients)
    return model.Memorisation(
        training_images=images,
        smallest_images_per_parameter=min(
            client.train_images / client.parameters for client in report.clients
        ),
    )


def _utility(report: Report) -> model.Utility:
    local = report.baselines.get("local_only")
    return model.Utility(
        central=tuple(
            model.Score(
                hospital=name,
                auroc=scores.auroc,
                local_only=local.scores[name].auroc if local and name in local.scores else None,
            )
            for name, scores in (report.central.scores if report.central else {}).items()
        ),
        simulation_only=report.simulated,
    )


def _robustness(enrolment: Enrolment) -> model.Robustness:
    promise = PROMISES[enrolment.mode]
    return model.Robustness(
        dropouts=promise.dropouts,
        rule_breakers=promise.malicious,
        fewest_participants=enrolment.floors.participants,
        fewest_effective=enrolment.floors.effective,
        poisoning="a client can bias the sum as far as clip and weight allow; nothing detects it",
    )


def _log(files: RunFiles, log: Log, story: Story, operator: Operator) -> model.LogEvidence:
    found = read_checkpoints(files.path / CHECKPOINTS)
    last = max(found, key=lambda one: one.checkpoint.size, default=None)
    bodies = [record.body for record in story.records]
    return model.LogEvidence(
        sha256=digest((files.path / LOG).read_bytes()),
        entries=len(log.lines),
        head=log.head,
        root=log.tree.root().hex(),
        checkpoints=len(found),
        cosigners=tuple(one.client for one in last.cosignatures) if last else (),
        torn_lines=sum(isinstance(body, Torn) for body in bodies),
        refusals=sum(isinstance(body, Refused) for body in bodies),
        clock=operator.clock,
    )


def _keys(enrolment: Enrolment, story: Story) -> Iterator[model.KeyLife]:
    owners = {"server": enrolment.server, **enrolment.holders, **enrolment.clients}
    for owner, key in owners.items():
        yield model.KeyLife(
            owner=owner,
            public_key=key,
            created=f"before {story.records[0].utc}",
            destroyed="signing keys stay with their owner; encryption keys end with each attempt",
        )


def _consent(files: RunFiles, enrolment: Enrolment) -> model.Consent:
    budget = files.config.ledger.budget_epsilon
    return model.Consent(
        max_epsilon=getattr(files.config.privacy, "epsilon", math.inf),
        max_rounds=files.config.openings,
        budget_epsilon=math.inf if budget == "none" else budget,
        min_participants=enrolment.floors.participants,
        min_effective=enrolment.floors.effective,
        proxies=enrolment.proxies,
        terms=enrolment.terms,
    )

"""`natfl verify`: the evidence folder against itself, without the run.

The stand-alone verifier beside the evidence makes the same checks in other code
(`secure_natfl.audit.standalone`); both end in the same exit code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from protocols.accounting import Event, compose
from protocols.audit_log import read_log
from protocols.chain import digest
from protocols.checkpoints import read_checkpoints
from protocols.errors import ConfigError
from protocols.policy import Enrolment
from secure_natfl.audit.check_log import covered
from secure_natfl.audit.clauses import bool_of, resolve, status_of
from secure_natfl.audit.collect_parts import rounds_evidence
from secure_natfl.audit.envelope import open_statement
from secure_natfl.audit.evidence import SCHEMA_VERSION, Evidence
from secure_natfl.audit.findings import Findings, demand
from secure_natfl.audit.reading import Story
from secure_natfl.audit.trail import CHECKPOINTS, ENROLMENT, LOG, digest_of

FOLDER: Final = "evidence"
EVIDENCE: Final = "evidence.json"
SCHEMA: Final = "evidence.schema.json"
PAGE: Final = "evidence.html"
ENVELOPE: Final = "evidence.dsse.json"
VERIFIER: Final = "verify_evidence.py"
SUBJECTS: Final = (EVIDENCE, SCHEMA, PAGE, LOG, CHECKPOINTS, ENROLMENT, VERIFIER)
_TOLERANCE: Final = 1e-6


@dataclass(frozen=True)
class Verified:
    """What was found, and the key (hex) that signed; empty where no signature could be read."""

    findings: Findings
    auditor: str


def verify_evidence(path: Path, key: str | None = None) -> Verified:
    """Check an evidence folder, or the one inside a run folder.

    key: the auditor's public key in hexadecimal, if the reader has it from elsewhere. ConfigError
    where `path` holds no evidence, or evidence of a version that this one does not read.
    """
    folder = path if (path / ENVELOPE).exists() else path / FOLDER
    if not folder.is_dir() or not ({ENVELOPE, EVIDENCE} & {f.name for f in folder.iterdir()}):
        raise ConfigError("there is no evidence", where=str(path), fix="make it with natfl audit")
    findings, statement = Findings(), dict[str, Any]()
    pinned = _key(key)
    findings.check("envelope.signature", lambda: _envelope(folder, pinned, statement))
    findings.check("envelope.files", lambda: _subjects(folder, statement))
    if not findings.broken:
        _inside(folder, statement, findings)
    return Verified(findings, str(statement.get("predicate", {}).get("auditor", "")))


def _key(text: str | None) -> bytes | None:
    try:
        key = bytes.fromhex(text) if text else None
    except ValueError:
        key = b""
    if key is not None and len(key) != 32:
        raise ConfigError("an auditor's key has 64 hexadecimal digits", where="--key")
    return key


def _envelope(folder: Path, pinned: bytes | None, statement: dict[str, Any]) -> str:
    statement.update(open_statement((folder / ENVELOPE).read_bytes(), pinned))
    return "signed with " + ("the key given" if pinned else "the key that it names")


def _subjects(folder: Path, statement: Mapping[str, Any]) -> str:
    stated = {one["name"]: one["digest"]["sha256"] for one in statement["subject"]}
    demand(set(stated) == set(SUBJECTS), "the envelope is about other files")
    for name, expected in stated.items():
        found = digest((folder / name).read_bytes())
        demand(found == expected, "the file is not the one that was signed", where=name)
    return f"{len(stated)} files are those that were signed"


def _inside(folder: Path, statement: Mapping[str, Any], findings: Findings) -> None:
    """Whether the signed evidence follows from the log beside it."""
    data = (folder / EVIDENCE).read_bytes()
    document = json.loads(data)
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"evidence of schema {version}, this version reads {SCHEMA_VERSION}",
            where=str(folder / EVIDENCE),
            fix="verify it with the version that wrote it, or the verifier beside it",
        )
    read: dict[str, Any] = {}
    findings.check("evidence.schema", lambda: _parse(data, statement, read))
    if not findings.broken:
        findings.check("evidence.log", lambda: _log(folder, read))
    if findings.broken:
        return
    whole, story = read["evidence"], read["story"]
    findings.check("evidence.rounds", lambda: _rounds(whole, story))
    findings.check("evidence.enrolment", lambda: _enrolment(folder, whole, story))
    findings.check("evidence.epsilon", lambda: _epsilon(whole))
    findings.check("evidence.clauses", lambda: _clauses(whole))
    findings.check("evidence.verdict", lambda: _verdict(whole))


def _parse(data: bytes, statement: Mapping[str, Any], read: dict[str, Any]) -> str:
    read["evidence"] = whole = Evidence.model_validate_json(data)
    stated = {k: v for k, v in statement["predicate"].items() if k != "auditor"}
    demand(stated == predicate_of(whole), "the envelope says something else than the evidence")
    return f"run {whole.run_id}, schema {whole.schema_version}"


def predicate_of(whole: Evidence) -> dict[str, str]:
    """What the envelope itself says of the evidence."""
    return {"run": whole.run_id, "schema": whole.schema_version, "verdict": whole.verdict}


def _log(folder: Path, read: dict[str, Any]) -> str:
    whole: Evidence = read["evidence"]
    data = (folder / LOG).read_bytes()
    log = read_log(data, LOG)
    read["story"] = story = Story(tuple(log.records()))
    said = covered(log, story, read_checkpoints(folder / CHECKPOINTS))
    stated = (whole.log.entries, whole.log.head, whole.log.root)
    found = (len(log.lines), log.head, log.tree.root().hex())
    demand(stated == found, "the evidence states another log")
    return f"{len(log.lines)} records; {said}"


def _rounds(whole: Evidence, story: Story) -> str:
    demand(whole.rounds == tuple(rounds_evidence(story)), "rounds differ from the log's")
    for one in whole.privacy.accounting.by_client:
        charges = sum(one.client in found.costs for found in whole.rounds)
        demand(charges == one.charges, "charges differ from the log's", where=one.client)
        heads = [charge.head for site, charge in story.charged() if site == one.client]
        demand(one.lines > 0 and bool(heads), "no signed ledger head", where=one.client)
    return f"{len(whole.rounds)} rounds are the log's"


def _enrolment(folder: Path, whole: Evidence, story: Story) -> str:
    enrolment = Enrolment.model_validate_json((folder / ENROLMENT).read_bytes())
    session = story.session
    demand(digest_of(enrolment) == session.enrolment, "the enrolment is not the log's")
    keys = {one.client: one.public_key for one in whole.participants}
    demand(keys == session.clients, "participants' keys are not those enrolled")
    flags = (whole.run_id, whole.simulated, whole.seeded)
    demand(flags == (session.session, session.simulated, session.seeded), "another session")
    return f"{len(keys)} participants under the enrolled keys"


def _epsilon(whole: Evidence) -> str:
    """ε of every site from the costs in the rounds, by the accountant."""
    accounting = whole.privacy.accounting
    worst = 0.0
    for one in accounting.by_client:
        costs = [found.costs[one.client] for found in whole.rounds if one.client in found.costs]
        spent = compose((Event.from_line(json.loads(cost)) for cost in costs), accounting.delta)
        for stated, again in (
            (one.epsilon, spent.epsilon),
            (one.epsilon_isolated, spent.epsilon_isolated),
        ):
            demand(_same(stated, again), f"ε = {stated}, recomputed {again}", where=one.client)
        worst = max(worst, spent.epsilon)
    demand(_same(accounting.epsilon, worst), f"ε = {accounting.epsilon}, recomputed {worst}")
    return f"ε = {worst:.6g}, recomputed from the charges of each round"


def _same(stated: float | str, again: float) -> bool:
    value = float(stated)
    return value == again or abs(value - again) <= _TOLERANCE * max(1.0, again)


def _clauses(whole: Evidence) -> str:
    document = whole.model_dump(mode="json")
    for row in whole.clauses:
        found = [bool_of(resolve(document, pointer)) for pointer in row.pointers]
        best = status_of(row.kind, found, partial=False, whole=document)
        allowed = {best} | ({"evidence_partial"} if best == "evidence_present" else set())
        demand(row.status in allowed, f"{row.framework} {row.clause}: the status does not follow")
    for pointer in whole.missing:
        demand(not bool_of(resolve(document, pointer)), f"{pointer} is not missing")
    return f"{len(whole.clauses)} clause rows: pointers resolve, statuses follow from them"


def _verdict(whole: Evidence) -> str:
    broken = [one.check for one in whole.checks if one.outcome == "broken"]
    demand((whole.verdict == "broken") == bool(broken), "the verdict does not follow from checks")
    demand(not broken, f"the audit itself found broken: {', '.join(broken)}")
    return f"{len(whole.checks)} checks of the audit, none broken"

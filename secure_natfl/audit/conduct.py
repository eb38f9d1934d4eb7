"""`natfl audit`: check a run from what it left behind, and write the evidence."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from protocols.chain import SigningKey
from protocols.errors import ConfigError, RunFolderError
from secure_natfl import __version__
from secure_natfl.audit.attack_table import check_attacks
from secure_natfl.audit.check_log import check_log
from secure_natfl.audit.check_privacy import Spending, check_privacy
from secure_natfl.audit.check_rounds import check_rounds
from secure_natfl.audit.collect import collect
from secure_natfl.audit.envelope import seal_statement
from secure_natfl.audit.evidence import Evidence
from secure_natfl.audit.findings import Findings
from secure_natfl.audit.reading import RunFiles, Story, read_run
from secure_natfl.audit.render import evidence_html
from secure_natfl.audit.statements import Operator, read_operator
from secure_natfl.audit.trail import CHECKPOINTS, ENROLMENT, LOG
from secure_natfl.audit.verify import (
    ENVELOPE,
    EVIDENCE,
    FOLDER,
    PAGE,
    SCHEMA,
    VERIFIER,
    predicate_of,
)
from secure_natfl.run_folder import write
from secure_natfl.site_state import secret

OPERATOR = "operator.toml"


@dataclass(frozen=True)
class Audited:
    """What an audit found. page: the evidence's page; None where too little could be read."""

    findings: Findings
    page: Path | None
    evidence: Evidence | None
    auditor: str


def audit(run: Path, operator: Path | None = None) -> Audited:
    """Check a run folder and write its evidence into `run`/evidence; nothing else is written.

    operator: a file of the operator's statements, `run`/operator.toml where there is one.
    ConfigError where the call is unusable: no run's folder, or an operator file with unknown keys.
    """
    default = run / OPERATOR
    stated = read_operator(operator or (default if default.exists() else None))
    files, findings = read_run(run), Findings()
    key = _auditor()
    evidence = _examined(files, stated, findings)
    page = None if evidence is None else _write(files, evidence, key)
    return Audited(findings, page, evidence, key.public.hex())


def _examined(files: RunFiles, operator: Operator, findings: Findings) -> Evidence | None:
    """All checks, then the evidence if log, enrolment, report and ledgers could be read."""
    story: list[Story] = []

    def read() -> str:
        story.append(Story(tuple(files.log().records())))
        return f"session {story[0].session.session}"

    findings.check("log.read", read)
    findings.check("enrolment.read", lambda: files.enrolment().session)
    findings.check("report.read", lambda: files.report().name)
    if findings.broken:
        return None
    log, told, enrolment = files.log(), story[0], files.enrolment()
    _demand_usable(told, operator)
    check_log(files, log, told, findings)

    def transcript() -> str:
        with files.transcript() as opened:
            check_rounds(opened, enrolment, told, findings)
            return f"{len(opened.entries)} lines, each bound to the one before"

    findings.check("transcript.chain", transcript)
    spending: dict[str, Spending] = check_privacy(files, enrolment, told, findings)
    attacks = check_attacks(files.path, findings)
    if set(spending) != set(enrolment.clients) or not told.opened():
        return None
    found: list[Evidence] = []

    def collected() -> str:
        found.append(collect(files, log, told, spending, findings, attacks, operator))
        return "written"

    # Not a check of the run: recorded only where a file is too broken to be described.
    attempt = Findings()
    attempt.check("evidence", collected)
    findings.found += attempt.broken
    return found[0] if found else None


def _demand_usable(story: Story, operator: Operator) -> None:
    """ConfigError for a run of another version, or statements on sites that are not in it."""
    made, clients = story.session.version, story.session.clients
    if made != __version__:
        raise ConfigError(
            f"the run was made by version {made}, this is {__version__}",
            where=LOG,
            fix="audit it with the version that made it",
        )
    strangers = sorted(operator.sites.keys() - clients.keys())
    if strangers:
        raise ConfigError(
            f"no such sites: {', '.join(f'sites.{name}' for name in strangers)}",
            where=OPERATOR,
            fix=f"name the run's: {', '.join(clients)}",
        )


def _auditor() -> SigningKey:
    """The auditor's own key, apart from every run and site."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return SigningKey(secret(Path(base) / "secure_natfl" / "auditor", "signing", os.urandom))


def _write(files: RunFiles, evidence: Evidence, key: SigningKey) -> Path:
    folder = files.path / FOLDER
    verifier = resources.files("secure_natfl.audit").joinpath("standalone.py")
    schema = json.dumps(Evidence.model_json_schema(mode="serialization"), indent=2)
    made = {
        EVIDENCE: (evidence.model_dump_json(indent=2) + "\n").encode(),
        SCHEMA: (schema + "\n").encode(),
        PAGE: evidence_html(evidence).encode(),
        VERIFIER: verifier.read_bytes(),
        **{name: (files.path / name).read_bytes() for name in (LOG, CHECKPOINTS, ENROLMENT)},
    }
    envelope = seal_statement(made, predicate_of(evidence), key)
    try:
        folder.mkdir(exist_ok=True)
        for name, data in (*made.items(), (ENVELOPE, envelope)):
            write(folder / name, data)
    except OSError as error:
        raise RunFolderError(
            "the evidence cannot be written",
            where=str(folder),
            why=error.strerror or str(error),
            fix="free space or make the run folder writable",
        ) from error
    return folder / PAGE

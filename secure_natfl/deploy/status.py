"""`natfl deploy status`: how a party stands, read from its disk; nothing is asked or written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from protocols.audit_events import (
    Charged,
    Refused,
    RoundLearned,
    RoundOpened,
    RoundPlanned,
    SessionClosed,
)
from protocols.audit_log import read_log
from secure_natfl.audit.trail import LOG
from secure_natfl.deploy.desk import REFUSALS, VETO
from secure_natfl.deploy.enrolled import read_enrolled
from secure_natfl.deploy.launch import OUTCOME
from secure_natfl.deploy.processes import running


def status(folder: Path) -> dict[str, Any]:
    """What is running, how far the session is, what was refused; the same for every party."""
    enrolled = read_enrolled(folder)
    said: dict[str, Any] = {
        "party": folder.name,
        "session": enrolled.session,
        "rounds": enrolled.config.system.rounds,
        "running": running(folder),
    }
    log = folder / "run" / LOG
    return said | (_server(folder, log) if log.exists() else _party(folder, enrolled.session))


def _server(folder: Path, log: Path) -> dict[str, Any]:
    bodies = [record.body for record in read_log(log.read_bytes(), str(log)).records()]
    outcome = folder / OUTCOME
    return {
        "planned": _rounds(bodies, RoundPlanned),
        "opened": _rounds(bodies, RoundOpened),
        "learned": _rounds(bodies, RoundLearned),
        "charges": sum(isinstance(body, Charged) for body in bodies),
        "broken attempts": sum(isinstance(body, Refused) for body in bodies),
        "closed": any(isinstance(body, SessionClosed) for body in bodies),
        "outcome": outcome.read_text(encoding="utf-8").strip() if outcome.exists() else "",
    }


def _rounds(bodies: list[Any], kind: type[Any]) -> int:
    """How many rounds came this far."""
    return len({body.round for body in bodies if isinstance(body, kind)})


def answered(folder: Path, session: str) -> dict[str, int]:
    """Phase → the latest round, from 1, of which a party's journal has an answer."""
    journal = folder / "journal" / session
    found: dict[str, int] = {}
    for file in journal.iterdir() if journal.exists() else ():
        if file.suffix != ".part":
            number, _, phase = file.name.split("-")
            found[phase] = max(found.get(phase, 0), int(number) + 1)
    return dict(sorted(found.items()))


def _party(folder: Path, session: str) -> dict[str, Any]:
    refusals = folder / REFUSALS
    lines = refusals.read_text(encoding="utf-8").splitlines() if refusals.exists() else []
    return {
        "answered": answered(folder, session),
        "veto": (folder / VETO).exists(),
        "refusals": len(lines),
        "last refusal": lines[-1] if lines else "",
    }

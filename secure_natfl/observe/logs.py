"""Structured logs: one JSON object a line, of a closed set of fields, and never what an error says.

Messages of errors may quote a value, a path or a patient; a log leaves the machine it was written
on. So the formatter keeps the name of the event, an error's kind, and fields of which both name
and type are known here. All else is left out, whoever logs it.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from protocols.audit_events import Charged, RoundOpened, RoundPlanned
from protocols.audit_log import Record, read_log

COUNTS: Final = frozenset(
    {"round", "attempt", "bytes", "messages", "participants", "absent", "pid", "port", "records"}
)
SECONDS: Final = frozenset({"seconds", "epsilon"})
NAMES: Final = frozenset({"party", "phase", "kind", "stage", "session"})
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}\Z")


def log_structured() -> None:
    """Have all that this process logs or warns of, whoever it is, pass the formatter to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)


class JsonFormatter(logging.Formatter):
    """`logger.info("round-opened", extra={"round": 3})` → {"event": "round-opened", "round": 3, …}.

    The event is the message as it stands in the source, without arguments, and only if it is a
    name.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line; arguments, texts of exceptions and unknown fields are left out."""
        event = record.msg if isinstance(record.msg, str) else ""
        line: dict[str, Any] = {
            "utc": f"{datetime.fromtimestamp(record.created, UTC):%Y-%m-%dT%H:%M:%S.%fZ}",
            "level": record.levelname.lower(),
            "event": event if _NAME.match(event) else "unnamed",
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
        return json.dumps(line | fields(vars(record)))


def fields(said: dict[str, Any]) -> dict[str, Any]:
    """Those of a closed set that have the type they must have."""
    found: dict[str, Any] = {}
    for name, value in said.items():
        counted = name in COUNTS and type(value) is int
        timed = name in SECONDS and type(value) in (int, float)
        named = name in NAMES and type(value) is str and _NAME.match(value)
        if counted or timed or named:
            found[name] = value
    return found


def told(record: Record) -> str:
    """A record of the audit log as a line of the structured log."""
    body = record.body
    said: dict[str, Any] = {"round": getattr(body, "round", None), "party": record.actor}
    if isinstance(body, RoundOpened):
        said |= {"participants": sum(len(one.participants) for one in body.sums)}
        said |= {"absent": len(body.absent), "messages": body.transcript_entries}
    elif isinstance(body, RoundPlanned):
        said |= {"participants": sum(len(group.participants) for group in body.groups)}
    elif isinstance(body, Charged):
        said |= {"records": body.seq}
    line = {"utc": record.utc, "level": "info", "event": body.event, "seq": record.seq}
    return json.dumps(line | fields(said))


def follow(folder: Path, *, every: float = 1.0, once: bool = False) -> Iterator[str]:
    """Every record of a folder's audit log as a line, then each new one; for ever unless `once`."""
    run = folder / "run" if (folder / "run").is_dir() else folder
    path, seen = run / "audit.jsonl", 0
    while True:
        log = read_log(path.read_bytes() if path.exists() else b"")
        records = list(log.records())
        yield from map(told, records[seen:])
        seen = len(records)
        if once:
            return
        time.sleep(every)

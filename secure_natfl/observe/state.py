"""What can be seen of a federation in its folder, at one moment."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from protocols.accounting import Event, compose
from protocols.audit_events import (
    Charged,
    Refused,
    RoundLearned,
    RoundOpened,
    RoundPlanned,
    SessionClosed,
    SessionOpened,
    SessionResumed,
)
from protocols.audit_log import Record, read_log
from protocols.errors import NatflError, RunFolderError
from protocols.policy import SERVER
from secure_natfl.deploy.enrolled import ENROLLED, read_enrolled
from secure_natfl.deploy.server_file import read_patience

DELTA: Final = 1e-5
"""δ at which ε is shown; the report states the figures at the run's own δ."""

QUIET_S: Final = 3600.0
"""What a server may work by itself between two records, beside the deadlines of all phases."""


@dataclass(frozen=True)
class Traffic:
    """Messages of one kind: how many were recorded, and their bytes, once per receiver."""

    messages: int
    bytes: int


@dataclass(frozen=True)
class Seen:
    """A federation at one moment.

    planned, opened, learned: the rounds, from 0, that came so far. absent: party → rounds that it
    missed. epsilon: site → what it has charged in this session, at `DELTA`. broken: attempts that
    ended in an error. quiet_s: seconds since the last record, None before the first. limit_s: how
    long that may be. party: whose folder of a deployed federation it is, empty for a run of one
    process; missing: its processes that do not run; answered: phase → the latest round, from 1,
    that a site's journal has. fault: why the folder cannot be read, empty while it can.
    """

    folder: Path
    session: str = ""
    sites: tuple[str, ...] = ()
    holders: int = 0
    threshold: int = 0
    planned: tuple[int, ...] = ()
    opened: tuple[int, ...] = ()
    learned: tuple[int, ...] = ()
    absent: Mapping[str, int] = field(default_factory=dict)
    epsilon: Mapping[str, float] = field(default_factory=dict)
    broken: int = 0
    resumed: int = 0
    records: int = 0
    closed: bool = False
    quiet_s: float | None = None
    traffic: Mapping[str, Traffic] = field(default_factory=dict)
    free_bytes: int = 0
    limit_s: float = math.inf
    party: str = ""
    missing: tuple[str, ...] = ()
    answered: Mapping[str, int] = field(default_factory=dict)
    fault: str = ""


def look(folder: Path) -> Seen:
    """What stands in a run's folder, a deployed server's, whose run is in `run`, or a site's.

    It may be called while the federation writes. RunFolderError where there is no such folder;
    what cannot be read is not an error but a fault that the result names by its kind.
    """
    if not folder.is_dir():
        raise RunFolderError(
            "there is no such folder", where=str(folder), fix="name a run's folder"
        )
    run = folder / "run" if (folder / "run").is_dir() else folder
    free = shutil.disk_usage(run).free
    path = run / "audit.jsonl"
    try:
        log = read_log(path.read_bytes() if path.exists() else b"")
        seen = _seen(folder, list(log.records()), traffic(run / "transcript" / "index.jsonl"), free)
        seen = replace(seen, limit_s=QUIET_S + sum(read_patience(folder).deadlines.values()))
        return _deployed(seen) if (folder / ENROLLED).exists() else seen
    except (NatflError, OSError, ValueError) as error:
        return Seen(folder, free_bytes=free, fault=type(error).__name__)


def _deployed(seen: Seen) -> Seen:
    """A party of a deployed federation: what its journal says, and whether it is at work."""
    # They bring torch, which a look at a run does not need.
    from secure_natfl.deploy.processes import running
    from secure_natfl.deploy.status import answered

    folder, session = seen.folder, read_enrolled(seen.folder).session
    name = folder.resolve().name
    due = ("superlink", "coordinator") if name == SERVER else ("party", "supernode")
    found = answered(folder, session)
    return replace(
        seen,
        session=session,
        party=name,
        missing=tuple(one for one in due if one not in running(folder)),
        answered=found,
        closed=seen.closed or "close" in found,
    )


def _seen(folder: Path, records: list[Record], sent: Mapping[str, Traffic], free: int) -> Seen:
    bodies = [record.body for record in records]
    first = next((body for body in bodies if isinstance(body, SessionOpened)), None)
    quiet = None
    if records:
        last = datetime.strptime(records[-1].utc, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
        quiet = max(time.time() - last.timestamp(), 0.0)
    return Seen(
        folder,
        session=first.session if first else "",
        sites=tuple(first.clients) if first else (),
        holders=len(first.holders) if first else 0,
        threshold=first.threshold if first else 0,
        planned=_rounds(b.round for b in bodies if isinstance(b, RoundPlanned)),
        opened=_rounds(b.round for b in bodies if isinstance(b, RoundOpened)),
        learned=_rounds(b.round for b in bodies if isinstance(b, RoundLearned)),
        absent=Counter(p for b in bodies if isinstance(b, RoundOpened) for p in b.absent),
        epsilon=_spent(records),
        broken=sum(isinstance(body, Refused) for body in bodies),
        resumed=sum(isinstance(body, SessionResumed) for body in bodies),
        records=len(records),
        closed=any(isinstance(body, SessionClosed) for body in bodies),
        quiet_s=quiet,
        traffic=sent,
        free_bytes=free,
    )


def traffic(index: Path) -> dict[str, Traffic]:
    """Messages and bytes by kind from a transcript's index; whole lines alone, nothing verified."""
    counts, sizes = Counter[str](), Counter[str]()
    if index.exists():
        with index.open("rb") as lines:
            for line in lines:
                if line.endswith(b"}\n"):
                    try:
                        entry = json.loads(line)
                        kind, size = str(entry["kind"]), int(entry["bytes"])
                        receivers = len(entry["receivers"])
                    except (ValueError, KeyError, TypeError):
                        continue
                    counts[kind] += 1
                    sizes[kind] += size * receivers
    return {kind: Traffic(count, sizes[kind]) for kind, count in counts.items()}


def _rounds(numbers: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(set(numbers)))


def _spent(records: Iterable[Record]) -> dict[str, float]:
    """ε by site, from what the log says of each charge."""
    events: dict[str, dict[int, Event]] = {}
    for record in records:
        if isinstance(record.body, Charged):
            event = Event.from_line(json.loads(record.body.cost))
            events.setdefault(record.actor, {})[record.body.round] = event
    return {site: compose(list(rounds.values()), DELTA).epsilon for site, rounds in events.items()}

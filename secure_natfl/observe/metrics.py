"""A federation's state as Prometheus text (exposition format 0.0.4), and as a health check."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from secure_natfl.observe.state import DELTA, Seen

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
FREE_BYTES: Final = 256 << 20
"""Below so much free space the next round may not be recorded."""

_Samples = Iterable[tuple[Mapping[str, str], float]]


def metrics(seen: Seen) -> str:
    """All figures as text, names beginning with natfl_; labels are names of parties and kinds."""
    stages = {"planned": seen.planned, "opened": seen.opened, "learned": seen.learned}
    families: list[tuple[str, str, str, _Samples]] = [
        ("up", "gauge", "1 while the audit log can be read.", [({}, float(not seen.fault))]),
        (
            "rounds",
            "gauge",
            "Rounds that came so far.",
            [({"stage": stage}, len(found)) for stage, found in stages.items()],
        ),
        ("sites", "gauge", "Enrolled sites.", [({}, len(seen.sites))]),
        ("broken_attempts_total", "counter", "Attempts that failed.", [({}, seen.broken)]),
        ("resumptions_total", "counter", "Times the session was resumed.", [({}, seen.resumed)]),
        (
            "absences_total",
            "counter",
            "Rounds that a party was left out of.",
            [({"party": party}, count) for party, count in sorted(seen.absent.items())],
        ),
        (
            "epsilon",
            "gauge",
            f"Privacy loss charged by a site in this session, delta {DELTA:g}.",
            [({"site": site}, spent) for site, spent in sorted(seen.epsilon.items())],
        ),
        (
            "messages_total",
            "counter",
            "Messages recorded.",
            [({"kind": kind}, one.messages) for kind, one in sorted(seen.traffic.items())],
        ),
        (
            "message_bytes_total",
            "counter",
            "Bytes sent, once per receiver.",
            [({"kind": kind}, one.bytes) for kind, one in sorted(seen.traffic.items())],
        ),
        ("audit_records", "gauge", "Records in the audit log.", [({}, seen.records)]),
        (
            "answered_round",
            "gauge",
            "Latest round that a deployed party answered, by phase.",
            [({"phase": phase}, number) for phase, number in seen.answered.items()],
        ),
        ("closed", "gauge", "1 once the session is closed.", [({}, float(seen.closed))]),
        ("free_bytes", "gauge", "Free space on the run's disk.", [({}, seen.free_bytes)]),
    ]
    if seen.quiet_s is not None:
        families.append(("quiet_seconds", "gauge", "Since the last record.", [({}, seen.quiet_s)]))
    return "".join(_lines(families))


def ailments(seen: Seen) -> list[str]:
    """Why the federation needs somebody; empty while it is well."""
    found = []
    if seen.fault:
        return [f"the folder cannot be read ({seen.fault})"]
    if not seen.records and not seen.answered:
        found.append("there is no audit log and no journal: nothing has begun here")
    if seen.missing and not seen.closed:
        found.append(f"not running: {', '.join(seen.missing)}")
    if seen.free_bytes < FREE_BYTES:
        found.append(f"{seen.free_bytes >> 20} MiB of disk are left")
    if not seen.closed and seen.quiet_s is not None and seen.quiet_s > seen.limit_s:
        found.append(f"no record for {seen.quiet_s / 60:.0f} minutes")
    return found


def _lines(families: Iterable[tuple[str, str, str, _Samples]]) -> Iterator[str]:
    for name, kind, help_, samples in families:
        yield f"# HELP natfl_{name} {help_}\n# TYPE natfl_{name} {kind}\n"
        for labels, value in samples:
            inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
            yield f"natfl_{name}{'{' + inside + '}' if inside else ''} {_number(value)}\n"


def _number(value: float) -> str:
    """As the format wants it: whole numbers plain, infinity as +Inf."""
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

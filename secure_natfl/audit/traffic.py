"""All messages of a run, each verified once and put where the checks find it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from protocols.envelope import authentic, identity, outline
from protocols.messages import (
    Contribution,
    KeyOpening,
    Message,
    Opening,
    OpeningRequest,
    RoundPlan,
)
from protocols.policy import Enrolment
from protocols.transcript import TORN, Transcript
from secure_natfl.audit.findings import demand


@dataclass
class Traffic:
    """The messages of a run by kind, each once, verified; and how often they travelled."""

    enrolment: Enrolment
    plans: dict[str, RoundPlan] = field(default_factory=dict)
    """By identity, as are the two that follow."""
    contributions: dict[str, Contribution] = field(default_factory=dict)
    requests: dict[str, OpeningRequest] = field(default_factory=dict)
    openings: list[tuple[Opening, bytes]] = field(default_factory=list)
    answers: dict[str, dict[str, KeyOpening]] = field(default_factory=lambda: defaultdict(dict))
    """Identity of a request → holder → its answer."""
    messages: list[tuple[Message, tuple[str, ...]]] = field(default_factory=list)
    """Every message with all that received it."""


def read_traffic(transcript: Transcript, traffic: Traffic) -> str:
    """Fill `traffic` from a transcript; ProtocolError or RunFolderError for anything unsigned."""
    transcript.verify()
    received: dict[str, set[str]] = defaultdict(set)
    for entry in transcript.entries:
        if entry.kind != TORN:
            received[entry.sha256].update(entry.receivers)
    for entry in {e.sha256: e for e in transcript.entries if e.kind != TORN}.values():
        blob = transcript.read(entry)
        said = outline(blob)
        key = traffic.enrolment.verify_key(said.sender)
        message = authentic(blob, type(said), sender=said.sender, verify_key=key)
        demand(
            message.session == traffic.enrolment.session,
            "a message of another session",
            where=f"transcript line {entry.seq + 1}",
        )
        _file(traffic, message, blob)
        traffic.messages.append((message, tuple(sorted(received[entry.sha256]))))
    return f"{len(traffic.messages)} messages, each signed by the party that it names"


def _file(traffic: Traffic, message: Message, blob: bytes) -> None:
    if isinstance(message, RoundPlan):
        traffic.plans[identity(blob)] = message
    elif isinstance(message, Contribution):
        traffic.contributions[identity(blob)] = message
    elif isinstance(message, OpeningRequest):
        traffic.requests[identity(blob)] = message
    elif isinstance(message, KeyOpening):
        traffic.answers[message.request][message.sender] = message
    elif isinstance(message, Opening):
        traffic.openings.append((message, blob))

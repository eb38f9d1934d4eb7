"""The closed set of what an audit log may say. Whole numbers, names and digests only.

There is no field for data, for a result or for a free text: an error is its kind, a party that
was left out is its name, and why stands in the transcript. So a log can be handed to anybody.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from protocols.messages import Count, Digest, Name, Positive, StrictModel

Signature = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}\z")]
Cost = Annotated[str, StringConstraints(pattern=r"^\{[\x20-\x7e]{1,1000}\}\z")]
"""The canonical JSON of a privacy event, as it stands in the ledger."""


class SessionOpened(StrictModel):
    """First record: who takes part under which keys.

    config, enrolment: digests of the configuration and of the enrolment, whose keys are repeated
    so that whoever has the log alone can verify signatures. simulated: all parties ran in one
    place. seeded: the noise can be predicted.
    """

    event: Literal["session-opened"] = "session-opened"
    session: Name
    version: Name
    config: Digest
    enrolment: Digest
    server: Digest
    clients: dict[Name, Digest]
    holders: dict[Name, Digest]
    threshold: Positive
    simulated: bool
    seeded: bool


class SessionResumed(StrictModel):
    """The run was taken up again, by this version."""

    event: Literal["session-resumed"] = "session-resumed"
    version: Name


class PlannedGroup(StrictModel):
    """A group and its integer weights, in the order of the participants."""

    name: Name
    participants: tuple[Name, ...]
    alphas: tuple[Positive, ...]


class RoundPlanned(StrictModel):
    """Before a round is played: who is asked for what. proxies: how many images are asked."""

    event: Literal["round-planned"] = "round-planned"
    round: Count
    proxies: Positive
    groups: tuple[PlannedGroup, ...]


class Charged(StrictModel):
    """A site's ledger after a round, and what the round cost there.

    patients, seq, head and signature are those of the site's signed ledger head
    (protocols.ledger_heads).
    """

    event: Literal["charged"] = "charged"
    round: Count
    cost: Cost
    patients: Name
    seq: Count
    head: Digest
    signature: Signature


class Sum(StrictModel):
    """A group's opened sum, of whom, and the attempt that opened it."""

    group: Name
    attempt: Positive
    participants: tuple[Name, ...]
    sha256: Digest


class RoundOpened(StrictModel):
    """After a round: what was opened, who was left out, where the transcript stands."""

    event: Literal["round-opened"] = "round-opened"
    round: Count
    sums: tuple[Sum, ...]
    absent: tuple[Name, ...]
    transcript_entries: Count
    transcript_head: Digest


class RoundLearned(StrictModel):
    """The central model has taken up a round. model: digest of its weights file."""

    event: Literal["round-learned"] = "round-learned"
    round: Count
    model: Digest


class Refused(StrictModel):
    """A round ended in an error. error: the kind of it."""

    event: Literal["refused"] = "refused"
    round: Count
    error: Name


class SessionClosed(StrictModel):
    """Last record: the run's files as they were written, by name and digest."""

    event: Literal["session-closed"] = "session-closed"
    files: dict[Name, Digest]


class Torn(StrictModel):
    """The writer was interrupted: these bytes stand between the last record and this one."""

    event: Literal["torn-line"] = "torn-line"
    sha256: Digest
    bytes: Count


Event = Annotated[
    SessionOpened
    | SessionResumed
    | RoundPlanned
    | Charged
    | RoundOpened
    | RoundLearned
    | Refused
    | SessionClosed
    | Torn,
    Field(discriminator="event"),
]

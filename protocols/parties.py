"""What clients and server do with a message: check it, answer it. Neither holds a decryption key.

Each method names who runs it; the order is that of a round.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from protocols.chain import SigningKey, digest
from protocols.envelope import authentic, identity, kind_of, seal, unseal
from protocols.errors import ProtocolError
from protocols.ledger import ReleaseKey
from protocols.mechanisms import Released
from protocols.messages import (
    Contribution,
    Group,
    IntVector,
    M,
    Message,
    Opened,
    Opening,
    OpeningRequest,
    Refusal,
    RoundKey,
    RoundPlan,
    Stage,
)
from protocols.policy import DECRYPTOR, SERVER, Enrolment, check_plan
from protocols.rlwe import preset


@dataclass(frozen=True)
class Client:
    """A hospital as the protocol sees it: a name, its signing key, what all agreed on.

    `release` returns the integers for a plan that this client has accepted: it charges the
    ledger, or returns what the ledger stored when the plan is a further attempt.
    """

    name: str
    key: SigningKey
    enrolment: Enrolment
    release: Callable[[RoundPlan], Released]

    def accept_plan(self, blob: bytes) -> "Accepted":
        """Client, first: the server's plan, if it keeps to the enrolment and names this client."""
        plan = authentic(
            blob, RoundPlan, sender=SERVER, verify_key=self.enrolment.verify_key(SERVER)
        )
        check_plan(plan, self.enrolment)
        return Accepted(plan, identity(blob), plan.group_of(self.name).name)

    def accept_key(self, blob: bytes, accepted: "Accepted") -> RoundKey:
        """Client, second: the decryptor's key for this very plan."""
        return check_key(blob, accepted.plan, accepted.plan_id, self.enrolment)

    def draw(self, accepted: "Accepted") -> Released:
        """Client, third: its release for this plan; ProtocolError if it is for another round."""
        plan, released = accepted.plan, self.release(accepted.plan)
        if released.key != ReleaseKey(plan.session, plan.round):
            raise ProtocolError("release is of another session or round", where=self.name)
        if len(released.values) != plan.size:
            raise ProtocolError("release has another size than the plan", where=self.name)
        return released

    def contribute(self, accepted: "Accepted", body: bytes) -> bytes:
        """Client, fourth: the signed message around its encrypted release."""
        message = Contribution(
            **accepted.plan.stage._asdict(),
            sender=self.name,
            plan=accepted.plan_id,
            group=accepted.group,
            body=body,
        )
        return seal(message, self.key)

    def accept_opening(
        self, blob: bytes, accepted: "Accepted", past: Sequence[Opened] = (), *, sender: str
    ) -> Opening:
        """Client, last: its group's sum, under this plan or the one that the round key named."""
        now = Opened(group=accepted.group, attempt=accepted.plan.attempt, plan=accepted.plan_id)
        opened = next((one for one in past if one.group == accepted.group), now)
        return check_opening(blob, accepted.plan, opened, self.enrolment, sender=sender)


class Accepted(NamedTuple):
    """A plan that a client has checked, its identity, and the client's group in it."""

    plan: RoundPlan
    plan_id: str
    group: str


@dataclass(frozen=True)
class Server:
    """The aggregator: it plans, weights and adds. Its key signs; nothing it has can open."""

    key: SigningKey
    enrolment: Enrolment

    def accept_key(self, blob: bytes, plan: RoundPlan, plan_id: str) -> RoundKey:
        """Server, second: the decryptor's key, to be relayed."""
        return check_key(blob, plan, plan_id, self.enrolment)

    def accept_contribution(
        self, blob: bytes, plan: RoundPlan, plan_id: str, client: str, body_bytes: int
    ) -> Contribution:
        """Server, third: a client's upload, if it is that client's and for this plan and group."""
        message = unseal(
            blob,
            Contribution,
            plan.stage,
            sender=client,
            verify_key=self.enrolment.verify_key(client),
            body_bytes=body_bytes,
        )
        check_bound(message, plan_id, plan.group_of(client).name)
        return message

    def request(
        self, plan: RoundPlan, plan_id: str, group: Group, uploads: Mapping[str, str], body: bytes
    ) -> bytes:
        """Server, fourth: ask for the sum of these uploads (client → identity) and no others."""
        message = OpeningRequest(
            **plan.stage._asdict(),
            sender=SERVER,
            plan=plan_id,
            group=group.name,
            contributions=tuple(uploads[name] for name in group.participants),
            body=body,
        )
        return seal(message, self.key)


def opening_of(
    plan: RoundPlan, opened: Opened, request: str, integers: IntVector, *, sender: str
) -> Opening:
    """The message around one group's sum. The party that opens runs it, then signs."""
    body = integers.astype("<i8").tobytes()
    return Opening(
        session=plan.session,
        round=plan.round,
        attempt=opened.attempt,
        sender=sender,
        plan=opened.plan,
        group=opened.group,
        request=request,
        sha256=digest(body),
        body=body,
    )


def check_bound(message: Contribution | OpeningRequest, plan_id: str, group: str) -> None:
    """Return if the message belongs to this plan and group. Server and decryptor run it."""
    if message.plan != plan_id or message.group != group:
        raise ProtocolError("message belongs to another plan or group", where=message.sender)


def check_key(blob: bytes, plan: RoundPlan, plan_id: str, enrolment: Enrolment) -> RoundKey:
    """The decryptor's public key for this plan. Server and clients run it."""
    message = _from_decryptor(
        blob, RoundKey, plan.stage, enrolment, preset(plan.preset).public_key_bytes
    )
    if message.plan != plan_id:
        raise ProtocolError("round key was made for another plan", where=DECRYPTOR)
    return message


def check_opening(
    blob: bytes, plan: RoundPlan, opened: Opened, enrolment: Enrolment, *, sender: str = DECRYPTOR
) -> Opening:
    """The exact sum of one group. Server and clients run it; `opened` says under which plan."""
    at = Stage(plan.session, plan.round, opened.attempt)
    message = _from_decryptor(blob, Opening, at, enrolment, 8 * plan.size, sender)
    expected = (opened.plan, opened.group, digest(message.body))
    if (message.plan, message.group, message.sha256) != expected:
        raise ProtocolError("opening is of another plan, group or sum", where=sender)
    return message


def _from_decryptor(
    blob: bytes,
    expected: type[M],
    at: Stage,
    enrolment: Enrolment,
    body_bytes: int,
    sender: str = DECRYPTOR,
) -> M:
    refusal: type[Message] = Refusal
    if kind_of(blob) is refusal:
        raise ProtocolError(
            "the decryptor refused",
            where=f"round {at.round}, attempt {at.attempt}",
            why="it gives no reasons to those it refuses",
            fix="look into its own log, then start a new attempt",
        )
    return unseal(
        blob,
        expected,
        at,
        sender=sender,
        verify_key=bytes.fromhex(enrolment.holder),
        body_bytes=body_bytes,
    )

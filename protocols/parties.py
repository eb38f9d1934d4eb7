"""What clients and server do with a message: check it, answer it. Neither holds a decryption key.

Each method names who runs it; the order is that of a round.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from protocols.chain import SigningKey, canonical, digest
from protocols.envelope import authentic, identity, kind_of, seal, unseal
from protocols.errors import AbsentError, ProtocolError
from protocols.ledger import ReleaseKey
from protocols.messages import (
    Contribution,
    Group,
    IntVector,
    KeyOpening,
    KeyShare,
    Link,
    M,
    Message,
    Opened,
    Opening,
    OpeningRequest,
    Reading,
    Refusal,
    RoundKey,
    RoundPlan,
    Stage,
)
from protocols.policy import SERVER, Enrolment, check_included, check_plan, holder_name
from protocols.release import Released
from protocols.sealing import seal_to

_LARGEST_READING: Final = 2.0**53


class Accepted(NamedTuple):
    """A plan that a client has checked, its identity, and the holders' keys for it."""

    plan: RoundPlan
    plan_id: str
    keys: Mapping[str, RoundKey]


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

    def accept_plan(self, blob: bytes) -> Accepted:
        """Client, first: the server's plan, if it keeps to the enrolment and names this client."""
        plan = authentic(
            blob, RoundPlan, sender=SERVER, verify_key=self.enrolment.verify_key(SERVER)
        )
        check_plan(plan, self.enrolment)
        plan.groups_of(self.name)
        return Accepted(plan, identity(blob), {})

    def accept_keys(
        self, blobs: Mapping[str, bytes], accepted: Accepted, body_bytes: int
    ) -> Accepted:
        """Client, second: the holders' keys for this very plan, of as many as it takes to open."""
        plan, plan_id, _ = accepted
        keys = {
            holder: check_key(blob, plan, plan_id, self.enrolment, holder, body_bytes)
            for holder, blob in blobs.items()
        }
        if len(keys) < self.enrolment.threshold:
            raise ProtocolError("too few key holders for this plan", where=self.name)
        return accepted._replace(keys=keys)

    def demand_closed(self, accepted: Accepted, group: Group) -> None:
        """Client, before it encrypts: no earlier attempt can have opened, or can open, this group.

        So many holders have closed every earlier attempt without having helped to open the group
        that too few are left for that; ProtocolError otherwise.
        """
        keys, needed = accepted.keys.values(), self.enrolment.threshold
        closed = [key for key in keys if group.name not in {one.group for one in key.opened}]
        if len(closed) < needed:
            raise ProtocolError(
                "an earlier attempt may still be opened",
                where=f"{self.name}, group {group.name}",
                why=f"{len(closed)} key holders have closed it, {needed} must",
                fix="finish the earlier attempt, or go on to the next round",
            )

    def draw(self, accepted: Accepted) -> Released:
        """Client, third: its release for this plan; ProtocolError if it is for another round."""
        plan, released = accepted.plan, self.release(accepted.plan)
        if released.key != ReleaseKey(plan.session, plan.round):
            raise ProtocolError("release is of another session or round", where=self.name)
        if len(released.values) != plan.size:
            raise ProtocolError("release has another size than the plan", where=self.name)
        return released

    def contribute(self, accepted: Accepted, group: Group, body: bytes) -> bytes:
        """Client, fourth: the signed message around its encrypted part of a group's sum."""
        message = Contribution(
            **accepted.plan.stage._asdict(),
            sender=self.name,
            plan=accepted.plan_id,
            group=group.name,
            body=body,
        )
        return seal(message, self.key)

    def share_key(
        self,
        accepted: Accepted,
        contribution: bytes,
        group: Group,
        shares: Sequence[bytes],
    ) -> list[bytes]:
        """Client, fifth: the shares of the contribution's key, each sealed to its holder.

        `shares` are those of all enrolled holders in order; who sent no key gets none.
        """
        numbered, keys = zip(self.enrolment.holder_order, shares, strict=True), accepted.keys
        return [
            seal(
                KeyShare(
                    **accepted.plan.stage._asdict(),
                    sender=self.name,
                    plan=accepted.plan_id,
                    group=group.name,
                    holder=holder,
                    contribution=identity(contribution),
                    body=seal_to(
                        keys[holder].body, share, accepted.plan_id, group.name, self.name, holder
                    ),
                ),
                self.key,
            )
            for holder, share in numbered
            if holder in keys
        ]

    def accept_opening(
        self, blob: bytes, accepted: Accepted, group: Group, opened: Opened | None = None
    ) -> Opening:
        """Client, last: its group's sum, under this plan or the earlier one that `opened` names."""
        now = Opened(group=group.name, attempt=accepted.plan.attempt, plan=accepted.plan_id)
        opening = check_opening(blob, accepted.plan, opened or now, self.enrolment)
        if opening.group != group.name:
            raise ProtocolError("opening is of another group", where=self.name)
        return opening


@dataclass(frozen=True)
class Server:
    """The aggregator: it plans, weights and adds. Its key signs; nothing it has can open."""

    key: SigningKey
    enrolment: Enrolment

    def accept_key(
        self, blob: bytes, plan: RoundPlan, plan_id: str, holder: str, body_bytes: int
    ) -> RoundKey:
        """Server, second: a holder's key, to be relayed."""
        return check_key(blob, plan, plan_id, self.enrolment, holder, body_bytes)

    def accept_contribution(
        self, blob: bytes, plan: RoundPlan, plan_id: str, group: Group, client: str, body_bytes: int
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
        check_bound(message, plan_id, group.name)
        return message

    def accept_link(
        self, blob: bytes, plan: RoundPlan, plan_id: str, group: Group, client: str, body_bytes: int
    ) -> Link:
        """Server, third in a ring: a client's word on the hops that it received and sent."""
        return check_link(blob, plan, plan_id, group, self.enrolment, client, body_bytes)

    def request(
        self,
        plan: RoundPlan,
        plan_id: str,
        group: Group,
        uploads: Mapping[str, str],
        body: bytes = b"",
    ) -> bytes:
        """Server, fourth: ask for the sum of these uploads (client → identity) and no others.

        ProtocolError if too few contributions arrived.
        """
        included = check_included(plan, group, list(uploads))
        message = OpeningRequest(
            **plan.stage._asdict(),
            sender=SERVER,
            plan=plan_id,
            group=group.name,
            participants=included.participants,
            contributions=tuple(uploads.values()),
            body=body,
        )
        return seal(message, self.key)

    def accept_key_opening(
        self, blob: bytes, request: OpeningRequest, request_id: str, holder: str, body_bytes: int
    ) -> KeyOpening:
        """Server, fifth: a holder's share of the requested key sum."""
        message = _from_holder(blob, KeyOpening, request.stage, self.enrolment, holder, body_bytes)
        if (message.plan, message.group) != (request.plan, request.group):
            raise ProtocolError("share is of another plan or group", where=holder)
        if message.request != request_id:
            raise ProtocolError("share answers another request", where=holder)
        return message


def group_key(accepted: Accepted, holder: str, group: Group) -> bytes:
    """The public key that a decryptor made for one group of an accepted plan. Clients run it.

    Its round key carries one per group, all of a length, in the plan's order.
    """
    groups, body = accepted.plan.groups, accepted.keys[holder].body
    at, size = groups.index(group), len(body) // len(groups)
    return body[at * size : (at + 1) * size]


def reference_of(plan_id: str, group: str) -> bytes:
    """The 32 bytes that a group's public polynomials are expanded from. All parties can run it."""
    return bytes.fromhex(digest(canonical(["reference", plan_id, group])))


def opening_of(
    plan: RoundPlan,
    opened: Opened,
    participants: Iterable[str],
    request: str,
    integers: IntVector,
    *,
    sender: str,
) -> Opening:
    """The message around one group's sum. The party that signs openings runs it."""
    body = integers.astype("<i8").tobytes()
    return Opening(
        session=plan.session,
        round=plan.round,
        attempt=opened.attempt,
        sender=sender,
        plan=opened.plan,
        group=opened.group,
        participants=tuple(participants),
        request=request,
        sha256=digest(body),
        body=body,
    )


def check_bound(message: Contribution | OpeningRequest | Link, plan_id: str, group: str) -> None:
    """Return if the message belongs to this plan and group. Server and key holders run it."""
    if message.plan != plan_id or message.group != group:
        raise ProtocolError("message belongs to another plan or group", where=message.sender)


def ring_of(plan: RoundPlan, group: Group) -> tuple[str, ...]:
    """The clients of a group in the order of the ring; who begins it changes with the round."""
    start = plan.round % len(group.participants)
    return group.participants[start:] + group.participants[:start]


def check_link(
    blob: bytes,
    plan: RoundPlan,
    plan_id: str,
    group: Group,
    enrolment: Enrolment,
    client: str,
    body_bytes: int,
) -> Link:
    """A client's link of the ring; only the first client's has a body. Server, key holder run it.

    `body_bytes` is the length of the sum.
    """
    first = client == ring_of(plan, group)[0]
    message = unseal(
        blob,
        Link,
        plan.stage,
        sender=client,
        verify_key=enrolment.verify_key(client),
        body_bytes=body_bytes if first else 0,
    )
    check_bound(message, plan_id, group.name)
    return message


def check_key(
    blob: bytes, plan: RoundPlan, plan_id: str, enrolment: Enrolment, holder: str, body_bytes: int
) -> RoundKey:
    """A holder's public key for this plan. Server and clients run it."""
    if holder not in enrolment.holders:
        raise ProtocolError("party is no key holder", where=holder)
    message = _from_holder(blob, RoundKey, plan.stage, enrolment, holder, body_bytes)
    if message.plan != plan_id:
        raise ProtocolError("round key was made for another plan", where=holder)
    return message


def check_opening(blob: bytes, plan: RoundPlan, opened: Opened, enrolment: Enrolment) -> Opening:
    """The exact sum of one group. Server and clients run it; `opened` says under which plan."""
    at = Stage(plan.session, plan.round, opened.attempt)
    group, sender = plan.group(opened.group), enrolment.opener
    message = _from_holder(blob, Opening, at, enrolment, sender, 8 * plan.width_of(group))
    expected = (opened.plan, opened.group, digest(message.body))
    if (message.plan, message.group, message.sha256) != expected:
        raise ProtocolError("opening is of another plan, group or sum", where=sender)
    check_included(plan, group, message.participants)
    return message


def check_reading(
    blob: bytes, plan: RoundPlan, plan_id: str, group: Group, enrolment: Enrolment, request: str
) -> NDArray[np.float64]:
    """The approximate sum that a group's first client read. The server of `slots` runs it."""
    reader, size = holder_name(group.participants[0]), 8 * plan.width_of(group)
    message = _from_holder(blob, Reading, plan.stage, enrolment, reader, size)
    if (message.plan, message.group, message.request) != (plan_id, group.name, request):
        raise ProtocolError("reading is of another plan or request", where=reader)
    if not np.isfinite(message.floats).all() or np.abs(message.floats).max() >= _LARGEST_READING:
        raise ProtocolError("reading is out of range", where=reader)
    return message.floats


def _from_holder(
    blob: bytes, expected: type[M], at: Stage, enrolment: Enrolment, sender: str, body_bytes: int
) -> M:
    refusal: type[Message] = Refusal
    if kind_of(blob) is refusal:
        raise AbsentError(
            "the key holder refused",
            where=f"{sender}, round {at.round}, attempt {at.attempt}",
            why="it gives no reasons to those it refuses",
            fix="look into its own log, then start a new attempt",
        )
    return unseal(
        blob,
        expected,
        at,
        sender=sender,
        verify_key=enrolment.verify_key(sender),
        body_bytes=body_bytes,
    )

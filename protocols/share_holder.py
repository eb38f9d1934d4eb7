"""One of several key holders: it is sent sealed shares of one-time keys, and returns a sum of them.

It never sees a ciphertext. What it returns, the share of Σα·s over exactly the clients of a
request, opens the sum of these clients' contributions and nothing else.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from protocols.envelope import unseal
from protocols.errors import ProtocolError
from protocols.holding import Holding
from protocols.messages import KeyOpening, KeyShare, Message, OpeningRequest, RoundPlan
from protocols.multikey import multikey_preset
from protocols.policy import check_included
from protocols.sealing import SealingKey
from protocols.sharing import expand, weighted_share

Place = tuple[str, str]
"""A group and a client of it."""


@dataclass
class _Attempt:
    """The live attempt: its plan and key, the places still awaited, the shares that came."""

    plan: RoundPlan
    plan_id: str
    secret: SealingKey
    awaited: list[Place]
    shares: dict[Place, tuple[str, bytes]] = field(default_factory=dict)


class ShareHolder(Holding):
    """Plan → key shares in the plan's order, with gaps where one dropped out → requests."""

    collects: ClassVar[type[Message]] = KeyShare
    _attempt: _Attempt | None = None

    def _start(self, plan: RoundPlan, plan_id: str, pending: list[str]) -> bytes:
        awaited = [(name, client) for name in pending for client in plan.group(name).participants]
        self._attempt = _Attempt(plan, plan_id, SealingKey(), awaited)
        return self._attempt.secret.public

    def _forget(self) -> None:
        self._attempt = None

    def _collect(self, blob: bytes) -> None:
        """Unseal and check the next client's share; whoever stands before it has dropped out."""
        attempt = self._live()
        position, message = self._author(blob, attempt)
        place = attempt.awaited[position]
        if message.plan != attempt.plan_id or message.holder != self.name:
            raise ProtocolError("share is for another plan or holder", where=message.sender)
        share = attempt.secret.open(message.body, attempt.plan_id, *place, self.name)
        expand(share, multikey_preset(attempt.plan.preset))
        attempt.shares[place] = message.contribution, share
        del attempt.awaited[: position + 1]

    def _checked(self, request: OpeningRequest, request_id: str) -> KeyOpening:
        """The share of Σα·s for a request that names this plan and clients whose shares are here.

        The group's shares are destroyed with it.
        """
        attempt = self._live()
        plan = attempt.plan
        if request.stage != plan.stage or request.plan != attempt.plan_id:
            raise ProtocolError("request is of another attempt", where=request.group)
        if request.body:
            raise ProtocolError("request has a body", where=request.group)
        group = check_included(plan, plan.group(request.group), request.participants)
        places = [(group.name, client) for client in group.participants]
        if not all(place in attempt.shares for place in places):
            raise ProtocolError("a share is missing", where=group.name)
        if tuple(attempt.shares[place][0] for place in places) != request.contributions:
            raise ProtocolError("request names other contributions", where=group.name)
        shares = [attempt.shares[place][1] for place in places]
        body = weighted_share(multikey_preset(plan.preset), shares, group.alphas)
        attempt.shares = {at: kept for at, kept in attempt.shares.items() if at[0] != group.name}
        return KeyOpening(
            **plan.stage._asdict(),
            sender=self.name,
            plan=request.plan,
            group=group.name,
            request=request_id,
            body=body,
        )

    def _author(self, blob: bytes, attempt: _Attempt) -> tuple[int, KeyShare]:
        """The first awaited place whose client signed this share for its group, and the share."""
        for position, (group, client) in enumerate(attempt.awaited):
            key = self._enrolment.verify_key(client)
            try:
                message = unseal(blob, KeyShare, attempt.plan.stage, sender=client, verify_key=key)
            except ProtocolError:
                continue
            if message.group == group:
                return position, message
        raise ProtocolError("share is of nobody who is awaited", where=self.name)

    def _live(self) -> _Attempt:
        if self._attempt is None:
            raise ProtocolError("no attempt is open", where=self.name)
        return self._attempt

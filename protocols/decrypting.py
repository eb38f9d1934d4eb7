"""The decryptor: one holder with whole keys, one for each group, which it draws per attempt.

Of ciphertexts it recomputes each sum from the clients' signed uploads and opens that sum, or
nothing. Of a ring it sees the sum alone, signed by the client that began the ring: it opens that
if each client of the plan has signed which hops it received and sent, and these fit together.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from protocols.envelope import identity, kind_of, unseal
from protocols.errors import ProtocolError
from protocols.holding import Holding
from protocols.messages import (
    Contribution,
    Group,
    Link,
    Message,
    Opened,
    Opening,
    OpeningRequest,
    RoundPlan,
)
from protocols.parties import check_bound, check_link, opening_of, ring_of
from protocols.policy import DECRYPTOR, Enrolment
from protocols.residues import WeightedSum
from protocols.rlwe import preset
from protocols.tenseal_ckks import RoundSecret


@dataclass
class _Attempt(ABC):
    """The live attempt: its plan, a key per group, and what came in so far, in the plan's order."""

    plan: RoundPlan
    plan_id: str
    secrets: dict[str, RoundSecret]
    pending: list[Group]
    uploads: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.begin()

    @property
    def sum_bytes(self) -> int:
        """Bytes of a ciphertext of the group that is next."""
        return preset(self.plan.preset).ciphertext_bytes(self.plan.width_of(self.pending[0]))

    def begin(self) -> None:
        """Wait for the first message of the next group."""
        self.uploads = []

    @abstractmethod
    def take(self, blob: bytes, client: str, enrolment: Enrolment) -> None:
        """Check and keep the message of the client whose turn it is."""

    @abstractmethod
    def sum(self, request: OpeningRequest) -> bytes:
        """The sum to open, once all messages came; ProtocolError if it is not what they say."""


class _Uploads(_Attempt):
    """The ciphertexts themselves, added as they come."""

    def begin(self) -> None:
        super().begin()
        if self.pending:
            width = self.plan.width_of(self.pending[0])
            self._total = WeightedSum(preset(self.plan.preset), width)

    def take(self, blob: bytes, client: str, enrolment: Enrolment) -> None:
        group = self.pending[0]
        message = unseal(
            blob,
            Contribution,
            self.plan.stage,
            sender=client,
            verify_key=enrolment.verify_key(client),
            body_bytes=self.sum_bytes,
        )
        check_bound(message, self.plan_id, group.name)
        self._total.add(message.body, group.among([client]).total)

    def sum(self, request: OpeningRequest) -> bytes:
        if request.body != self._total.body():
            raise ProtocolError("sum is not that of the contributions", where=request.group)
        return request.body


class _Links(_Attempt):
    """What each client of a ring signed; the first one's link has the sum."""

    def begin(self) -> None:
        super().begin()
        self._links = dict[str, Link]()

    def take(self, blob: bytes, client: str, enrolment: Enrolment) -> None:
        group, expected = self.pending[0], self.sum_bytes
        link = check_link(blob, self.plan, self.plan_id, group, enrolment, client, expected)
        self._links[client] = link

    def sum(self, request: OpeningRequest) -> bytes:
        links = [self._links[name] for name in ring_of(self.plan, self.pending[0])]
        before = [links[-1], *links[:-1]]
        closed = all(a.sent == b.received for a, b in zip(before, links, strict=True))
        if not closed or request.body:
            raise ProtocolError("links do not close the ring", where=request.group)
        return links[0].body


class Decrypting(Holding):
    """Plan → what the clients of one group send, in the plan's order → request → the next group."""

    collects: ClassVar[type[Message]] = Contribution
    _attempt: _Attempt | None = None

    def _start(self, plan: RoundPlan, plan_id: str, pending: list[str]) -> bytes:
        secrets = {group.name: RoundSecret(preset(plan.preset)) for group in plan.groups}
        kind = _Links if plan.mode == "ring/decryptor" else _Uploads
        self._attempt = kind(plan, plan_id, secrets, [plan.group(name) for name in pending])
        return b"".join(secret.public_body for secret in secrets.values())

    def _forget(self) -> None:
        self._attempt = None

    def _collect(self, blob: bytes) -> None:
        """Take the next client's message. One that is not awaited is left out."""
        attempt = self._live()
        group, position = attempt.pending[0], len(attempt.uploads)
        if position == len(group.participants):
            raise ProtocolError("more contributions than participants", where=group.name)
        attempt.take(blob, group.participants[position], self._enrolment)
        attempt.uploads.append(identity(blob))

    def _is_collected(self, blob: bytes) -> bool:
        """Uploads and links get no answer."""
        try:
            return kind_of(blob) in (Contribution, Link)
        except ProtocolError:
            return False

    def _checked(self, request: OpeningRequest, request_id: str) -> Opening:
        """The opening of a request that names this plan, these messages and their very sum."""
        attempt = self._live()
        plan, group = attempt.plan, attempt.pending[0]
        if request.stage != plan.stage:
            raise ProtocolError("request is of another attempt", where=group.name)
        check_bound(request, attempt.plan_id, group.name)
        complete = request.participants == group.participants
        if not complete or list(request.contributions) != attempt.uploads:
            raise ProtocolError("request names other contributions", where=group.name)
        body = attempt.sum(request)
        secret = attempt.secrets.pop(group.name)
        integers = secret.open_sum(body, plan.width_of(group), group.total)
        opened = Opened(group=group.name, attempt=plan.attempt, plan=attempt.plan_id)
        attempt.pending.pop(0)
        attempt.begin()
        return opening_of(plan, opened, group.participants, request_id, integers, sender=DECRYPTOR)

    def _live(self) -> _Attempt:
        if self._attempt is None or not self._attempt.pending:
            raise ProtocolError("no attempt is open", where=DECRYPTOR)
        return self._attempt

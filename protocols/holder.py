"""The key holder's rules: what it answers to each message, and what it writes down first.

Per attempt it draws a fresh key; it recomputes each sum from the clients' signed uploads and
opens at most one per round and group. What it promised is in its journal before anybody hears of
it: a plan, which closes all earlier attempts of the round, before the attempt's key exists; an
opening before it is sent. Secret keys live in memory only. After a crash the stored openings are
returned, and the rest needs a new attempt.
"""

from dataclasses import dataclass, field
from pathlib import Path

from protocols.chain import SigningKey
from protocols.envelope import authentic, identity, kind_of, outline, seal, unseal
from protocols.errors import NatflError, ProtocolError
from protocols.messages import (
    Contribution,
    Group,
    Opened,
    Opening,
    OpeningRequest,
    Refusal,
    RoundKey,
    RoundPlan,
)
from protocols.parties import check_bound, opening_of
from protocols.policy import DECRYPTOR, SERVER, Enrolment, check_plan, check_retry, check_subset
from protocols.residues import WeightedSum
from protocols.rlwe import preset
from protocols.tenseal_ckks import RoundSecret
from protocols.transcript import Transcript


@dataclass
class _Attempt:
    """The live attempt: its plan, its key, and what came in so far, in the plan's order."""

    plan: RoundPlan
    plan_id: str
    secret: RoundSecret
    pending: list[Group]
    total: WeightedSum = field(init=False)
    uploads: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.total = WeightedSum(preset(self.plan.preset), self.plan.size)
        self.uploads = []


class Holder:
    """The decryptor's state machine: one message in, its answers out.

    Plan → contributions of one group in the plan's order → request → the next group. Whatever
    does not fit is answered with one constant refusal; an attempt whose request was refused is
    over, and its key is gone.
    """

    def __init__(self, folder: Path, enrolment: Enrolment, key: SigningKey) -> None:
        self._enrolment, self._key = enrolment, key
        self._journal = Transcript(folder / "journal", durable=True)
        self._refusals = folder / "refusals.log"
        self._plans: dict[int, RoundPlan] = {}
        self._openings: dict[int, dict[str, bytes]] = {}
        for entry in self._journal.entries:
            if entry.kind in (RoundPlan.kind, Opening.kind):
                self._remember(self._journal.read(entry))
        self._attempt: _Attempt | None = None

    def answer(self, blob: bytes) -> list[bytes]:
        """Run on every message that comes in. A contribution gets no answer, the others do."""
        try:
            kind = kind_of(blob)
            if kind is OpeningRequest:
                return [self._open(blob)]
            if kind is RoundPlan:
                return self._begin(blob)
            self._add(blob)
        except NatflError as error:
            self._log(error)
            return [] if _is_contribution(blob) else [self._refusal()]
        return []

    def close(self) -> None:
        """Destroy the live key, if any, and close the journal."""
        self._attempt = None
        self._journal.close()

    def _begin(self, blob: bytes) -> list[bytes]:
        """Accept a plan: close earlier attempts, then draw a key. One refused changes nothing."""
        plan = authentic(
            blob, RoundPlan, sender=SERVER, verify_key=self._enrolment.verify_key(SERVER)
        )
        check_plan(plan, self._enrolment)
        stored = self._openings.get(plan.round, {})
        if plan.round in self._plans:
            check_retry(plan, self._plans[plan.round], tuple(stored))
        check_subset(plan, self._plans.values())
        self._attempt = None
        self._journal.append(blob, SERVER, (DECRYPTOR,))
        self._remember(blob)
        pending = [group for group in plan.groups if group.name not in stored]
        self._attempt = _Attempt(plan, identity(blob), RoundSecret(preset(plan.preset)), pending)
        return [self._round_key(self._attempt, list(stored.values())), *stored.values()]

    def _add(self, blob: bytes) -> None:
        """Add α times the next client's upload. One that is not awaited is left out."""
        attempt = self._live()
        group, position = attempt.pending[0], len(attempt.uploads)
        if position == len(group.participants):
            raise ProtocolError("more contributions than participants", where=group.name)
        client = group.participants[position]
        message = unseal(
            blob,
            Contribution,
            attempt.plan.stage,
            sender=client,
            verify_key=self._enrolment.verify_key(client),
            body_bytes=preset(attempt.plan.preset).ciphertext_bytes(attempt.plan.size),
        )
        check_bound(message, attempt.plan_id, group.name)
        attempt.total.add(message.body, group.alphas[position])
        attempt.uploads.append(identity(blob))

    def _open(self, blob: bytes) -> bytes:
        """Open one group, once. The same request again gets the same bytes, another one nothing."""
        request = authentic(
            blob, OpeningRequest, sender=SERVER, verify_key=self._enrolment.verify_key(SERVER)
        )
        stored = self._openings.get(request.round, {}).get(request.group)
        if stored is not None:
            return _again(stored, identity(blob))
        attempt, self._attempt = self._live(), None
        opening = self._checked(attempt, request, identity(blob))
        sealed = seal(opening, self._key)
        self._journal.append(sealed, DECRYPTOR, (SERVER,))
        self._remember(sealed)
        attempt.pending.pop(0)
        if attempt.pending:
            attempt.begin()
            self._attempt = attempt
        return sealed

    def _checked(self, attempt: _Attempt, request: OpeningRequest, request_id: str) -> Opening:
        """The opening of a request that names this plan, these uploads and their very sum."""
        plan, group = attempt.plan, attempt.pending[0]
        if request.stage != plan.stage:
            raise ProtocolError("request is of another attempt", where=group.name)
        check_bound(request, attempt.plan_id, group.name)
        complete = len(attempt.uploads) == len(group.participants)
        if not complete or list(request.contributions) != attempt.uploads:
            raise ProtocolError("request names other contributions", where=group.name)
        if request.body != attempt.total.body():
            raise ProtocolError("sum is not that of the contributions", where=group.name)
        integers = attempt.secret.open_sum(request.body, plan.size, group.total)
        opened = Opened(group=group.name, attempt=plan.attempt, plan=attempt.plan_id)
        return opening_of(plan, opened, request_id, integers, sender=DECRYPTOR)

    def _round_key(self, attempt: _Attempt, stored: list[bytes]) -> bytes:
        openings = [message for message in map(outline, stored) if isinstance(message, Opening)]
        message = RoundKey(
            **attempt.plan.stage._asdict(),
            sender=DECRYPTOR,
            plan=attempt.plan_id,
            opened=tuple(
                Opened(group=past.group, attempt=past.attempt, plan=past.plan) for past in openings
            ),
            body=attempt.secret.public_body,
        )
        return seal(message, self._key)

    def _refusal(self) -> bytes:
        message = Refusal(session=self._enrolment.session, round=0, attempt=0, sender=DECRYPTOR)
        return seal(message, self._key)

    def _live(self) -> _Attempt:
        if self._attempt is None or not self._attempt.pending:
            raise ProtocolError("no attempt is open", where=DECRYPTOR)
        return self._attempt

    def _remember(self, blob: bytes) -> None:
        message = outline(blob)
        if isinstance(message, RoundPlan):
            self._plans[message.round] = message
        elif isinstance(message, Opening):
            self._openings.setdefault(message.round, {})[message.group] = blob

    def _log(self, error: NatflError) -> None:
        """Keep the reason on this side; nobody else learns it."""
        with self._refusals.open("a", encoding="utf-8") as file:
            file.write(f"{error}\n")


def _is_contribution(blob: bytes) -> bool:
    try:
        return kind_of(blob) is Contribution
    except ProtocolError:
        return False


def _again(stored: bytes, request_id: str) -> bytes:
    opening = outline(stored)
    if isinstance(opening, Opening) and opening.request == request_id:
        return stored
    raise ProtocolError("group was opened already, by another request", where=DECRYPTOR)

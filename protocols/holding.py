"""What every key holder does, whatever its key: accept a plan, collect, open a group once.

What it promised is in its journal before anybody hears of it: a plan, which closes all earlier
attempts of the round, before the attempt's key exists; an answer before it is sent. Secrets live
in memory only. After a crash the stored answers are returned, and the rest needs a new attempt.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from protocols.chain import SigningKey
from protocols.envelope import authentic, identity, kind_of, outline, seal
from protocols.errors import NatflError, ProtocolError
from protocols.messages import (
    KeyOpening,
    Message,
    Opened,
    Opening,
    OpeningRequest,
    Refusal,
    RoundKey,
    RoundPlan,
)
from protocols.policy import SERVER, Enrolment, check_plan, check_retry, check_subset
from protocols.transcript import Transcript


class Holding(ABC):
    """A holder's state machine: one message in, its answers out.

    Plan → what it collects → request → the next group. Whatever does not fit is answered with
    one constant refusal; an attempt of which a request was refused is over, and its key is gone,
    as it is after the last group.
    """

    collects: ClassVar[type[Message]]
    """The kind that comes in unanswered between plan and request."""

    def __init__(self, folder: Path, enrolment: Enrolment, name: str, key: SigningKey) -> None:
        self.name, self._enrolment, self._key = name, enrolment, key
        self._journal = Transcript(folder / "journal", durable=True)
        self._refusals = folder / "refusals.log"
        self._journal.verify()

    def answer(self, blob: bytes) -> list[bytes]:
        """Run on every message that comes in. What is collected gets no answer, the rest does."""
        try:
            kind = kind_of(blob)
            if kind is OpeningRequest:
                return [self._open(blob)]
            if kind is RoundPlan:
                return self._begin(blob)
            self._collect(blob)
        except NatflError as error:
            self._log(error)
            return [] if self._is_collected(blob) else [self._refusal()]
        return []

    def close(self) -> None:
        """Destroy the live key, if any, and close the journal."""
        self._forget()
        self._journal.close()

    @abstractmethod
    def _start(self, plan: RoundPlan, plan_id: str, pending: list[str]) -> bytes:
        """Draw a fresh key for a plan that is in the journal; its public half."""

    @abstractmethod
    def _forget(self) -> None:
        """Destroy the live attempt's secrets."""

    @abstractmethod
    def _collect(self, blob: bytes) -> None:
        """Take in one client's message for the live attempt."""

    @abstractmethod
    def _checked(self, request: OpeningRequest, request_id: str) -> Opening | KeyOpening:
        """The answer to a request about a group that is shut, else an error: that ends the attempt.

        It is called with the live attempt only through its own state, and signed by the caller.
        """

    def _begin(self, blob: bytes) -> list[bytes]:
        """Accept a plan: close earlier attempts, then draw a key. One refused changes nothing."""
        plan = authentic(
            blob, RoundPlan, sender=SERVER, verify_key=self._enrolment.verify_key(SERVER)
        )
        check_plan(plan, self._enrolment)
        stored = self._answers(plan.round)
        earlier = self._plan(plan.round)
        if earlier is not None:
            check_retry(plan, earlier, tuple(stored))
        check_subset(plan, self._plans())
        self._forget()
        self._journal.append(blob, SERVER, (self.name,))
        pending = [group.name for group in plan.groups if group.name not in stored]
        public = self._start(plan, identity(blob), pending)
        return [self._round_key(plan, identity(blob), public), *self._handed_on(stored)]

    def _handed_on(self, stored: dict[str, bytes]) -> list[bytes]:
        """Which stored answers follow a round key."""
        return [blob for blob in stored.values() if kind_of(blob) is Opening]

    def _open(self, blob: bytes) -> bytes:
        """Open one group, once. The same request again gets the same bytes, another one nothing."""
        request = authentic(
            blob, OpeningRequest, sender=SERVER, verify_key=self._enrolment.verify_key(SERVER)
        )
        stored = self._answers(request.round).get(request.group)
        if stored is not None:
            return _again(stored, identity(blob))
        try:
            if len(request.contributions) != len(request.participants):
                raise ProtocolError("not one contribution per participant", where=request.group)
            answer = self._checked(request, identity(blob))
        except NatflError:
            self._forget()
            raise
        sealed = seal(answer, self._key)
        self._journal.append(sealed, self.name, (SERVER,))
        plan = self._plan(request.round)
        if plan and {group.name for group in plan.groups} <= self._answers(request.round).keys():
            self._forget()
        return sealed

    def _round_key(self, plan: RoundPlan, plan_id: str, public: bytes) -> bytes:
        past = map(outline, self._answers(plan.round).values())
        message = RoundKey(
            **plan.stage._asdict(),
            sender=self.name,
            plan=plan_id,
            opened=tuple(
                Opened(group=answer.group, attempt=answer.attempt, plan=answer.plan)
                for answer in past
                if isinstance(answer, Opening | KeyOpening)
            ),
            body=public,
        )
        return seal(message, self._key)

    def _refusal(self) -> bytes:
        message = Refusal(session=self._enrolment.session, round=0, attempt=0, sender=self.name)
        return seal(message, self._key)

    def _plans(self) -> Iterator[RoundPlan]:
        """Every plan that this holder accepted, from its journal."""
        for entry in self._journal.entries:
            message = outline(self._journal.read(entry)) if entry.kind == RoundPlan.kind else None
            if isinstance(message, RoundPlan):
                yield message

    def _plan(self, round_number: int) -> RoundPlan | None:
        """The last one of a round."""
        plans = [plan for plan, _ in self._journal.recall(RoundPlan, round_number)]
        return plans[-1] if plans else None

    def _answers(self, round_number: int) -> dict[str, bytes]:
        """Group → the answer that this holder gave, from its journal."""
        opened = {sum_.group: blob for sum_, blob in self._journal.recall(Opening, round_number)}
        shares = self._journal.recall(KeyOpening, round_number)
        return opened | {share.group: blob for share, blob in shares}

    def _is_collected(self, blob: bytes) -> bool:
        try:
            return kind_of(blob) is self.collects
        except ProtocolError:
            return False

    def _log(self, error: NatflError) -> None:
        """Keep the reason on this side; nobody else learns it. A full disk stops no refusal."""
        with suppress(OSError), self._refusals.open("a", encoding="utf-8") as file:
            file.write(f"{error}\n")


def _again(stored: bytes, request_id: str) -> bytes:
    answer = outline(stored)
    if isinstance(answer, Opening | KeyOpening) and answer.request == request_id:
        return stored
    raise ProtocolError("group was opened already, by another request", where="key holder")

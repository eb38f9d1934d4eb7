"""The server's side of the exchange: sealed questions out, verified answers in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from protocols.chain import SigningKey
from protocols.errors import AbsentError, ProtocolError
from protocols.policy import SERVER, Enrolment
from protocols.secagg.topology import Absent as LeftOut
from secure_natfl.deploy.letter import open_answer, question
from secure_natfl.deploy.party import Absent, Exchange, Phase

Place = tuple[int, int]
"""A round and an attempt."""


@dataclass
class Post:
    """Asks parties in the server's name. sent, received: bytes by party, over its lifetime."""

    enrolment: Enrolment
    key: SigningKey
    exchange: Exchange
    deadlines: Mapping[Phase, float]
    sent: dict[str, int] = field(default_factory=dict)
    received: dict[str, int] = field(default_factory=dict)

    def ask(
        self, phase: Phase, place: Place, parts: Mapping[str, Sequence[bytes]], left_out: LeftOut
    ) -> dict[str, tuple[bytes, ...]]:
        """Ask these parties at once; the parts of every answer that holds.

        Whoever gave none in time, refused, or sent what does not verify is noted in `left_out`.
        """
        questions = {
            party: question(self.enrolment.session, phase, place, SERVER, party, own, self.key)
            for party, own in parts.items()
        }
        if not questions:
            return {}
        answers = self.exchange.ask(questions, phase, self.deadlines[phase])
        found: dict[str, tuple[bytes, ...]] = {}
        for party, asked in questions.items():
            self.sent[party] = self.sent.get(party, 0) + len(asked)
            with left_out.noted(party, ProtocolError):
                found[party] = self._checked(party, asked, answers.get(party, Absent("no answer")))
        return found

    def _checked(self, party: str, asked: bytes, got: bytes | Absent) -> tuple[bytes, ...]:
        if isinstance(got, Absent):
            raise AbsentError("no answer", where=party, why=got.why)
        self.received[party] = self.received.get(party, 0) + len(got)
        letter = open_answer(got, asked, party, self.enrolment.verify_key(party))
        if letter.header.refused:
            raise AbsentError(
                "it refused",
                where=party,
                why="a party gives no reasons to those it refuses",
                fix="its own people find them in its refusals.jsonl",
            )
        return letter.parts

"""Questions as the server of a kit would ask them."""

import os
from dataclasses import dataclass
from pathlib import Path

from protocols.chain import SigningKey
from protocols.envelope import seal
from protocols.messages import RoundPlan
from protocols.policy import SERVER
from protocols.secagg.topology import draft
from protocols.transcript import Transcript
from secure_natfl.deploy.agreement import Agreement, agreed
from secure_natfl.deploy.enrolled import Enrolled, read_enrolled
from secure_natfl.deploy.letter import Letter, open_answer, question
from secure_natfl.site_state import secret


@dataclass
class Asking:
    """A server's keys and list, to write right and wrong questions with."""

    enrolled: Enrolled
    key: SigningKey
    agreement: Agreement
    folder: Path

    @classmethod
    def of(cls, root: Path) -> "Asking":
        enrolled = read_enrolled(root / "server")
        key = SigningKey(secret(root / "server", "signing", os.urandom))
        return cls(enrolled, key, agreed(enrolled), root)

    def plan(self, number: int = 0, **changes: object) -> RoundPlan:
        """The plan of a round's first attempt, with changes."""
        count = self.agreement.config.proxies.per_round
        with Transcript(self.folder / "unused") as empty:
            drafted = draft(
                self.enrolled.enrolment,
                empty,
                round_number=number,
                groups=self.agreement.groups,
                layout=self.agreement.layout_id,
                size=self.agreement.layout.size,
                subset=range(number * count, (number + 1) * count),
            )
        return drafted.model_copy(update=changes)

    def sealed(self, number: int = 0, **changes: object) -> bytes:
        return seal(self.plan(number, **changes), self.key)

    def ask(
        self,
        phase: str,
        place: tuple[int, int],
        to: str,
        parts: list[bytes],
        *,
        session: str = "",
        key: SigningKey | None = None,
    ) -> bytes:
        session = session or self.enrolled.session
        return question(session, phase, place, SERVER, to, parts, key or self.key)

    def meet(self, to: str) -> bytes:
        return self.ask("meet", (0, 0), to, [self.enrolled.digest.encode()])

    def read(self, answer: bytes, asked: bytes, sender: str) -> Letter:
        key = self.enrolled.enrolment.verify_key(sender)
        return open_answer(answer, asked, sender, key)

    def refused(self, answer: bytes, asked: bytes, sender: str) -> bool:
        """Whether it is the one kind of no, signed by the party that was asked."""
        letter = self.read(answer, asked, sender)
        return letter.header.refused and not letter.parts

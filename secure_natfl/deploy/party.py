"""What a deployed federation is made of: parties that answer, and an exchange that asks them.

A round is a few phases. In each the server asks some parties one question of bytes and gets one
answer of bytes, or none. A party keeps all that it must not forget on its own disk, so it may be
killed at any moment and asked again: the same question gets the same answer, and costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, Protocol, get_args

Phase = Literal["meet", "plan", "contribute", "open", "learn", "close"]
"""The closed set of questions, in the order of a session; the middle four make a round."""

PHASES: Final[tuple[Phase, ...]] = get_args(Phase)


class Party(Protocol):
    """A site or a key holder: one question in, one answer out, whatever carries them."""

    @property
    def name(self) -> str:
        """What the enrolment calls it: a client's name, or an independent key holder's."""

    def handle(self, phase: str, body: bytes) -> bytes:
        """Answer a question, durably: a signed letter, of which a refusal is one.

        Never raises for what a message says: that is refused, logged once here, and changes
        nothing. RunFolderError or LedgerError where the party's own disk fails.
        """

    def close(self) -> None:
        """Destroy live keys and close every file."""


@dataclass(frozen=True)
class Absent:
    """No answer came in time, or an error in its place; both count as a dropout."""

    why: str


class Exchange(Protocol):
    """Carries questions to parties and answers back; what lies underneath is not its concern."""

    def ask(
        self, questions: Mapping[str, bytes], phase: Phase, deadline: float
    ) -> Mapping[str, bytes | Absent]:
        """Ask every named party at once; per party its answer, or that it is absent.

        deadline: seconds from the call. Answers are bytes as they came: the caller verifies them.
        """

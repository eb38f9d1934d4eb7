"""What sites and key holders have in common: one entry, checks, the journal, one kind of no."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from protocols.chain import SigningKey, digest
from protocols.durable import Claim
from protocols.errors import NatflError, ProtocolError, RunFolderError
from protocols.policy import SERVER
from secure_natfl.deploy.enrolled import read_enrolled
from secure_natfl.deploy.journal import Journal
from secure_natfl.deploy.letter import Letter, answer, open_question, refusal
from secure_natfl.deploy.party import PHASES, Phase
from secure_natfl.site_state import secret

REFUSALS: Final = "refusals.jsonl"
VETO: Final = "veto"
"""A file of this name in a party's folder stops it: nothing is answered until it is gone."""

Answering = Callable[[Letter], Sequence[bytes]]


class Desk(ABC):
    """A party in its folder, one process at a time; a `Party` of the exchange.

    name: as enrolled. folder: its own disk, with the enrolment list and its keys. ProtocolError
    for a list that the consortium did not sign, or under which this folder's key is nobody's.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self._name, self.folder = name, folder
        self.enrolled = read_enrolled(folder)
        self.key = SigningKey(secret(folder, "signing", os.urandom))
        if self._enrolled_key() != self.key.public.hex():
            raise ProtocolError(
                f"the enrolment list has another key for {name}",
                where=str(folder),
                fix="hand the consortium this folder's public.json, and take its new list",
            )
        self._lock = Claim(folder)
        self._journal = Journal(folder / "journal" / self.enrolled.session)
        self._server = self.enrolled.enrolment.verify_key(SERVER)

    @property
    def name(self) -> str:
        """What the enrolment calls this party."""
        return self._name

    def handle(self, phase: str, body: bytes) -> bytes:
        """Answer a question; see `secure_natfl.deploy.party.Party`."""
        known: Phase = phase if phase in PHASES else "meet"
        try:
            asked = open_question(
                body, self.enrolled.session, phase, SERVER, self.name, self._server
            )
            self._demand_no_veto()
            before = self._journal.answered(asked)
            if before is not None:
                return before
            answering = self._answers().get(known)
            if answering is None:
                raise ProtocolError("this party has no such phase", where=phase)
            found = answer(asked, answering(asked), self.key)
            # Training takes long: a veto that came meanwhile holds the answer back.
            self._demand_no_veto()
            self._journal.keep(asked, found)
        except RunFolderError as error:
            # The disk that fails may be this very one.
            with suppress(OSError):
                self._log(error, known, body)
            raise
        except NatflError as error:
            self._log(error, known, body)
            return refusal(body, self.enrolled.session, known, self.name, self.key)
        return found

    def close(self) -> None:
        """Let another process work here."""
        self._lock.close()

    @abstractmethod
    def _answers(self) -> Mapping[Phase, Answering]:
        """What this party does in each phase that it knows."""

    @abstractmethod
    def _enrolled_key(self) -> str | None:
        """The verify key that the list has for this party."""

    def _meet(self, asked: Letter) -> Sequence[bytes]:
        """The parties compare their enrolment lists."""
        if asked.parts != (self.enrolled.digest.encode(),):
            raise ProtocolError("the server goes by another enrolment list", where=self.name)
        return []

    def _demand_planned(self, asked: Letter) -> None:
        """A question within an attempt comes after its plan, and before the next one's."""
        if self._journal.latest("plan") != asked.header.place:
            raise ProtocolError(
                "no plan of this round and attempt was accepted last", where=self.name
            )

    def _demand_no_veto(self) -> None:
        if (self.folder / VETO).exists():
            raise ProtocolError(
                "this party takes no part",
                where=str(self.folder / VETO),
                why="its own people put a veto there",
                fix="remove the file to take part again",
            )

    def _log(self, error: NatflError, phase: Phase, body: bytes) -> None:
        """Keep the reason on this side, once for each question."""
        path, about = self.folder / REFUSALS, digest(body)
        if path.exists() and about in path.read_text(encoding="utf-8"):
            return
        line = {
            "utc": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            "phase": phase,
            "question": about,
            "kind": type(error).__name__,
            "what": str(error),
        }
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

"""An independent key holder: a body of its own, with a share of every one-time key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from protocols.errors import ProtocolError
from protocols.holder_process import open_holding
from secure_natfl.deploy.desk import Answering, Desk
from secure_natfl.deploy.letter import Letter
from secure_natfl.deploy.party import Phase


class HolderParty(Desk):
    """A key holder in its folder; live keys are in this process's memory and nowhere else.

    After a restart it returns what it had answered; what it had not needs a new attempt.
    """

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name, folder)
        self._holding = open_holding(folder / "holder", self.enrolled.enrolment, self.key)

    def close(self) -> None:
        """Destroy the live key, if any, and let go of the folder."""
        self._holding.close()
        super().close()

    def _enrolled_key(self) -> str | None:
        return self.enrolled.enrolment.holders.get(self.name)

    def _answers(self) -> Mapping[Phase, Answering]:
        return {"meet": self._meet, "plan": self._plan, "open": self._open, "close": self._over}

    def _plan(self, asked: Letter) -> Sequence[bytes]:
        if not asked.parts:
            raise ProtocolError("a plan without its message", where=self.name)
        return self._holding.answer(asked.parts[0])

    def _open(self, asked: Letter) -> Sequence[bytes]:
        return [found for blob in asked.parts for found in self._holding.answer(blob)]

    def _over(self, asked: Letter) -> Sequence[bytes]:
        del asked
        return []

"""What a party answered, on its own disk: the same question gets the same bytes, and no other.

    folder/<round>-<attempt>-<phase>    SHA-256 of the question (64 hex digits), then the answer

A file appears whole or not at all, before the answer is sent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from protocols.errors import ProtocolError, RunFolderError
from secure_natfl.deploy.letter import Letter
from secure_natfl.deploy.party import Phase
from secure_natfl.run_folder import write

_KEPT_ROUNDS: Final = 2
_DIGEST: Final = 64


class Journal:
    """The answers of one party in one session; one process at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._latest: dict[str, tuple[int, int]] = {}
        for file in folder.iterdir():
            if file.suffix != ".part":
                round_number, attempt, phase = file.name.split("-")
                self._advance(phase, (int(round_number), int(attempt)))

    def answered(self, asked: Letter) -> bytes | None:
        """The answer to this very question, None if it is new.

        ProtocolError for another question of the same place, or one that was overtaken.
        """
        head = asked.header
        file = self._file(head.phase, head.place)
        if file.exists():
            stored = file.read_bytes()
            if stored[:_DIGEST] == asked.digest.encode():
                return stored[_DIGEST:]
            raise _refused("another question was answered at this round and attempt")
        if head.place < self._latest.get(head.phase, head.place):
            raise _refused("a later question was answered already")
        return None

    def keep(self, asked: Letter, answer: bytes) -> None:
        """Write an answer down, durably; those of rounds long gone are removed."""
        head = asked.header
        try:
            write(self._file(head.phase, head.place), asked.digest.encode() + answer)
        except OSError as error:
            raise RunFolderError(
                "an answer cannot be kept",
                where=str(self._folder),
                why=error.strerror or str(error),
                fix="free space or rights there; the question is asked again",
            ) from error
        self._advance(head.phase, head.place)
        for file in self._folder.iterdir():
            if int(file.name.split("-")[0]) <= head.round - _KEPT_ROUNDS:
                file.unlink(missing_ok=True)

    def latest(self, phase: Phase) -> tuple[int, int] | None:
        """Round and attempt of the latest question of a phase that was answered."""
        return self._latest.get(phase)

    def _advance(self, phase: str, place: tuple[int, int]) -> None:
        self._latest[phase] = max(place, self._latest.get(phase, place))

    def _file(self, phase: Phase, place: tuple[int, int]) -> Path:
        return self._folder / f"{place[0]}-{place[1]}-{phase}"


def _refused(why: str) -> ProtocolError:
    return ProtocolError("question refused", where="journal", why=why, fix="resume the session")

"""Exchanges without a network: parties in this process, or each in a process of its own."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from protocols.errors import NatflError
from protocols.transport import read_frame, write_frame
from secure_natfl.deploy.letter import LIMIT
from secure_natfl.deploy.party import Absent, Party, Phase


class Beside:
    """Parties of this process, asked one after the other; a deadline is not kept."""

    def __init__(self, parties: Mapping[str, Party]) -> None:
        self._parties = dict(parties)

    def ask(
        self, questions: Mapping[str, bytes], phase: Phase, deadline: float
    ) -> Mapping[str, bytes | Absent]:
        """See `party.Exchange`; a party whose own disk fails is absent."""
        del deadline
        found: dict[str, bytes | Absent] = {}
        for name, body in questions.items():
            try:
                found[name] = self._parties[name].handle(phase, body)
            except (NatflError, OSError, KeyError) as error:
                found[name] = Absent(str(error) or type(error).__name__)
        return found


class Sockets:
    """Parties in processes of their own (`secure_natfl.deploy.serve`), one Unix socket each."""

    def __init__(self, sockets: Mapping[str, Path]) -> None:
        self._sockets = dict(sockets)

    def ask(
        self, questions: Mapping[str, bytes], phase: Phase, deadline: float
    ) -> Mapping[str, bytes | Absent]:
        """See `party.Exchange`; all are asked at once."""
        with ThreadPoolExecutor(max_workers=len(questions)) as pool:
            asked = {
                name: pool.submit(self._one, name, phase, body, deadline)
                for name, body in questions.items()
            }
            return {name: future.result() for name, future in asked.items()}

    def _one(self, name: str, phase: Phase, body: bytes, deadline: float) -> bytes | Absent:
        try:
            return ask_socket(self._sockets[name], phase, body, deadline)
        except (OSError, NatflError, KeyError) as error:
            return Absent(str(error) or type(error).__name__)


def ask_socket(path: Path, phase: str, body: bytes, deadline: float) -> bytes:
    """One question to a party's process; OSError or ProtocolError where no answer comes."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(deadline)
        connection.connect(str(path))
        with connection.makefile("wb") as outward, connection.makefile("rb") as inward:
            write_frame(outward, phase.encode())
            write_frame(outward, body)
            found = read_frame(inward, LIMIT)
    if found is None:
        raise ConnectionResetError("the party's process ended")
    return found

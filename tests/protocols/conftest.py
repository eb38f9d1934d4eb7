"""One small federation for the protocol's tests: real parties, real holder, real bytes."""

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from protocols.chain import SigningKey, digest
from protocols.holder import Holder
from protocols.ledger import ReleaseKey
from protocols.mechanisms import Released
from protocols.messages import Floors, Group, RoundPlan
from protocols.parties import Client, Server
from protocols.policy import DECRYPTOR, Enrolment
from protocols.quantize import Layout, Segment
from protocols.rlwe import PK20_44
from protocols.secagg import Decryptor, Plain, draft
from protocols.transcript import Transcript
from protocols.transport import DecryptorProcess, Wire

NAMES = ("a", "b", "c", "d", "e", "f")


def released(values: np.ndarray, session: str = "study", round_number: int = 1) -> Released:
    """A release without mechanism and ledger, for tests of what comes after them."""
    made = object.__new__(Released)
    layout = Layout((Segment("logits", len(values), 1),))
    fields = {"values": values.astype(np.int64), "layout": layout}
    for name, value in {**fields, "key": ReleaseKey(session, round_number)}.items():
        object.__setattr__(made, name, value)
    return made


class Beside:
    """The real holder, reached without a process."""

    def __init__(self, holder: Holder) -> None:
        self.holder, self._out = holder, deque[bytes]()

    def write(self, blob: bytes) -> None:
        self._out.extend(self.holder.answer(blob))

    def read(self) -> bytes:
        return self._out.popleft()


class World:
    """Keys, enrolment and stored integers of a small federation, in a folder of its own."""

    def __init__(self, folder: Path, size: int = 40, rounds: int = 12) -> None:
        self.folder, self.size = folder, size
        self.server_key, self.holder_key = (SigningKey.generate(os.urandom) for _ in range(2))
        self.keys = {name: SigningKey.generate(os.urandom) for name in NAMES}
        draw = np.random.default_rng(7)
        limit = PK20_44.value_limit
        self.values = {
            (name, number): draw.integers(-limit, limit + 1, size)
            for name in NAMES
            for number in range(rounds)
        }
        self.transcript = Transcript(folder / "transcript")
        self.wire = Wire(self.transcript)

    def enrolment(self, holder: bytes | None = None, **changes: object) -> Enrolment:
        fields = {
            "session": "study",
            "server": self.server_key.public.hex(),
            "holder": (holder or self.holder_key.public).hex(),
            "clients": {name: key.public.hex() for name, key in self.keys.items()},
            "preset": PK20_44.name,
            "proxies": digest(b"proxies"),
            "terms": digest(b"terms"),
            "floors": Floors(),
        }
        return Enrolment(**{**fields, **changes})

    def release(self, name: str) -> Callable[[RoundPlan], Released]:
        return lambda plan: released(self.values[name, plan.round], plan.session, plan.round)

    def server(self, enrolment: Enrolment) -> Server:
        return Server(self.server_key, enrolment)

    def clients(self, enrolment: Enrolment) -> dict[str, Client]:
        return {
            name: Client(name, key, enrolment, self.release(name))
            for name, key in self.keys.items()
        }

    def groups(self, *members: str, alphas: tuple[int, ...] = (1, 2, 3, 4, 5, 6)) -> list[Group]:
        members = members or ("abcd",)
        return [
            Group(name=f"g{at}", participants=tuple(part), alphas=alphas[: len(part)])
            for at, part in enumerate(members)
        ]

    def plan(self, number: int = 1, **changes: object) -> RoundPlan:
        fields = {
            "round_number": number,
            "groups": self.groups(),
            "layout": digest(b"layout"),
            "size": self.size,
            "subset": np.arange(number * 10, number * 10 + 10),
        }
        enrolment = changes.pop("enrolment", None) or self.enrolment()
        return draft(enrolment, self.transcript, **{**fields, **changes})

    def total(self, group: Group, number: int = 1) -> np.ndarray:
        parts = zip(group.participants, group.alphas, strict=True)
        return sum(alpha * self.values[name, number] for name, alpha in parts)

    def holder(self) -> Holder:
        folder = self.folder / "decryptor"
        folder.mkdir(exist_ok=True)
        return Holder(folder, self.enrolment(), self.holder_key)

    def beside(self) -> Decryptor:
        """The decryptor topology with the holder in this process."""
        self.wire.connect(DECRYPTOR, Beside(self.holder()))
        enrolment = self.enrolment()
        return Decryptor(self.server(enrolment), self.clients(enrolment), self.wire)

    def apart(self, process: DecryptorProcess) -> tuple[Decryptor, Enrolment]:
        """The decryptor topology with the holder in a process of its own."""
        enrolment = self.enrolment(process.verify_key)
        process.enrol(enrolment)
        self.wire.connect(DECRYPTOR, process)
        topology = Decryptor(self.server(enrolment), self.clients(enrolment), self.wire)
        return topology, enrolment

    def plain(self) -> tuple[Plain, Enrolment]:
        enrolment = self.enrolment(self.server_key.public)
        return Plain(self.server(enrolment), self.clients(enrolment), self.wire), enrolment


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def new_world(tmp_path: Path) -> Callable[..., World]:
    def make(name: str, **sizes: int) -> World:
        folder = tmp_path / name
        folder.mkdir()
        return World(folder, **sizes)

    return make


@pytest.fixture
def make_released() -> Callable[..., Released]:
    return released

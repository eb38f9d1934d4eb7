"""One small federation for the protocol's tests: real parties, real holder, real bytes."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from protocols.chain import SigningKey, digest
from protocols.decrypting import Decrypting
from protocols.envelope import identity, kind_of, outline, seal
from protocols.holding import Holding
from protocols.ledger import ReleaseKey
from protocols.mechanisms import Released
from protocols.messages import Floors, Group, OpeningRequest, RoundKey, RoundPlan
from protocols.multikey import MK18_39, multikey_preset
from protocols.multikey_ckks import protect
from protocols.parties import Accepted, Client, Server, reference_of
from protocols.policy import DECRYPTOR, SERVER, Enrolment, holder_name
from protocols.quantize import Layout, Segment
from protocols.rlwe import PK18_44
from protocols.sealing import PUBLIC_BYTES
from protocols.secagg import Decryptor, Plain, Threshold, draft
from protocols.share_holder import ShareHolder
from protocols.transcript import Transcript
from protocols.transport import Beside, HolderProcess, Wire
from tests.protocols.shared_rounds import plan_of as plan_of
from tests.protocols.shared_rounds import topology as topology

NAMES = ("a", "b", "c", "d", "e", "f")


def released(values: np.ndarray, session: str = "study", round_number: int = 1) -> Released:
    """A release without mechanism and ledger, for tests of what comes after them."""
    made = object.__new__(Released)
    layout = Layout((Segment("logits", len(values), 1),))
    fields = {"values": values.astype(np.int64), "layout": layout}
    for name, value in {**fields, "key": ReleaseKey(session, round_number)}.items():
        object.__setattr__(made, name, value)
    return made


class World:
    """Keys, enrolment and stored integers of a small federation, in a folder of its own."""

    def __init__(self, folder: Path, size: int = 40, rounds: int = 12) -> None:
        self.folder, self.size = folder, size
        self.server_key, self.holder_key = (SigningKey.generate(os.urandom) for _ in range(2))
        self.keys = {name: SigningKey.generate(os.urandom) for name in NAMES}
        self.holder_keys = {name: SigningKey.generate(os.urandom) for name in NAMES}
        self.holders: dict[str, ShareHolder] = {}
        draw = np.random.default_rng(7)
        limit = PK18_44.value_limit
        self.values = {
            (name, number): draw.integers(-limit, limit + 1, size)
            for name in NAMES
            for number in range(rounds)
        }
        self.transcript = Transcript(folder / "transcript")
        self.wire = Wire(self.transcript)

    def enrolment(self, holder: bytes | None = None, **changes: object) -> Enrolment:
        """A decryptor's federation, unless `changes` say otherwise."""
        fields = {
            "session": "study",
            "mode": "ckks/decryptor",
            "server": self.server_key.public.hex(),
            "holders": {DECRYPTOR: (holder or self.holder_key.public).hex()},
            "clients": {name: key.public.hex() for name, key in self.keys.items()},
            "preset": PK18_44.name,
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

    def holder(self) -> Decrypting:
        folder = self.folder / "decryptor"
        folder.mkdir(exist_ok=True)
        return Decrypting(folder, self.enrolment(), DECRYPTOR, self.holder_key)

    def beside(self) -> Decryptor:
        """The decryptor topology with the holder in this process."""
        self.wire.connect(DECRYPTOR, Beside(self.holder().answer))
        enrolment = self.enrolment()
        return Decryptor(self.server(enrolment), self.clients(enrolment), self.wire)

    def apart(self, process: HolderProcess) -> tuple[Decryptor, Enrolment]:
        """The decryptor topology with the holder in a process of its own."""
        enrolment = self.enrolment(process.verify_key)
        process.enrol(enrolment)
        self.wire.connect(DECRYPTOR, process)
        made = Decryptor(self.server(enrolment), self.clients(enrolment), self.wire)
        return made, enrolment

    def plain(self) -> tuple[Plain, Enrolment]:
        enrolment = self.enrolment(
            mode="plain/none", holders={SERVER: self.server_key.public.hex()}
        )
        return Plain(self.server(enrolment), self.clients(enrolment), self.wire), enrolment

    def shared(self, threshold: int = 4, malicious: int = 1, count: int = 6) -> Enrolment:
        """A federation whose first `count` clients hold key shares."""
        holders = {holder_name(name): self.holder_keys[name].public.hex() for name in NAMES[:count]}
        return self.enrolment(
            mode="ckks/threshold",
            holders=holders,
            threshold=threshold,
            malicious=malicious,
            preset=MK18_39.name,
        )

    def share_holder(self, client: str, enrolment: Enrolment) -> ShareHolder:
        folder = self.folder / holder_name(client)
        folder.mkdir(exist_ok=True)
        return ShareHolder(folder, enrolment, holder_name(client), self.holder_keys[client])

    def threshold(self, enrolment: Enrolment) -> Threshold:
        """The threshold topology with all holders in this process, opened from their folders."""
        for name in NAMES:
            if holder_name(name) in enrolment.holders:
                holder = self.share_holder(name, enrolment)
                self.holders[name] = holder
                self.wire.connect(holder.name, Beside(holder.answer))
        return Threshold(self.server(enrolment), self.clients(enrolment), self.wire)


class SharedAttempt:
    """One attempt with key shares as honest parties make it, message by message, to be bent."""

    def __init__(self, world: World, enrolment: Enrolment, plan: RoundPlan) -> None:
        self.world, self.enrolment, self.plan = world, enrolment, plan
        self.clients = world.clients(enrolment)
        self.blob = seal(plan, world.server_key)
        self.plan_id = identity(self.blob)
        self.keys: dict[str, bytes] = {}

    def begin(self, *holders: Holding) -> "SharedAttempt":
        """Send the plan; keep the keys of those holders that take it."""
        for holder in holders:
            (answer,) = holder.answer(self.blob)
            if kind_of(answer) is RoundKey:
                self.keys[holder.name] = answer
        return self

    def accepted(self, client: str) -> Accepted:
        own = self.clients[client].accept_plan(self.blob)
        return self.clients[client].accept_keys(self.keys, own, PUBLIC_BYTES)

    def upload(self, client: str, group: str = "g0") -> tuple[bytes, dict[str, bytes]]:
        """A client's contribution, and its sealed shares by holder."""
        own, part, member = self.accepted(client), self.plan.group(group), self.clients[client]
        member.demand_closed(own, part)
        made = protect(
            multikey_preset(self.plan.preset),
            member.draw(own),
            self.plan.span_of(part),
            reference=reference_of(self.plan_id, group),
            heaviest=max(part.alphas),
            holders=len(self.enrolment.holders),
            threshold=self.enrolment.threshold,
        )
        blob = member.contribute(own, part, made.body)
        shares = member.share_key(own, blob, part, made.shares)
        return blob, {outline(share).holder: share for share in shares}

    def request(self, uploads: dict[str, bytes], group: str = "g0", **changes: object) -> bytes:
        """What the server signs for these contributions; nothing of it is checked."""
        message = OpeningRequest(
            **self.plan.stage._asdict(),
            sender=SERVER,
            plan=self.plan_id,
            group=group,
            participants=tuple(uploads),
            contributions=tuple(identity(blob) for blob in uploads.values()),
        )
        return seal(message.model_copy(update=changes), self.world.server_key)


@pytest.fixture
def new_shared() -> type[SharedAttempt]:
    return SharedAttempt


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

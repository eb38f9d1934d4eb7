"""Ring rounds whose parties keep what they have in memory, and members that may lie."""

import numpy as np
import pytest

import protocols.secagg.ring as ring_module
from protocols.decrypting import Decrypting
from protocols.envelope import kind_of, outline, seal
from protocols.messages import Hop, Link
from protocols.policy import DECRYPTOR, SERVER
from protocols.residues import unpack
from protocols.rlwe import PK18_44
from protocols.secagg import Ring
from protocols.secagg.ring import Member
from protocols.transport import Beside, Wire

Q, N, FALSE_ALARM = PK18_44.prime, PK18_44.degree, 1e-6


class Circle:
    """The ring topology; it keeps what members and holder have in memory, for the tests."""

    def __init__(self, world, monkeypatch, wire=None):
        self.world, self.members, self.wire = world, {}, wire or world.wire
        members = self.members

        class Kept(Member):
            def __init__(self, client, accepted):
                super().__init__(client, accepted)
                members[client.name] = self

        monkeypatch.setattr(ring_module, "Member", Kept)
        self.enrolment = world.enrolment(mode="ring/decryptor")
        folder = world.folder / "decryptor"
        folder.mkdir(exist_ok=True)
        self.secret = None
        self.holder = Decrypting(folder, self.enrolment, DECRYPTOR, world.holder_key)
        self.wire.connect(DECRYPTOR, Beside(self.answer))
        self.clients = world.clients(self.enrolment)
        self.topology = Ring(world.server(self.enrolment), self.clients, self.wire)

    def answer(self, blob):
        answers = self.holder.answer(blob)
        if self.holder._attempt is not None and self.holder._attempt.secrets:
            self.secret = next(iter(self.holder._attempt.secrets.values()))
        return answers

    def play(self, number=1, **changes):
        self.plan = self.world.plan(number, enrolment=self.enrolment, **changes)
        return self.topology.play(self.plan)

    def hops(self):
        """The last attempt's hops as their receivers open them: sender → residues."""
        found = {}
        for hop, _ in self.world.transcript.recall(Hop, self.plan.round):
            if hop.attempt == self.plan.attempt:
                opened = self.members[hop.receiver]._open(hop, "hop", hop.group)
                found[hop.sender] = residues(opened)
        return found

    def total(self):
        links = [link for link, _ in self.world.transcript.recall(Link, self.plan.round)]
        (body,) = [link.body for link in links if link.body]
        return residues(body)

    def phase(self, blocks):
        """Phases modulo q of residues [blocks, 2, N]."""
        return np.concatenate([self.secret._phase(pair) for pair in blocks])


def residues(body):
    return unpack(body, 44, (Q,))[0].reshape(-1, 2, N)


def integers(phases):
    centred = (phases + Q // 2) % Q - Q // 2
    return (centred + PK18_44.scale // 2) // PK18_44.scale


@pytest.fixture
def circle(world, monkeypatch):
    return Circle(world, monkeypatch)


class Meddling(Wire):
    """A network, or a server that relays: what travels of one kind from one client is changed."""

    kind, sender, lie = Hop, "c", None

    def send(self, sender, receivers, blob):
        if kind_of(blob) is self.kind and sender in (self.sender, SERVER) and self.lie:
            blob = self.lie(blob) if outline(blob).sender == self.sender else blob
        super().send(sender, receivers, blob)


def resigned(key, **changes):
    return lambda blob: seal(outline(blob).model_copy(update=changes), key)

"""Rounds with shared keys, for the tests of the threshold mode: parties, cuts, liars."""

from collections import Counter

import pytest

from protocols.chain import digest
from protocols.envelope import kind_of, outline, seal
from protocols.messages import (
    Contribution,
    KeyShare,
    OpeningRequest,
    RoundKey,
    RoundPlan,
)
from protocols.policy import SERVER, holder_name
from protocols.secagg import Threshold
from protocols.transcript import Transcript
from protocols.transport import Beside, Wire

ALPHAS = (1, 1, 2, 2, 3, 4)
HOLDERS = tuple(holder_name(name) for name in "abcdef")


@pytest.fixture
def topology(world):
    """Six clients who are the six key holders, any four open, one may lie."""
    world.rules = world.shared()
    world.released = Counter()
    release = world.release

    def counted(name):
        inner = release(name)

        def draw(plan):
            world.released[name] += 1
            return inner(plan)

        return draw

    world.release = counted
    return world.threshold(world.rules)


@pytest.fixture
def plan_of(world):
    def make(*members, number=1, alphas=ALPHAS, groups=None, **changes):
        groups = groups or world.groups(*(members or ("abcdef",)), alphas=alphas)
        return world.plan(number, enrolment=world.rules, groups=groups, **changes)

    return make


def exact(world, aggregate, group, number=1):
    """Whether an aggregate is the sum over its participants, to the last bit."""
    expected = world.total(group.among(aggregate.participants), number)
    assert aggregate.sha256 == digest(aggregate.integers.astype("<i8").tobytes())
    return bool((aggregate.integers == expected).all())


def hook(world, before):
    """Call `before(sender, receivers, kind, blob)` ahead of everything that is sent."""
    send = world.wire.send

    def spied(sender, receivers, blob):
        before(sender, receivers, kind_of(blob), blob)
        send(sender, receivers, blob)

    world.wire.send = spied


def cut_at(world, parties, when):
    """Cut these parties off, once, at the first message for which `when(sender, kind)` holds."""
    waiting = list(parties)

    def before(sender, receivers, kind, blob):
        if when(sender, kind):
            while waiting:
                world.wire.cut(waiting.pop())

    hook(world, before)


class Liar:
    """A holder's connection whose answers a malicious one changes."""

    def __init__(self, holder, bend):
        self.inner, self.bend = Beside(holder.answer), bend

    def write(self, blob):
        self.inner.write(blob)

    def read(self):
        return self.bend(self.inner.read())


def reconnected(world, holders=None, cut=()):
    """The server anew: the same transcript, opened again, and fresh connections."""
    world.transcript.close()
    world.transcript = Transcript(world.folder / "transcript")
    world.wire = Wire(world.transcript)
    for holder in (holders or world.holders).values():
        world.wire.connect(holder.name, Beside(holder.answer))
    for party in cut:
        world.wire.cut(party)
    return Threshold(world.server(world.rules), world.clients(world.rules), world.wire)


def kinds(world, kind, number=1):
    return [
        entry
        for entry in world.transcript.entries
        if (entry.kind, entry.round)
        == (
            kind.kind,
            number,
        )
    ]


CLIENT_PHASES = {
    "before the plan": lambda sender, kind: kind is RoundPlan,
    "after the plan": lambda sender, kind: sender == SERVER and kind is RoundKey,
    "after the keys": lambda sender, kind: kind is Contribution,
    "between contribution and shares": lambda sender, kind: sender == "b" and kind is KeyShare,
    "after the contribution": lambda sender, kind: sender == SERVER and kind is OpeningRequest,
}


HOLDER_PHASES = {
    "before the plan": lambda sender, kind: kind is RoundPlan,
    "after the keys": lambda sender, kind: sender == SERVER and kind is RoundKey,
    "between contribution and shares": lambda sender, kind: kind is KeyShare,
    "after the shares": lambda sender, kind: sender == SERVER and kind is OpeningRequest,
}


def renamed(world, blobs):
    """Client b's shares with another contribution's name, signed by b."""
    return [
        seal(outline(blob).model_copy(update={"contribution": "0" * 64}), world.keys["b"])
        for blob in blobs
    ]

"""What is promised per mode: its rules, its sizes against real messages, its tables."""

from itertools import chain, combinations

import pytest

from protocols.coalition import Coalition
from protocols.envelope import outline
from protocols.holder_process import open_holding
from protocols.messages import Mode
from protocols.policy import DECRYPTOR, holder_name
from protocols.promises import PROMISES, Parties, markdown
from protocols.secagg import Decryptor
from protocols.secagg.ring import Ring
from protocols.secagg.slots import Slots
from protocols.slots import SLOTS18_140
from protocols.tenseal_slots import SlotsSecret
from protocols.transport import Beside

GROUP = tuple("abcde")
ENCRYPTED = ["ckks/threshold", "ckks/decryptor", "ring/decryptor"]


def every_coalition(threshold):
    """All sets of five clients, of three holders, server and network: 1,024."""
    holders = ("h1", "h2", "h3")
    parts = [*GROUP, *holders, "server", "network"]
    sets = chain.from_iterable(combinations(parts, size) for size in range(len(parts) + 1))
    for members in map(frozenset, sets):
        yield Coalition(
            GROUP,
            members & frozenset(GROUP),
            members & frozenset(holders),
            server="server" in members,
            network="network" in members,
            threshold=threshold,
        )


def test_there_is_a_promise_for_every_mode():
    assert set(PROMISES) == set(Mode.__args__)
    assert all(mode == promise.mode for mode, promise in PROMISES.items())
    assert all("\n" not in promise.malicious for promise in PROMISES.values())


@pytest.mark.parametrize("mode", sorted(PROMISES))
def test_whoever_joins_takes_nothing_away(mode):
    """More members never read less of those that are left, over 1,024 coalitions in pairs."""
    promise, found = PROMISES[mode], {}
    for one in every_coalition(threshold=2):
        found[one.clients, one.holders, one.server, one.network] = set(promise.exposed(one))
    assert len(found) == 1024
    for (clients, holders, server, network), read in found.items():
        for more in (
            *((clients | {name}, holders, server, network) for name in GROUP),
            *((clients, holders | {name}, server, network) for name in ("h1", "h2", "h3")),
            (clients, holders, True, network),
            (clients, holders, server, True),
        ):
            assert read - more[0] <= found[more]


@pytest.mark.parametrize("mode", sorted(PROMISES))
def test_all_others_always_read_and_nobody_reads_a_member(mode):
    for one in every_coalition(threshold=2):
        exposed = PROMISES[mode].exposed(one)
        assert not set(exposed) & one.clients
        assert PROMISES[mode].exposes(one) == bool(exposed)
        if len(one.clients) == 4:
            assert exposed == one.honest
        if len(one.clients) == 5:
            assert exposed == ()


@pytest.mark.parametrize("mode", ENCRYPTED)
def test_server_and_network_alone_read_nothing_where_something_is_encrypted(mode):
    wire = {"server": True, "network": True, "threshold": 2}
    assert not PROMISES[mode].exposes(Coalition(GROUP, **wire))
    assert not PROMISES[mode].exposes(Coalition(GROUP, frozenset("ad"), **wire))
    assert all(
        PROMISES[other].exposes(Coalition(GROUP, **wire))
        for other in PROMISES.keys() - {*ENCRYPTED}
    )


def threshold_round(world):
    enrolment = world.shared(threshold=4, malicious=1, count=6)
    return world.threshold(enrolment), enrolment, Parties(4, 6, 4, enrolment.preset)


def decryptor_round(world, mode="ckks/decryptor", kind=Decryptor):
    enrolment = world.enrolment(mode=mode)
    (world.folder / "decryptor").mkdir()
    holder = open_holding(world.folder / "decryptor", enrolment, world.holder_key)
    world.wire.connect(DECRYPTOR, Beside(holder.answer))
    topology = kind(world.server(enrolment), world.clients(enrolment), world.wire)
    return topology, enrolment, Parties(4, 1, 1, enrolment.preset)


def ring_round(world):
    return decryptor_round(world, "ring/decryptor", Ring)


def plain_round(world):
    topology, enrolment = world.plain()
    return topology, enrolment, Parties(4, 1, 1, enrolment.preset)


def slots_round(world):
    enrolment = world.enrolment(
        mode="slots/shared",
        holders={holder_name(name): key.public.hex() for name, key in world.keys.items()},
        preset=SLOTS18_140.name,
    )
    parts = world.server(enrolment), world.clients(enrolment), world.wire
    topology = Slots(*parts, SlotsSecret(SLOTS18_140), unsafe=True)
    return topology, enrolment, Parties(4, 6, 1, enrolment.preset)


@pytest.mark.parametrize(
    "begin", [threshold_round, decryptor_round, ring_round, plain_round, slots_round]
)
def test_the_stated_sizes_are_those_of_a_clients_real_messages(begin, world):
    """The first client of the plan, which sends most, and whatever opens the sum."""
    topology, enrolment, parties = begin(world)
    topology.play(world.plan(0, enrolment=enrolment))
    promise, sent = PROMISES[enrolment.mode], []
    for entry in world.transcript.entries:
        if entry.sender in ("a", holder_name("a")):
            sent.append(len(outline(world.transcript.read(entry)).body))
    assert sorted(promise.upload(parties, world.size)) == sorted(sent)
    kind = "key-opening" if enrolment.mode == "ckks/threshold" else "opening"
    answers = {
        len(outline(world.transcript.read(entry)).body)
        for entry in world.transcript.entries
        if entry.kind == kind
    }
    opening = promise.opening(parties, world.size)
    assert answers == set(opening)
    assert len(opening) == enrolment.threshold


def test_the_tables_are_whole_and_say_what_the_functions_say():
    coalitions, words = markdown().split("\n\n")
    rows = [line.split(" | ") for line in coalitions.splitlines()]
    assert len(rows) == 2 + 6
    assert {len(row) for row in rows} == {6}
    cells = [cell.strip(" |") for row in rows[2:] for cell in row[1:]]
    assert set(cells) == {"reads", "hidden"}
    assert [row[1] for row in rows[2:]] == ["hidden"] * 3 + ["reads"] * 3
    said = words.splitlines()
    assert len(said) == 2 + len(PROMISES)
    assert all(promise.malicious in words for promise in PROMISES.values())

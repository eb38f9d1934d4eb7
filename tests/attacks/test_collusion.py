"""Every coalition of small federations, with its real view and its members' real memory."""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest

import protocols.secagg.decryptor
import protocols.secagg.ring
import protocols.secagg.threshold
from attacks.collusion import read_single
from attacks.equations import Equations
from attacks.pooling import Memory, Pool, Round, coalitions
from protocols.envelope import identity
from protocols.holder_process import open_holding
from protocols.messages import RoundPlan
from protocols.policy import DECRYPTOR, SERVER, holder_name
from protocols.promises import PROMISES
from protocols.secagg import Decryptor, Threshold
from protocols.secagg.ring import Ring
from protocols.secagg.slots import Slots
from protocols.slots import SLOTS18_140
from protocols.tenseal_slots import SlotsSecret
from protocols.transport import Beside

ALPHAS = (1, 2, 3, 4, 4)
EVERYWHERE = [[SERVER], ["network"]]


def _world_class():
    """The protocol tests' small federation."""
    path = Path(__file__).parents[1] / "protocols" / "conftest.py"
    spec = importlib.util.spec_from_file_location("protocols_conftest", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.World


World = _world_class()


class Minds:
    """What each party has in memory, taken from the running parties as a curious one could."""

    def __init__(self, world, members):
        self.world, self.fields = world, {name: {} for name in members}

    def listen(self, holder):
        """The holder on the wire; its attempt's secret is noted while it is alive."""

        def answer(blob):
            answers = holder.answer(blob)
            live = holder._attempt
            if holder.name == DECRYPTOR and live is not None:
                # The key of the one group, until the group is opened.
                for secret in live.secrets.values():
                    self.fields[DECRYPTOR] = {"opens": secret}
            elif live is not None:
                self.fields[holder.name] = {"sealing": live.secret}
            return answers

        self.world.wire.connect(holder.name, Beside(answer))

    def memories(self, number):
        for name, fields in self.fields.items():
            if (name, number) in self.world.values:
                fields["integers"] = self.world.values[name, number]
        return {name: Memory(**fields) for name, fields in self.fields.items()}


def play(world, topology, enrolment, group, minds, number=1):
    plan = world.plan(number, enrolment=enrolment, groups=[group])
    outcome = topology.play(plan)
    assert (outcome.aggregates[group.name].integers == world.total(group, number)).all()
    assert outcome.absent == {}
    ((sent, blob),) = world.transcript.recall(RoundPlan, number)
    assert sent == plan
    return Round(enrolment, plan, identity(blob), group, world.transcript, minds.memories(number))


@pytest.fixture
def threshold(tmp_path, monkeypatch):
    """A round whose group has the first `clients` of those that hold shares."""

    def played(clients, count, needed, malicious):
        world = World(tmp_path)
        group = world.groups(clients, alphas=ALPHAS)[0]
        minds, enrolment = Minds(world, clients), world.shared(needed, malicious, count)
        honest, order = protocols.secagg.threshold.protect, iter(clients)

        def protect(*arguments, **options):
            part = honest(*arguments, **options)
            minds.fields[next(order)]["shares"] = part.shares
            return part

        monkeypatch.setattr(protocols.secagg.threshold, "protect", protect)
        for name in "abcdef"[:count]:
            minds.listen(world.share_holder(name, enrolment))
        topology = Threshold(world.server(enrolment), world.clients(enrolment), world.wire)
        return world, play(world, topology, enrolment, group, minds)

    return played


@pytest.fixture
def decrypted(tmp_path, monkeypatch):
    """A round with a decryptor, in pairs' masks or around the ring."""

    def played(mode, clients, number=1):
        world = World(tmp_path)
        group = world.groups(clients, alphas=ALPHAS)[0]
        minds, enrolment = Minds(world, clients), world.enrolment(mode=mode)

        class Masking(protocols.secagg.decryptor.Masking):
            def send_seed(self, name):
                blob = super().send_seed(name)
                mine = minds.fields[self.client.name]
                mine["sealing"] = self._secret
                mine.setdefault("seeds", {})[name] = self._seeds[name]
                return blob

            def accept_seed(self, blob, name):
                minds.fields[self.client.name]["sealing"] = self._secret
                super().accept_seed(blob, name)

        class Member(protocols.secagg.ring.Member):
            def _seal_to(self, name, content, *context):
                minds.fields[self.client.name] |= {"sealing": self._secret, "hop": content}
                return super()._seal_to(name, content, *context)

        monkeypatch.setattr(protocols.secagg.decryptor, "Masking", Masking)
        monkeypatch.setattr(protocols.secagg.ring, "Member", Member)
        folder = tmp_path / "decryptor"
        folder.mkdir()
        minds.listen(open_holding(folder, enrolment, world.holder_key))
        kind = Ring if mode == "ring/decryptor" else Decryptor
        topology = kind(world.server(enrolment), world.clients(enrolment), world.wire)
        return world, play(world, topology, enrolment, group, minds, number)

    return played


def compare(world, played, parties):
    """Try every coalition on everybody outside it; how many were tried, and read something."""
    promise, number = PROMISES[played.enrolment.mode], played.plan.round
    tried = successes = 0
    for members in coalitions(parties):
        pool, coalition = Pool(played, members), played.coalition(members)
        found = {name: read_single(pool, name) for name in coalition.honest}
        read = tuple(name for name, integers in found.items() if integers is not None)
        for name in read:
            assert (found[name] == world.values[name, number]).all(), (name, sorted(members))
        assert read == promise.exposed(coalition), sorted(members)
        assert promise.exposes(coalition) == bool(read)
        tried += 1
        successes += bool(read)
    return tried, successes


def both_roles(clients):
    return [[name, holder_name(name)] for name in clients]


def test_threshold_every_coalition_of_five_clients_that_hold_shares(threshold):
    """128: three clients read with the wire, two do not; all but one read without it."""
    world, played = threshold("abcde", 5, needed=3, malicious=0)
    # 10 threes, with the server, a listener or both; the 5 fours, with and without these.
    assert compare(world, played, [*both_roles("abcde"), *EVERYWHERE]) == (128, 3 * 10 + 4 * 5)


def test_threshold_every_coalition_with_holders_outside_the_group(threshold):
    """256: three clients of six holders, of whom four open."""
    world, played = threshold("abc", 6, needed=4, malicious=1)
    outside = [[holder_name(name)] for name in "def"]
    tried, successes = compare(world, played, [*both_roles("abc"), *outside, *EVERYWHERE])
    # Two of three clients: 3 pairs with any of 2^5 others; one client, three holders, the wire.
    assert (tried, successes) == (256, 3 * 32 + 3 * 3)


def test_masked_every_coalition_of_four_clients(decrypted):
    """128: only all but one read anybody, and the decryptor's key does not help."""
    world, played = decrypted("ckks/decryptor", "abcd")
    parties = [*([name] for name in "abcd"), [DECRYPTOR], *EVERYWHERE]
    assert compare(world, played, parties) == (128, 4 * 8)


def test_masks_are_all_that_keeps_a_decryptor_on_the_wire_from_one_upload(decrypted):
    """The positive control: with a's seeds leaked, and nothing else of a's, a is read."""
    world, played = decrypted("ckks/decryptor", "abcd")
    wire, seeds = {DECRYPTOR, "network"}, played.memories["a"].seeds
    assert set(seeds) == set("bcd")
    leaked = {**played.memories, "a": Memory(seeds=seeds)}
    pool = Pool(dataclasses.replace(played, memories=leaked), wire | {"a"})
    assert (read_single(pool, "a") == world.values["a", 1]).all()
    leaked["a"] = Memory(seeds={name: seeds[name] for name in "bc"})
    pool = Pool(dataclasses.replace(played, memories=leaked), wire | {"a"})
    assert read_single(pool, "a") is None, "one seed short"


@pytest.mark.parametrize(
    ("clients", "number", "counts"),
    [
        # All but one with anybody; 2 pairs across, with the decryptor and any wire.
        ("abcd", 0, (128, 4 * 8 + 2 * 4)),
        ("abcd", 1, (128, 4 * 8 + 2 * 4)),
        # All but one; with the decryptor 5 threes and 5 pairs that enclose one client.
        ("abcde", 2, (256, 5 * 8 + 10 * 4)),
    ],
)
def test_ring_every_coalition_wherever_the_ring_begins(decrypted, clients, number, counts):
    """128 and 256: both neighbours with the decryptor read the client between them alone."""
    world, played = decrypted("ring/decryptor", clients, number)
    parties = [*([name] for name in clients), [DECRYPTOR], *EVERYWHERE]
    assert compare(world, played, parties) == counts


def test_plain_every_coalition_of_four_clients(tmp_path):
    """64: whoever sees the wire reads everybody outside."""
    world = World(tmp_path)
    topology, enrolment = world.plain()
    group = world.groups("abcd", alphas=ALPHAS)[0]
    played = play(world, topology, enrolment, group, Minds(world, "abcd"))
    # Any of 15 sets of clients that leave somebody, with one of three wires; all but one alone.
    parties = [*([name] for name in "abcd"), *EVERYWHERE]
    assert compare(world, played, parties) == (64, 15 * 3 + 4)


def test_slots_every_coalition_of_three_clients(tmp_path):
    """32: one sum of two blocks, read as numbers, gives the key to whoever sees the wire."""
    world = World(tmp_path, size=2 * SLOTS18_140.slots, rounds=2)
    enrolment = world.enrolment(
        mode="slots/shared",
        holders={holder_name(name): key.public.hex() for name, key in world.keys.items()},
        preset=SLOTS18_140.name,
    )
    group = world.groups("abc", alphas=ALPHAS)[0]
    topology = Slots(
        world.server(enrolment),
        world.clients(enrolment),
        world.wire,
        SlotsSecret(SLOTS18_140),
        unsafe=True,
    )
    played = play(world, topology, enrolment, group, Minds(world, "abc"))
    parties = [*([name] for name in "abc"), *EVERYWHERE]
    assert compare(world, played, parties) == (32, 7 * 3 + 3)


def test_fewer_shares_than_the_threshold_give_no_key_even_as_equations(threshold):
    """The positive control beside: one more holder's memory, and the same equations solve."""
    world, played = threshold("abcde", 5, needed=3, malicious=0)
    wire = {SERVER, "network"}
    two, three = ({holder_name(name) for name in chosen} for chosen in ("bc", "bcd"))
    assert all(read_single(Pool(played, wire | two), name) is None for name in "abcde")
    opened = Pool(played, wire | three)
    assert all((read_single(opened, name) == world.values[name, 1]).all() for name in "abcde")
    # A holder whose memory is gone counts for nothing, though it is named.
    minds = {name: mind for name, mind in played.memories.items() if name != holder_name("d")}
    forgotten = dataclasses.replace(played, memories=minds)
    assert read_single(Pool(forgotten, wire | three), "a") is None


def test_equations_give_what_follows_from_them_and_nothing_else():
    for prime in (520193, (1 << 61) - 1):
        known = Equations(prime)
        x, y, z = (np.array([number, -number], object) % prime for number in (5, 7, 11))
        known.add({"x": 2, "y": 3}, (2 * x + 3 * y) % prime)
        known.add({"y": 1, "z": -1}, (y - z) % prime)
        assert all(known.find(name) is None for name in "xyzw")
        known.add({"x": 2, "y": 4, "z": -1}, (2 * x + 4 * y - z) % prime)
        assert all(known.find(name) is None for name in "xyz"), "it repeats the others' sum"
        more = Equations(prime)
        for terms, right in zip(known._terms, known._rights, strict=True):
            more.add(terms, right)
        more.add({"z": 4}, 4 * z % prime)
        for name, expected in {"x": x, "y": y, "z": z}.items():
            assert (more.find(name) == expected).all()


def test_coalitions_are_all_sets_of_parties_with_their_roles():
    found = list(coalitions([["a", "a.holder"], ["server"], ["network"]]))
    assert len(found) == len(set(found)) == 8
    assert found[0] == frozenset()
    assert {"a", "a.holder", "server"} in found

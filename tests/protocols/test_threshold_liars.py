"""Rounds with shared keys in which holders, clients or the server lie."""

import dataclasses
import os
from itertools import combinations

import numpy as np
import pytest

from protocols.chain import digest
from protocols.envelope import identity, outline, seal
from protocols.errors import NatflError, ProtocolError
from protocols.ledger import Ledger
from protocols.mechanisms import NoNoise, ReleaseKey
from protocols.messages import (
    Contribution,
    KeyOpening,
    Opened,
    Opening,
    OpeningRequest,
    RoundKey,
    RoundPlan,
)
from protocols.multikey import MK18_39
from protocols.ntt import transform
from protocols.parties import reference_of
from protocols.policy import SERVER, holder_name
from protocols.quantize import Layout, Segment
from protocols.residues import pack, unpack
from protocols.secagg import Threshold
from protocols.sharing import unpack_share
from protocols.transport import Beside, Wire
from tests.protocols.shared_rounds import (
    HOLDER_PHASES,
    HOLDERS,
    Liar,
    cut_at,
    exact,
    kinds,
    reconnected,
    renamed,
)

# Liars among the holders


def bent(world, name, change):
    """A holder whose answers of kind KeyOpening `change` makes anew, under its own signature."""

    def bend(blob):
        message = outline(blob)
        if not isinstance(message, KeyOpening):
            return blob
        return seal(change(message), world.holder_keys[name])

    world.wire.connect(holder_name(name), Liar(world.holders[name], bend))


WRONG = {
    "noise": lambda one: one.model_copy(update={"body": _noise(np.random.default_rng(3))}),
    "zeros": lambda one: one.model_copy(update={"body": bytes(len(one.body))}),
    "not reduced": lambda one: one.model_copy(update={"body": b"\xff" * len(one.body)}),
    "short": lambda one: one.model_copy(update={"body": one.body[:-1]}),
    "another request": lambda one: one.model_copy(update={"request": "0" * 64}),
    "another group": lambda one: one.model_copy(update={"group": "g1"}),
    "another plan": lambda one: one.model_copy(update={"plan": "0" * 64}),
    "another round": lambda one: one.model_copy(update={"round": 2}),
    "another attempt": lambda one: one.model_copy(update={"attempt": 2}),
    "another session": lambda one: one.model_copy(update={"session": "other"}),
    "another holder": lambda one: one.model_copy(update={"sender": "c.holder"}),
}


def _noise(draw):
    rows = [draw.integers(0, prime, MK18_39.degree).astype(np.uint64) for prime in MK18_39.primes]
    pairs = zip(rows, MK18_39.primes, strict=True)
    return b"".join(pack(row, prime.bit_length()) for row, prime in pairs)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("liar", ["a", "f"])
def test_a_wrong_answer_is_outvoted_and_its_holder_named(world, topology, plan_of, wrong, liar):
    bent(world, liar, WRONG[wrong])
    outcome = topology.play(plan_of())
    assert exact(world, outcome.aggregates["g0"], plan_of().groups[0])
    assert set(outcome.absent) == {holder_name(liar)}


def test_with_a_wrong_answer_and_two_dropouts_nothing_opens(world, topology, plan_of):
    bent(world, "a", WRONG["noise"])
    cut_at(world, HOLDERS[4:], HOLDER_PHASES["after the shares"])
    with pytest.raises(ProtocolError, match="did not open"):
        topology.play(plan_of())
    assert kinds(world, Opening) == []


def shifted(world, plan, step, others):
    """A share that moves what the holders `others` (numbers) and number 1 open by `step`.

    The polynomial a of the first block is public, so δ = Δ·step·a⁻¹ on the key sum moves the sum
    by exactly `step`: an answer that opens, with other integers.
    """

    def change(message):
        reference = reference_of(message.plan, message.group)
        residues = unpack_share(MK18_39, message.body)
        moved = []
        for at, prime in enumerate(MK18_39.primes):
            public = _public(reference, prime)
            ring = transform(MK18_39.degree, prime)
            wanted = np.zeros(MK18_39.degree, np.int64)
            wanted[: len(step)] = step * MK18_39.scale
            there = ring.forward((wanted % prime).astype(np.uint64)[None])[0].astype(np.int64)
            weight = 1
            for other in others:
                weight = weight * (0 - other) * pow(1 - other, -1, prime) % prime
            inverse = np.array([pow(int(a) * weight % prime, -1, prime) for a in public])
            moved.append((residues[at].astype(np.int64) + there * inverse) % prime)
        pairs = zip(moved, MK18_39.primes, strict=True)
        body = b"".join(pack(row.astype(np.uint64), prime.bit_length()) for row, prime in pairs)
        return message.model_copy(update={"body": body})

    return change


def _public(reference, prime):
    from protocols.expansion import REFERENCE, keystream, uniform

    return uniform(prime, MK18_39.degree, keystream(REFERENCE, reference, prime))


def test_an_answer_made_to_open_another_sum_is_outvoted_and_its_holder_named(
    world, topology, plan_of
):
    """A liar knows the public polynomials: its share can move the sum by any small integers."""
    step = np.arange(world.size)
    bent(world, "a", shifted(world, plan_of(), step, (2, 3, 4)))
    outcome = topology.play(plan_of())
    assert exact(world, outcome.aggregates["g0"], plan_of().groups[0])
    assert set(outcome.absent) == {"a.holder"}


def test_answers_that_open_two_sums_equally_well_open_none(world, topology, plan_of):
    """Five answers, one made to open another sum: four speak for either."""
    bent(world, "a", shifted(world, plan_of(), np.arange(world.size), (2, 3, 4)))
    cut_at(world, HOLDERS[5:], HOLDER_PHASES["after the shares"])
    with pytest.raises(ProtocolError, match="did not open"):
        topology.play(plan_of())


@pytest.mark.parametrize(
    "body", [bytes(1216), b"\xff" * 1216, b"", bytes(1215)], ids=["zeros", "ones", "none", "short"]
)
def test_a_holder_with_a_bad_sealing_key_is_left_out(world, topology, plan_of, body):
    def bend(blob):
        message = outline(blob)
        if isinstance(message, RoundKey):
            blob = seal(message.model_copy(update={"body": body}), world.holder_keys["c"])
        return blob

    world.wire.connect("c.holder", Liar(world.holders["c"], bend))
    outcome = topology.play(plan_of())
    assert exact(world, outcome.aggregates["g0"], plan_of().groups[0])
    assert "c.holder" in outcome.absent


# Liars among the clients


def lying(topology, name, **methods):
    """The topology with one client that does something else in these methods."""
    client = dataclasses.replace(topology._clients[name])
    for method, does in methods.items():
        object.__setattr__(client, method, does)
    return Threshold(topology._server, {**topology._clients, name: client}, topology._wire)


def test_a_body_that_is_no_contribution_leaves_its_client_out(world, topology, plan_of):
    honest = topology._clients["b"].contribute
    for number, body in enumerate((b"", bytes(9), b"\xff" * MK18_39.ciphertext_bytes(40)), 1):
        liar = lying(
            topology, "b", contribute=lambda own, group, _, body=body: honest(own, group, body)
        )
        outcome = liar.play(plan_of(number=number))
        assert outcome.aggregates["g0"].participants == tuple("acdef")
        assert exact(world, outcome.aggregates["g0"], plan_of().groups[0], number)
        assert set(outcome.absent) == {"b"}


@pytest.mark.parametrize("kind", [Opening, OpeningRequest])
def test_a_client_that_sends_the_servers_kinds_stops_no_further_attempt(
    world, topology, plan_of, kind
):
    """What a client forged is in the transcript, for it was sent; it is nobody's request."""
    fields = {"plan": "1" * 64, "group": "g0", "participants": tuple("abc")}
    if kind is Opening:
        body = np.zeros(world.size, "<i8").tobytes()
        fields |= {"request": "2" * 64, "sha256": digest(body), "body": body}
    else:
        fields |= {"contributions": ("3" * 64,) * 3}

    def forged(own, group, body):
        stage = own.plan.stage._asdict()
        sender = SERVER if kind is Opening else "b"
        return seal(kind(**stage, sender=sender, **fields), world.keys["b"])

    liar = lying(topology, "b", contribute=forged)
    cut_at(world, HOLDERS[:3], HOLDER_PHASES["after the shares"])
    with pytest.raises(ProtocolError, match="did not open"):
        liar.play(plan_of())
    outcome = reconnected(world).play(plan_of())
    assert exact(world, outcome.aggregates["g0"], plan_of().groups[0])


def giant(body):
    """A body whose every integer is moved by half of its range: values far beyond the clamp."""
    integers = unpack(body, MK18_39.wire_bits, (MK18_39.wire_limit,))[0]
    moved = (integers + np.uint64(MK18_39.wire_limit // 3)) % np.uint64(MK18_39.wire_limit)
    return pack(moved, MK18_39.wire_bits)


class Sites:
    """Ledgers and mechanisms as a run wires them: bound, charge, store, release."""

    def __init__(self, world):
        self.size, self.layout = world.size, Layout((Segment("logits", world.size, 1),))
        self.mechanism = NoNoise(shards=2, clip_norm=2.0, clip_int=1000, size=world.size)
        self.ledgers = {
            name: Ledger(world.folder / f"{name}.db", name, "p", budget_epsilon=None, delta=1e-5)
            for name in "abcdef"
        }
        draw = np.random.default_rng(9)
        self.teachers = {name: draw.normal(0, 0.1, (2, world.size)) for name in "abcdef"}

    def release(self, name):
        def made(plan):
            bounded = self.mechanism.bound(self.teachers[name], self.layout)
            key = ReleaseKey(plan.session, plan.round)
            return self.mechanism.release(bounded, self.ledgers[name], key, os.urandom)

        return made

    def charges(self):
        return {name: len(list(ledger.lines())) for name, ledger in self.ledgers.items()}

    def total(self, group):
        parts = zip(group.participants, group.alphas, strict=True)
        return sum(
            alpha * self.mechanism.bound(self.teachers[name], self.layout).values
            for name, alpha in parts
        )


@pytest.fixture
def sites(world):
    made = Sites(world)
    yield made
    for ledger in made.ledgers.values():
        ledger.close()


def test_a_giant_value_opens_nothing_shuts_the_group_and_charges_nobody_twice(
    world, topology, plan_of, sites
):
    """Its holders have answered, so no further attempt may open it; the next round does."""
    for name, client in topology._clients.items():
        topology._clients[name] = dataclasses.replace(client, release=sites.release(name))
    honest = topology._clients["b"].contribute
    liar = lying(
        topology,
        "b",
        contribute=lambda own, group, body: honest(own, group, giant(body)),
    )
    with pytest.raises(ProtocolError, match="did not open"):
        liar.play(plan_of())
    assert sites.charges() == dict.fromkeys("abcdef", 1)
    for members in ("abcdef", "acdef"):
        with pytest.raises(ProtocolError, match=r"may still be opened|too few key holders"):
            topology.play(plan_of(members))
    assert kinds(world, Opening) == []
    assert sites.charges() == dict.fromkeys("abcdef", 1)
    group = plan_of("acdef").groups[0]
    outcome = topology.play(plan_of("acdef", number=2))
    assert (outcome.aggregates["g0"].integers == sites.total(group)).all()
    assert sites.charges() == {**dict.fromkeys("acdef", 2), "b": 1}


def test_shares_that_nobody_can_use_stop_an_attempt_and_a_further_one_opens(
    world, topology, plan_of, sites
):
    """Client b's shares name another contribution: all refuse, and without b the round opens."""
    for name, client in topology._clients.items():
        topology._clients[name] = dataclasses.replace(client, release=sites.release(name))
    honest = topology._clients["b"].share_key
    liar = lying(topology, "b", share_key=lambda *args: renamed(world, honest(*args)))
    with pytest.raises(ProtocolError, match="did not open"):
        liar.play(plan_of())
    outcome = topology.play(plan_of("acdef"))
    group = plan_of("acdef").groups[0]
    assert outcome.aggregates["g0"].attempt == 2
    assert (outcome.aggregates["g0"].integers == sites.total(group)).all()
    assert sites.charges() == dict.fromkeys("abcdef", 1)


# What clients accept


def test_only_enrolled_key_holders_count_as_such(world, topology, plan_of, new_shared):
    """The server and a client sign round keys too: neither closes anything."""
    attempt = new_shared(world, world.rules, plan_of()).begin(
        *(world.holders[name] for name in "abc")
    )
    client = attempt.clients["a"]
    own = client.accept_plan(attempt.blob)
    template = outline(attempt.keys["a.holder"])
    for party, key in ((SERVER, world.server_key), ("f", world.keys["f"])):
        forged = seal(template.model_copy(update={"sender": party}), key)
        with pytest.raises(ProtocolError, match="no key holder"):
            client.accept_keys({**attempt.keys, party: forged}, own, len(template.body))
    with pytest.raises(ProtocolError, match="too few key holders"):
        client.accept_keys(attempt.keys, own, len(template.body))


def test_an_opening_of_another_group_is_not_accepted_for_ones_own(world, topology, plan_of):
    plan = plan_of("abc", "def", alphas=(1, 2, 3))
    topology.play(plan)
    openings = {
        outline(world.transcript.read(e)).group: world.transcript.read(e)
        for e in kinds(world, Opening)
    }
    client = world.clients(world.rules)["a"]
    (plan_entry,) = kinds(world, RoundPlan)
    own = client.accept_plan(world.transcript.read(plan_entry))
    other = Opened(group="g1", attempt=1, plan=own.plan_id)
    client.accept_opening(openings["g0"], own, plan.groups[0])
    with pytest.raises(ProtocolError, match="another"):
        client.accept_opening(openings["g1"], own, plan.groups[0])
    with pytest.raises(ProtocolError, match="another group"):
        client.accept_opening(openings["g1"], own, plan.groups[0], other)


def test_a_key_for_another_plan_or_of_another_holder_is_not_accepted(
    world, topology, plan_of, new_shared
):
    attempt = new_shared(world, world.rules, plan_of()).begin(*world.holders.values())
    client = attempt.clients["a"]
    own = client.accept_plan(attempt.blob)
    length = len(outline(attempt.keys["a.holder"]).body)
    wrong = [
        {**attempt.keys, "a.holder": attempt.keys["b.holder"]},
        {**attempt.keys, "a.holder": attempt.keys["a.holder"][:-1]},
        {**attempt.keys, "z.holder": attempt.keys["a.holder"]},
    ]
    for keys in wrong:
        with pytest.raises(ProtocolError):
            client.accept_keys(keys, own, length)
    with pytest.raises(ProtocolError, match="another plan"):
        client.accept_keys(attempt.keys, own._replace(plan_id="0" * 64), length)
    with pytest.raises(ProtocolError, match="length"):
        client.accept_keys(attempt.keys, own, length + 1)
    assert len(client.accept_keys(attempt.keys, own, length).keys) == 6


@pytest.mark.nightly
def test_every_four_holders_open_the_round_and_every_three_do_not(world, topology, plan_of):
    """All 20 sets of three and 15 of four, one round each."""
    topology = world.threshold(world.rules)
    number = 0
    world.values = {(name, at): world.values[name, 1] for name in "abcdef" for at in range(40)}
    for count in (3, 4):
        for present in combinations(HOLDERS, count):
            number += 1
            gone = set(HOLDERS) - set(present)
            wire = Wire(world.transcript)
            for name in "abcdef":
                wire.connect(holder_name(name), Beside(world.holders[name].answer))
            played = Threshold(topology._server, topology._clients, wire)
            world.wire = wire
            cut_at(world, gone, HOLDER_PHASES["after the shares"])
            plan = plan_of(number=number)
            if count == 3:
                with pytest.raises(NatflError, match="did not open"):
                    played.play(plan)
            else:
                outcome = played.play(plan)
                assert exact(world, outcome.aggregates["g0"], plan.groups[0])
    assert number == 35


def test_a_message_is_named_by_all_that_its_signature_covers(world, topology, plan_of):
    topology.play(plan_of())
    requests = [outline(world.transcript.read(e)) for e in kinds(world, OpeningRequest)]
    uploads = {identity(world.transcript.read(e)): e.sender for e in kinds(world, Contribution)}
    (request,) = requests
    assert tuple(uploads[one] for one in request.contributions) == request.participants

"""Rounds with shared keys: exact sums, dropouts of clients and holders, crashes, and liars."""

import dataclasses
import os
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from protocols.chain import digest
from protocols.envelope import identity, kind_of, outline, seal
from protocols.errors import NatflError, ProtocolError
from protocols.ledger import Ledger
from protocols.mechanisms import NoNoise, ReleaseKey
from protocols.messages import (
    Contribution,
    KeyOpening,
    KeyShare,
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
from protocols.share_holder import ShareHolder
from protocols.sharing import unpack_share
from protocols.transcript import Transcript
from protocols.transport import Beside, HolderProcess, Wire

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


# Sums


def test_plain_decryptor_and_threshold_give_the_same_integers_and_digest(
    world, topology, plan_of, new_world
):
    other, third = new_world("plain"), new_world("decryptor")
    other.values = third.values = world.values
    plain, enrolment = other.plain()
    decryptor = third.beside()
    for number in range(1, 4):
        outcomes = [
            topology.play(plan_of(number=number)),
            plain.play(other.plan(number, enrolment=enrolment, groups=plan_of().groups)),
            decryptor.play(third.plan(number, groups=plan_of().groups)),
        ]
        found = [outcome.aggregates["g0"] for outcome in outcomes]
        assert len({one.sha256 for one in found}) == 1
        assert len({one.integers.tobytes() for one in found}) == 1
        assert exact(world, found[0], plan_of().groups[0], number)


@pytest.mark.parametrize("size", [1, 2047, 2048, 2049, 5000])
def test_vectors_of_one_block_and_several_are_exact(new_world, size):
    world = new_world("sized", size=size)
    rules = world.shared()
    topology = world.threshold(rules)
    plan = world.plan(enrolment=rules, groups=world.groups("abcdef", alphas=ALPHAS))
    outcome = topology.play(plan)
    assert exact(world, outcome.aggregates["g0"], plan.groups[0])
    assert outcome.absent == {}


def test_each_group_is_summed_and_reaches_its_members_alone(world, topology, plan_of):
    plan = plan_of("abc", "def", alphas=(1, 2, 3))
    outcome = topology.play(plan)
    for group in plan.groups:
        assert exact(world, outcome.aggregates[group.name], group)
        assert outcome.aggregates[group.name].participants == group.participants
    for name, group in (("a", "g0"), ("f", "g1")):
        assert [one.group for one in world.transcript.view({name}).of(Opening)] == [group]


def test_spans_give_a_weight_per_client_and_class_under_keys_of_their_own(world, topology, plan_of):
    matrix = [(1, 2, 3, 4), (4, 3, 2, 1), (1, 1, 1, 1)]
    spans = [(0, 13), (13, 14), (14, 40)]
    (base,) = world.groups("abcd")
    groups = [
        base.model_copy(update={"name": f"class{at}", "alphas": alphas, "span": span})
        for at, (alphas, span) in enumerate(zip(matrix, spans, strict=True))
    ]
    outcome = topology.play(plan_of(groups=groups))
    for group in groups:
        start, stop = group.span
        aggregate = outcome.aggregates[group.name]
        assert (aggregate.integers == world.total(group)[start:stop]).all()
    uploads = world.transcript.view({SERVER}).of(Contribution)
    shares = world.transcript.view({SERVER}).of(KeyShare)
    assert Counter((one.sender, one.group) for one in uploads) == {
        (name, group.name): 1 for name in "abcd" for group in groups
    }
    assert len(shares) == len(HOLDERS) * len(uploads)
    assert len({one.body for one in uploads}) == len(uploads)
    plan_id = uploads[0].plan
    assert len({reference_of(plan_id, group.name) for group in groups}) == 3


def test_costs_name_every_kind_and_what_each_client_sent(world, topology, plan_of):
    cost = topology.play(plan_of()).cost
    expected = {RoundPlan, RoundKey, Contribution, KeyShare, OpeningRequest, KeyOpening, Opening}
    assert set(cost.sent_bytes) == {kind.kind for kind in expected}
    assert set(cost.protect) == set(cost.upload_bytes) == set("abcdef")
    body, share = MK18_39.ciphertext_bytes(world.size), MK18_39.share_bytes
    # Six sealed shares: three seeds, three packed.
    assert all(
        body + 3 * share + 3 * 32 < sent < body + 3 * share + 6 * 2000
        for sent in cost.upload_bytes.values()
    )


# Dropouts

CLIENT_PHASES = {
    "before the plan": lambda sender, kind: kind is RoundPlan,
    "after the plan": lambda sender, kind: sender == SERVER and kind is RoundKey,
    "after the keys": lambda sender, kind: kind is Contribution,
    "between contribution and shares": lambda sender, kind: sender == "b" and kind is KeyShare,
    "after the contribution": lambda sender, kind: sender == SERVER and kind is OpeningRequest,
}


@pytest.mark.parametrize("phase", CLIENT_PHASES)
def test_a_client_that_drops_out_costs_no_attempt_whenever_it_does(world, topology, plan_of, phase):
    cut_at(world, ["b"], CLIENT_PHASES[phase])
    outcome = topology.play(plan_of())
    aggregate = outcome.aggregates["g0"]
    sent = phase == "after the contribution"
    assert aggregate.participants == tuple("abcdef" if sent else "acdef")
    assert exact(world, aggregate, plan_of().groups[0])
    assert set(outcome.absent) == {"b"}
    assert aggregate.attempt == 1
    assert world.released["a"] == 1


HOLDER_PHASES = {
    "before the plan": lambda sender, kind: kind is RoundPlan,
    "after the keys": lambda sender, kind: sender == SERVER and kind is RoundKey,
    "between contribution and shares": lambda sender, kind: kind is KeyShare,
    "after the shares": lambda sender, kind: sender == SERVER and kind is OpeningRequest,
}


@pytest.mark.parametrize("phase", HOLDER_PHASES)
def test_two_of_six_holders_may_drop_out_at_any_time_and_a_third_may_not(
    world, topology, plan_of, phase
):
    cut_at(world, HOLDERS[1:3], HOLDER_PHASES[phase])
    outcome = topology.play(plan_of())
    assert exact(world, outcome.aggregates["g0"], plan_of().groups[0])
    assert set(outcome.absent) == set(HOLDERS[1:3])
    cut_at(world, HOLDERS[5:], HOLDER_PHASES[phase])
    why = "too few key holders" if phase == "before the plan" else "did not open"
    with pytest.raises(ProtocolError, match=why):
        topology.play(plan_of(number=2))
    assert kinds(world, Opening, 2) == []


def test_clients_and_holders_may_drop_out_together(world, topology, plan_of):
    """A hospital that goes is both: its contribution, and one of the six shares."""
    cut_at(world, ["b", "b.holder", "e", "e.holder"], CLIENT_PHASES["after the keys"])
    outcome = topology.play(plan_of())
    assert outcome.aggregates["g0"].participants == tuple("acdf")
    assert exact(world, outcome.aggregates["g0"], plan_of().groups[0])


@pytest.mark.parametrize(
    ("gone", "least", "alphas", "why"),
    [
        ("b", 6, ALPHAS, "too few contributions"),
        ("bcd", 4, ALPHAS, "too few contributions"),
        ("bcde", 1, ALPHAS, "too few contributions"),
        ("abc", 1, (4, 4, 4, 1, 1, 4), ""),
        ("abf", 1, (4, 4, 1, 1, 1, 4), ""),
        ("cde", 1, (1, 1, 9, 9, 9, 8), "too few effective"),
    ],
)
def test_below_floors_or_least_nothing_opens_and_nobody_is_asked(
    world, topology, plan_of, gone, least, alphas, why
):
    world.rules = world.shared().model_copy(update={"preset": "mk18-49"})
    topology = world.threshold(world.rules)
    (group,) = world.groups("abcdef", alphas=alphas)
    plan = plan_of(groups=[group.model_copy(update={"least": least})])
    cut_at(world, gone, CLIENT_PHASES["after the keys"])
    if not why:
        assert exact(world, topology.play(plan).aggregates["g0"], group)
        return
    with pytest.raises(ProtocolError, match=why):
        topology.play(plan)
    assert kinds(world, OpeningRequest) == []
    # Who has gone comes back, and the round is opened by a further attempt.
    world.wire._cut.clear()
    again = topology.play(plan_of(groups=[group]))
    assert again.aggregates["g0"].attempt == 2
    assert exact(world, again.aggregates["g0"], group)


# Crashes


def test_what_was_opened_is_neither_encrypted_nor_released_again(world, topology, plan_of):
    first = topology.play(plan_of())
    again = topology.play(plan_of())
    assert again.aggregates["g0"].sha256 == first.aggregates["g0"].sha256
    assert again.aggregates["g0"].attempt == 1
    assert "contribution" not in again.cost.sent_bytes
    assert set(world.released.values()) == {1}


def test_a_resumed_round_opens_what_is_missing_and_keeps_the_rest(world, topology, plan_of):
    def crash(plan):
        raise RuntimeError("the site's process ended")

    clients = {**topology._clients}
    clients["e"] = dataclasses.replace(clients["e"], release=crash)
    plan = plan_of("abc", "def", alphas=(1, 2, 3))
    with pytest.raises(RuntimeError, match="ended"):
        Threshold(world.server(world.rules), clients, world.wire).play(plan)
    outcome = topology.play(plan_of("abc", "def", alphas=(1, 2, 3)))
    assert {name: one.attempt for name, one in outcome.aggregates.items()} == {"g0": 1, "g1": 2}
    assert set(outcome.cost.protect) == set("def")
    for group in plan.groups:
        assert exact(world, outcome.aggregates[group.name], group)


class ServerDiesError(Exception):
    pass


@pytest.mark.parametrize("answers", [0, 3, 6])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_server_that_dies_after_its_request_finishes_the_same_sum(
    world, topology, plan_of, answers, restarted
):
    """So many answers came before it died; holders run on, or those that answered restart."""
    receive, seen = world.wire.receive, Counter()

    def dies(receiver, sender):
        if receiver == SERVER and kinds(world, OpeningRequest):
            if seen[receiver] == answers:
                raise ServerDiesError
            seen[receiver] += 1
        return receive(receiver, sender)

    world.wire.receive = dies
    if answers == 6:
        hook(world, lambda sender, receivers, kind, blob: _die(kind is Opening))
    with pytest.raises(ServerDiesError):
        topology.play(plan_of())
    assert kinds(world, Opening) == []
    holders = dict(world.holders)
    if restarted:
        holders = {name: world.share_holder(name, world.rules) for name in holders}
    outcome = reconnected(world, holders).play(plan_of())
    aggregate = outcome.aggregates["g0"]
    assert exact(world, aggregate, plan_of().groups[0])
    assert (aggregate.attempt, aggregate.participants) == (1, tuple("abcdef"))
    assert "contribution" not in outcome.cost.sent_bytes
    assert set(world.released.values()) == {1}
    first = [outline(world.transcript.read(entry)) for entry in kinds(world, KeyOpening)]
    # One answer per holder, however often it was asked.
    assert len({(one.sender, one.body) for one in first}) == 6


def _die(now):
    if now:
        raise ServerDiesError


def test_a_server_that_dies_before_its_request_makes_a_new_attempt(world, topology, plan_of):
    hook(world, lambda sender, receivers, kind, blob: _die(kind is OpeningRequest))
    with pytest.raises(ServerDiesError):
        topology.play(plan_of())
    outcome = reconnected(world).play(plan_of())
    assert outcome.aggregates["g0"].attempt == 2
    assert exact(world, outcome.aggregates["g0"], plan_of().groups[0])
    bodies = {one.body for one in world.transcript.view({SERVER}).of(Contribution)}
    assert len(bodies) == 12


def test_the_latest_attempt_is_finished_before_an_earlier_one_is_asked_for(
    world, topology, plan_of
):
    """Attempt 1 was refused by all; of attempt 2 three holders have not seen the request yet."""
    shares = topology._clients["b"].share_key
    bad = dataclasses.replace(topology._clients["b"])
    object.__setattr__(bad, "share_key", lambda *args: _renamed(world, shares(*args)))
    with pytest.raises(ProtocolError, match="did not open"):
        Threshold(world.server(world.rules), {**topology._clients, "b": bad}, world.wire).play(
            plan_of()
        )

    def before(sender, receivers, kind, blob):
        if kind is OpeningRequest and outline(blob).attempt == 2:
            for holder in HOLDERS[3:]:
                world.wire.cut(holder)

    hook(world, before)
    with pytest.raises(ProtocolError, match="did not open"):
        topology.play(plan_of("acdef", alphas=ALPHAS))
    outcome = reconnected(world).play(plan_of("acdef", alphas=ALPHAS))
    assert outcome.aggregates["g0"].attempt == 2
    assert exact(world, outcome.aggregates["g0"], plan_of("acdef").groups[0])


def _renamed(world, blobs):
    """Client b's shares with another contribution's name, signed by b."""
    return [
        seal(outline(blob).model_copy(update={"contribution": "0" * 64}), world.keys["b"])
        for blob in blobs
    ]


def test_six_holders_in_processes_of_their_own_open_and_four_are_enough(world):
    """Real processes, real kills: none, then one before its key, then another after its shares."""
    folders = {name: world.folder / f"{name}.process" for name in "abcdef"}
    holders = {name: HolderProcess(folder) for name, folder in folders.items()}
    try:
        world.rules = world.shared().model_copy(
            update={
                "holders": {
                    holder_name(name): process.verify_key.hex() for name, process in holders.items()
                }
            }
        )
        for name, process in holders.items():
            process.enrol(world.rules)
            world.wire.connect(holder_name(name), process)
        topology = Threshold(world.server(world.rules), world.clients(world.rules), world.wire)
        groups, victims = world.groups("abcdef", alphas=ALPHAS), [holders["e"]]

        def dies(kind):
            if kind is OpeningRequest and victims:
                _kill(victims.pop())

        for number in range(1, 4):
            if number == 2:
                _kill(holders["b"])
            if number == 3:
                hook(world, lambda sender, receivers, kind, blob: dies(kind))
            outcome = topology.play(world.plan(number, enrolment=world.rules, groups=groups))
            assert exact(world, outcome.aggregates["g0"], groups[0], number)
            gone = {1: set(), 2: {"b.holder"}, 3: {"b.holder", "e.holder"}}[number]
            assert set(outcome.absent) == gone
    finally:
        for process in holders.values():
            process.close()


def _kill(process):
    os.kill(process.pid, 9)
    process._process.wait()


def test_a_holder_killed_after_its_answer_gives_the_same_bytes_when_it_is_back(
    world, topology, plan_of
):
    """With three answers nothing opens; the killed holder's stored one makes the fourth."""
    folder = world.folder / "a.process"
    with HolderProcess(folder) as process:
        holders = {**world.rules.holders, "a.holder": process.verify_key.hex()}
        world.rules = world.rules.model_copy(update={"holders": holders})
        for name in "bcdef":
            (world.folder / f"{name}.again").mkdir()
            key = world.holder_keys[name]
            world.holders[name] = ShareHolder(
                world.folder / f"{name}.again", world.rules, holder_name(name), key
            )
        del world.holders["a"]
        topology = reconnected(world)
        process.enrol(world.rules)
        world.wire.connect("a.holder", process)
        cut_at(world, HOLDERS[3:], HOLDER_PHASES["after the shares"])
        with pytest.raises(ProtocolError, match="did not open"):
            topology.play(plan_of())
        _kill(process)
    answers = {outline(world.transcript.read(e)).sender: e for e in kinds(world, KeyOpening)}
    assert set(answers) == set(HOLDERS[:3])
    with HolderProcess(folder) as process:
        topology = reconnected(world, cut=HOLDERS[4:])
        process.enrol(world.rules)
        world.wire.connect("a.holder", process)
        outcome = topology.play(plan_of())
    assert outcome.aggregates["g0"].attempt == 1
    assert exact(world, outcome.aggregates["g0"], plan_of().groups[0])
    again = [e.sha256 for e in kinds(world, KeyOpening) if e.sender == "a.holder"]
    assert again == [answers["a.holder"].sha256] * 2


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
    liar = lying(topology, "b", share_key=lambda *args: _renamed(world, honest(*args)))
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

"""Who reads what in a ring, and which changes of its messages are found."""

import itertools

import numpy as np
import pytest
from scipy.stats import chisquare, pearsonr

from protocols.errors import ProtocolError
from protocols.messages import Hop, Link, MaskKey
from protocols.parties import ring_of
from protocols.policy import DECRYPTOR, SERVER
from protocols.secagg import Ring
from protocols.transport import HolderProcess
from tests.protocols.circles import FALSE_ALARM, Circle, Meddling, N, Q, integers, resigned
from tests.protocols.circles import circle as circle


def test_the_first_client_changes_with_the_round(circle, world):
    for number in range(1, 6):
        circle.play(number)
        first = next(e for e in world.transcript.entries if (e.kind, e.round) == ("hop", number))
        assert first.sender == "abcd"[number % 4]
        assert ring_of(circle.plan, circle.plan.groups[0])[0] == first.sender


@pytest.mark.parametrize("members", ["abc", "abcd", "abcdef"])
def test_the_sum_is_that_of_the_other_kinds_to_the_byte(new_world, monkeypatch, members):
    worlds = [new_world(name) for name in ("ring", "ckks", "plain")]
    ring = Circle(worlds[0], monkeypatch)
    plain, enrolment = worlds[2].plain()
    groups = worlds[0].groups(members, alphas=(3, 1, 2, 2, 4, 1))
    outcomes = [
        ring.play(groups=groups),
        worlds[1].beside().play(worlds[1].plan(groups=groups)),
        plain.play(worlds[2].plan(groups=groups, enrolment=enrolment)),
    ]
    assert len({outcome.aggregates["g0"].sha256 for outcome in outcomes}) == 1
    assert (outcomes[0].aggregates["g0"].integers == worlds[0].total(groups[0])).all()


def test_several_groups_and_spans_go_round_each_for_itself(circle, world):
    one, other = world.groups("abcd", "dcbe")
    groups = [one.model_copy(update={"span": (0, 30)}), other.model_copy(update={"span": (30, 40)})]
    outcome = circle.play(groups=groups)
    for group in groups:
        expected = world.total(group)[slice(*group.span)]
        assert (outcome.aggregates[group.name].integers == expected).all()


def test_a_holder_in_a_process_of_its_own_opens_a_ring(world):
    with HolderProcess(world.folder / "apart") as process:
        enrolment = world.enrolment(process.verify_key, mode="ring/decryptor")
        process.enrol(enrolment)
        world.wire.connect(DECRYPTOR, process)
        topology = Ring(world.server(enrolment), world.clients(enrolment), world.wire)
        plan = world.plan(enrolment=enrolment)
        outcome = topology.play(plan)
    assert (outcome.aggregates["g0"].integers == world.total(plan.groups[0])).all()


def test_who_of_the_clients_reads_whom_with_the_attempt_s_key(circle, world):
    """Real hops of 5 clients, all 15 coalitions of one or two with the key, all 4 or 3 targets.

    Each tries all combinations with −1, 0 and 1 of what it has: hops received and sent, the sum,
    its mask. Exactly the two neighbours of a client read it; it is 40 integers or none.
    """
    group = world.groups("abcde", alphas=(2, 1, 3, 1, 2))[0]
    circle.play(groups=[group])
    order, sent = ring_of(circle.plan, group), circle.hops()
    mask = _mask(circle, group, sent)
    read = set()
    for coalition in [*itertools.combinations("abcde", 1), *itertools.combinations("abcde", 2)]:
        known = {"total": circle.phase(circle.total())}
        for name in coalition:
            at = order.index(name)
            known[name] = circle.phase(sent[name])
            known[order[at - 1]] = circle.phase(sent[order[at - 1]])
            if at == 0:
                known["mask"] = circle.phase(mask)
        for signs in itertools.product((-1, 0, 1), repeat=len(known)):
            tried = integers(sum(s * p for s, p in zip(signs, known.values(), strict=True)))[:40]
            for name, alpha in zip(group.participants, group.alphas, strict=True):
                if name not in coalition and (tried == alpha * world.values[name, 1]).all():
                    read.add((frozenset(coalition), name))
    neighbours = {
        (frozenset({order[at - 1], order[(at + 1) % 5]}), order[at]) for at in range(len(order))
    }
    assert read == neighbours
    assert len(read) == 5


def _mask(circle, group, sent):
    """The first client's mask: its hop less its own part, which the last hop and the sum tell."""
    last = ring_of(circle.plan, group)[-1]
    return (sent[last] + np.uint64(Q) - circle.total()) % np.uint64(Q)


@pytest.mark.parametrize("count", [4, 5, 6, 7])
def test_no_other_combination_exists(count):
    """Linear algebra over the rationals, all singles and pairs of 4 to 7 clients.

    Unknowns are the clients' parts and the mask; known are the sum, a coalition's own parts and
    hops, and the mask if the first client is in it. Neighbours solve for a part, nobody else does.
    """
    for size in (1, 2):
        for coalition in itertools.combinations(range(count), size):
            rows = [np.array([1] * count + [0])]
            for at in coalition:
                rows += [_hop(at, count), _hop((at - 1) % count, count), _unit(at, count)]
                rows += [_unit(count, count)] if at == 0 else []
            solved = {
                target
                for target in set(range(count)) - set(coalition)
                if _rank([*rows, _unit(target, count)]) == _rank(rows)
            }
            around = {
                at for at in range(count) if {(at - 1) % count, (at + 1) % count} <= set(coalition)
            }
            assert solved == around


def _hop(sender, count):
    return np.array([int(at <= sender) for at in range(count)] + [1])


def _unit(at, count):
    return np.eye(count + 1, dtype=int)[at]


def _rank(rows):
    return np.linalg.matrix_rank(np.array(rows))


def test_a_hop_is_even_to_who_has_the_key(new_world, monkeypatch):
    """20,480 phases of each of 4 hops in 256 bins, 20,480 residues of either polynomial.

    The mask alone, 40,960 residues, is even too: ciphertexts hide behind their own randomness.
    """
    circle = Circle(new_world("long", size=5 * N), monkeypatch)
    circle.play()
    for name, hop in circle.hops().items():
        phases = circle.phase(hop)
        for values, low, high in (
            (phases, -Q / 2, Q / 2),
            (hop[:, 0].ravel(), 0, Q),
            (hop[:, 1].ravel(), 0, Q),
        ):
            assert chisquare(np.histogram(values, 256, (low, high))[0]).pvalue > FALSE_ALARM
        assert pearsonr(phases, circle.world.values[name, 1]).pvalue > FALSE_ALARM
    mask = _mask(circle, circle.plan.groups[0], circle.hops())
    assert chisquare(np.histogram(mask, 256, (0, Q))[0]).pvalue > FALSE_ALARM
    total = circle.phase(circle.total())
    assert (integers(total) == circle.world.total(circle.plan.groups[0])).all()


def test_a_hop_opens_for_its_receiver_alone(circle, world):
    """4 hops on the wire, each tried with the 4 members' keys of this attempt."""
    circle.play()
    opened = 0
    for hop, _ in world.transcript.recall(Hop, 1):
        for name, member in circle.members.items():
            context = (member.accepted.plan_id, hop.sender, hop.receiver)
            if name == hop.receiver:
                assert len(member._secret.open(hop.body, "hop", hop.group, *context)) == 45056
                opened += 1
                continue
            with pytest.raises(ProtocolError, match="do not open"):
                member._secret.open(hop.body, "hop", hop.group, *context)
    assert opened == 4


def test_neither_server_nor_decryptor_sees_a_hop(circle, world):
    circle.play()
    for party in (SERVER, DECRYPTOR):
        assert world.transcript.view({party}).of(Hop) == []
        links = world.transcript.view({party}).of(Link)
        assert sorted(len(link.body) for link in links) == [0, 0, 0, 45056]


HOP_LIES = {
    "forged by the server": ("signature", lambda w: resigned(w.server_key)),
    "forged by a client": ("signature", lambda w: resigned(w.keys["a"])),
    "for another group": ("another group", lambda w: resigned(w.keys["c"], group="g9")),
    "for another client": ("another client", lambda w: resigned(w.keys["c"], receiver="a")),
    "of another plan": ("another plan", lambda w: resigned(w.keys["c"], plan="0" * 64)),
    "of another attempt": ("or attempt", lambda w: resigned(w.keys["c"], attempt=9)),
    "of other bytes": ("do not open", lambda w: resigned(w.keys["c"], body=bytes(46192))),
    "too short": ("length", lambda w: resigned(w.keys["c"], body=bytes(46191))),
}


@pytest.mark.parametrize(("why", "lie"), HOP_LIES.values(), ids=HOP_LIES)
def test_a_changed_hop_is_found_by_its_receiver(world, monkeypatch, why, lie):
    wire = Meddling(world.transcript)
    circle = Circle(world, monkeypatch, wire)
    wire.lie = lie(world)
    with pytest.raises(ProtocolError, match=why):
        circle.play()
    assert not [e for e in world.transcript.entries if e.kind == "link"]


def test_a_replaced_key_is_found_before_any_hop(world, monkeypatch):
    wire = Meddling(world.transcript)
    circle = Circle(world, monkeypatch, wire)
    wire.kind, wire.lie = MaskKey, resigned(world.server_key, body=bytes(1216))
    with pytest.raises(ProtocolError, match="signature"):
        circle.play()
    assert not [e for e in world.transcript.entries if e.kind == "hop"]

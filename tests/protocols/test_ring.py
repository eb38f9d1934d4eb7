import dataclasses
import itertools

import numpy as np
import pytest
from scipy.stats import chisquare, pearsonr

import protocols.secagg.ring as ring_module
from protocols.decrypting import Decrypting
from protocols.envelope import identity, kind_of, outline, seal
from protocols.errors import AbsentError, ProtocolError
from protocols.messages import Contribution, Hop, Link, MaskKey
from protocols.parties import ring_of
from protocols.policy import DECRYPTOR, SERVER
from protocols.residues import pack, unpack
from protocols.rlwe import PK18_44
from protocols.secagg import Ring
from protocols.secagg.ring import Member
from protocols.transport import Beside, HolderProcess, Wire

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


class Meddling(Wire):
    """A network, or a server that relays: what travels of one kind from one client is changed."""

    kind, sender, lie = Hop, "c", None

    def send(self, sender, receivers, blob):
        if kind_of(blob) is self.kind and sender in (self.sender, SERVER) and self.lie:
            blob = self.lie(blob) if outline(blob).sender == self.sender else blob
        super().send(sender, receivers, blob)


def resigned(key, **changes):
    return lambda blob: seal(outline(blob).model_copy(update=changes), key)


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


def relayed(world, circle, number=1):
    """The links and the request of an attempt, as they reached the decryptor."""
    circle.wire.connect(DECRYPTOR, Beside(lambda blob: _stopped(circle, blob)))
    with pytest.raises(AbsentError):
        circle.play(number)
    links = [blob for _, blob in world.transcript.recall(Link, number)]
    return links, circle.held[-1]


def _stopped(circle, blob):
    """The decryptor's answers up to the first link; the rest is held back for the test."""
    circle.held = getattr(circle, "held", [])
    if kind_of(blob).kind in ("link", "opening-request"):
        circle.held.append(blob)
        return []
    return circle.answer(blob)


def asked(circle, links, **changes):
    """A request for these links; the integers that it opens, None where it is refused."""
    request = outline(circle.held[-1])
    named = tuple(identity(blob) for blob in links)
    request = request.model_copy(update={"contributions": named, **changes})
    for blob in links:
        assert circle.answer(blob) == []
    (answer,) = circle.answer(seal(request, circle.world.server_key))
    return getattr(outline(answer), "integers", None)


def test_links_that_fit_open_the_sum(circle, world):
    links, request = relayed(world, circle)
    assert [outline(blob).sender for blob in links] == list("abcd")
    assert len(outline(links[1]).body) == 45056
    assert outline(request).body == b""
    assert (asked(circle, links) == world.total(circle.plan.groups[0])).all()


LINK_LIES = {
    "no link of c": lambda w, links: [*links[:2], links[3]],
    "c's link by the server": lambda w, links: [
        *links[:2],
        resigned(w.server_key)(links[2]),
        links[3],
    ],
    "c's link by d": lambda w, links: [*links[:2], resigned(w.keys["d"])(links[2]), links[3]],
    "c sent another hop": lambda w, links: [
        *links[:2],
        resigned(w.keys["c"], sent="0" * 64)(links[2]),
        links[3],
    ],
    "c received another hop": lambda w, links: [
        *links[:2],
        resigned(w.keys["c"], received="0" * 64)(links[2]),
        links[3],
    ],
    "c's link is of another plan": lambda w, links: [
        *links[:2],
        resigned(w.keys["c"], plan="0" * 64)(links[2]),
        links[3],
    ],
    "c's link is of another attempt": lambda w, links: [
        *links[:2],
        resigned(w.keys["c"], attempt=7)(links[2]),
        links[3],
    ],
    "the sum is c's": lambda w, links: [
        links[0],
        resigned(w.keys["b"], body=b"")(links[1]),
        resigned(w.keys["c"], body=outline(links[1]).body)(links[2]),
        links[3],
    ],
    "the sum is the server's": lambda w, links: [
        links[0],
        resigned(w.server_key)(links[1]),
        *links[2:],
    ],
    "the sum is noise": lambda w, links: [
        links[0],
        resigned(
            w.keys["b"],
            body=pack(np.random.default_rng(1).integers(0, Q, 2 * N).astype(np.uint64), 44),
        )(links[1]),
        *links[2:],
    ],
    "c adds a sum": lambda w, links: [
        *links[:2],
        resigned(w.keys["c"], body=outline(links[1]).body)(links[2]),
        links[3],
    ],
    "no sum at all": lambda w, links: [
        links[0],
        resigned(w.keys["b"], body=b"")(links[1]),
        *links[2:],
    ],
    "in another order": lambda w, links: [links[1], links[0], *links[2:]],
}


@pytest.mark.parametrize("lie", LINK_LIES)
def test_links_that_do_not_fit_open_nothing(circle, world, lie):
    links, _ = relayed(world, circle)
    assert asked(circle, LINK_LIES[lie](world, links)) is None
    assert asked(circle, links) is None


@pytest.mark.parametrize(
    "change", [{"plan": "0" * 64}, {"attempt": 2}, {"body": bytes(45056)}, {"group": "g1"}]
)
def test_a_request_of_another_shape_or_stage_opens_nothing(circle, world, change):
    links, _ = relayed(world, circle)
    assert asked(circle, links, **change) is None


def test_uploads_of_the_other_mode_are_not_taken(circle, world):
    links, _ = relayed(world, circle)
    fields = outline(links[0]).model_dump(include={"session", "round", "attempt", "sender", "plan"})
    body = outline(links[1]).body
    stray = Contribution(**fields, group="g0", body=body)
    assert circle.answer(seal(stray, world.keys["a"])) == []
    assert circle.holder._attempt.uploads == []
    assert (asked(circle, links) == world.total(circle.plan.groups[0])).all()


def test_a_dishonest_first_client_with_one_neighbour_s_hop_has_the_decryptor_read_another(
    circle, world
):
    """The limit of a ring: first client b and d, around c, sign c's part as the sum."""
    links, _ = relayed(world, circle)
    hops = circle.hops()
    difference = (hops["c"] + np.uint64(Q) - hops["b"]) % np.uint64(Q)
    lie = resigned(world.keys["b"], body=pack(difference, 44))(links[1])
    opened = asked(circle, [links[0], lie, *links[2:]])
    assert (opened == 3 * world.values["c", 1]).all()


def test_a_client_that_goes_means_a_new_attempt(circle, world):
    def ended(plan):
        raise AbsentError("the site's process ended")

    honest = circle.clients["d"]
    circle.clients["d"] = dataclasses.replace(honest, release=ended)
    with pytest.raises(AbsentError):
        circle.play()
    assert not [e for e in world.transcript.entries if e.kind == "link"]
    outcome = circle.play(groups=world.groups("abc"))
    assert outcome.aggregates["g0"].attempt == 2
    assert (outcome.aggregates["g0"].integers == world.total(circle.plan.groups[0])).all()


def test_a_resumed_round_fetches_what_is_open(circle, world):
    groups = world.groups("abc", "def")

    def ended(plan):
        raise AbsentError("the site's process ended")

    honest = circle.clients["e"]
    circle.clients["e"] = dataclasses.replace(honest, release=ended)
    with pytest.raises(AbsentError):
        circle.play(groups=groups)
    circle.clients["e"] = honest
    outcome = circle.play(groups=groups)
    assert {name: one.attempt for name, one in outcome.aggregates.items()} == {"g0": 1, "g1": 2}
    assert set(outcome.cost.protect) == set("def")
    for group in groups:
        assert (outcome.aggregates[group.name].integers == world.total(group)).all()


def test_a_member_without_its_hops_makes_no_link(circle):
    circle.play()
    member = circle.members["a"]
    lone = Member(member.client, member.accepted)
    with pytest.raises(ProtocolError, match="no hops"):
        lone.link(circle.plan.groups[0])


def test_what_a_ring_costs_in_bytes(circle):
    """A ciphertext and its sealing per client, one more from the first, twice relayed."""
    sent = circle.play().cost.sent_bytes
    body, frame = PK18_44.ciphertext_bytes(40), 700
    assert 4 * (body + 1136) < sent["hop"] < 4 * (body + 1136 + frame)
    assert 2 * body < sent["link"] < 2 * body + 8 * frame

"""What the decryptor opens of a ring's links, and a ring that is broken off or costed."""

import dataclasses

import numpy as np
import pytest

from protocols.envelope import identity, kind_of, outline, seal
from protocols.errors import AbsentError, ProtocolError
from protocols.messages import Contribution, Link
from protocols.policy import DECRYPTOR
from protocols.residues import pack
from protocols.rlwe import PK18_44
from protocols.secagg.ring import Member
from protocols.transport import Beside
from tests.protocols.circles import N, Q, resigned
from tests.protocols.circles import circle as circle


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

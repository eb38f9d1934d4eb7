import dataclasses
import typing

import numpy as np
import pytest

from protocols.chain import digest
from protocols.envelope import outline, seal
from protocols.errors import NatflError, ProtocolError
from protocols.messages import (
    Contribution,
    MaskKey,
    MaskSeed,
    Opening,
    OpeningRequest,
    RoundKey,
    RoundPlan,
)
from protocols.parties import Server
from protocols.policy import DECRYPTOR
from protocols.rlwe import PK18_44
from protocols.transport import HolderProcess


def test_two_groups_are_opened_exactly_by_a_process_of_its_own(world):
    with HolderProcess(world.folder / "holder") as process:
        topology, enrolment = world.apart(process)
        groups = world.groups("abc", "def")
        outcome = topology.play(world.plan(enrolment=enrolment, groups=groups))
    for group in groups:
        aggregate = outcome.aggregates[group.name]
        assert (aggregate.integers == world.total(group)).all()
        assert aggregate.sha256 == digest(world.total(group).astype("<i8").tobytes())


def test_plain_and_ckks_give_the_same_integers_and_digest(world, new_world):
    secured = world.beside()
    other = new_world("plain")
    plain, enrolment = other.plain()
    for number in range(1, 9):
        other.values = world.values
        one = secured.play(world.plan(number))
        two = plain.play(other.plan(number, enrolment=enrolment))
        assert one.aggregates["g0"].sha256 == two.aggregates["g0"].sha256
        assert (one.aggregates["g0"].integers == two.aggregates["g0"].integers).all()


def test_costs_name_every_client_and_every_kind_of_message(world):
    cost = world.beside().play(world.plan()).cost
    assert set(cost.protect) == set("abcd")
    assert all(seconds > 0 for seconds in (*cost.protect.values(), cost.aggregate, cost.open))
    kinds = {RoundPlan, RoundKey, MaskKey, MaskSeed, Contribution, OpeningRequest, Opening}
    assert set(cost.sent_bytes) == {kind.kind for kind in kinds}
    assert set(cost.upload_bytes) == set("abcd")
    for name, count in cost.upload_bytes.items():
        sent = [entry for entry in world.transcript.entries if entry.sender == name]
        assert count == sum(entry.bytes * len(entry.receivers) for entry in sent)
    # Each of four uploads goes to the server and on to the decryptor.
    body = PK18_44.ciphertext_bytes(world.size)
    assert 8 * body < cost.sent_bytes["contribution"] < 8 * (body + 600)


def test_the_server_has_no_field_that_could_hold_a_decryption_key(world):
    hints = typing.get_type_hints(Server)
    assert {field.name: hints[field.name].__name__ for field in dataclasses.fields(Server)} == {
        "key": "SigningKey",
        "enrolment": "Enrolment",
    }
    server = world.server(world.enrolment())
    world.beside().play(world.plan())
    reachable = [*vars(server).values(), *vars(server.key).values()]
    assert not any("tenseal" in type(value).__module__ for value in reachable)
    assert not any("seal" in type(value).__module__ for value in reachable)


def test_a_round_that_was_opened_is_fetched_and_not_encrypted_again(world):
    topology = world.beside()
    first = topology.play(world.plan())
    again = topology.play(world.plan())
    assert world.plan().attempt == 3
    assert again.aggregates["g0"].attempt == first.aggregates["g0"].attempt == 1
    assert again.aggregates["g0"].sha256 == first.aggregates["g0"].sha256
    assert "contribution" not in again.cost.sent_bytes
    assert again.cost.protect == {}


def test_a_resumed_round_opens_what_is_missing_and_fetches_the_rest(world):
    topology, groups = world.beside(), world.groups("abc", "def")
    fails = dict(world.clients(world.enrolment()))

    def crash(plan):
        raise RuntimeError("the site's process ended")

    fails["e"] = dataclasses.replace(fails["e"], release=crash)
    broken = type(topology)(world.server(world.enrolment()), fails, world.wire)
    with pytest.raises(RuntimeError, match="ended"):
        broken.play(world.plan(groups=groups))
    outcome = topology.play(world.plan(groups=groups))
    assert {name: one.attempt for name, one in outcome.aggregates.items()} == {"g0": 1, "g1": 2}
    assert set(outcome.cost.protect) == set("def")
    for group in groups:
        assert (outcome.aggregates[group.name].integers == world.total(group)).all()


def test_a_release_of_another_round_or_size_is_not_sent(world, make_released):
    for wrong in (
        make_released(world.values["b", 1], round_number=2),
        make_released(world.values["b", 1], session="other"),
        make_released(world.values["b", 1][:-1]),
    ):
        topology = world.beside()
        client = topology._clients["b"]
        topology._clients["b"] = dataclasses.replace(client, release=lambda _, out=wrong: out)
        with pytest.raises(ProtocolError, match="release"):
            topology.play(world.plan())
    assert not [e for e in world.transcript.entries if e.kind == "opening"]


def test_plain_takes_nothing_but_a_release_within_the_limit(world, make_released):
    plain, enrolment = world.plain()
    plan = world.plan(enrolment=enrolment)
    wide = make_released(np.full(world.size, PK18_44.value_limit + 1))

    class LookAlike:
        values, key = world.values["a", 1], wide.key

    arrays = (world.values["a", 1], (TypeError, AttributeError))
    for wrong, error in ((wide, NatflError), arrays, (LookAlike(), TypeError)):
        client = plain._clients["a"]
        plain._clients["a"] = dataclasses.replace(client, release=lambda _, out=wrong: out)
        with pytest.raises(error):
            plain.play(plan)


def test_openings_reach_their_own_group_only(world):
    world.beside().play(world.plan(groups=world.groups("abc", "def")))
    for client, group in (("a", "g0"), ("f", "g1")):
        openings = world.transcript.view({client}).of(Opening)
        assert [opening.group for opening in openings] == [group]
    assert len(world.transcript.view({DECRYPTOR}).of(Opening)) == 2


def test_a_refusal_is_said_to_be_one_and_nothing_is_opened(world):
    topology = world.beside()
    topology.play(world.plan(1))
    with pytest.raises(ProtocolError, match="key holder refused"):
        topology.play(world.plan(2, subset=[10, 11]))
    assert [e.round for e in world.transcript.entries if e.kind == "opening"].count(2) == 0


def test_keys_and_openings_of_another_plan_are_not_accepted(world):
    world.beside().play(world.plan())
    record = {entry.kind: world.transcript.read(entry) for entry in world.transcript.entries}
    client = world.clients(world.enrolment())["a"]
    accepted = client.accept_plan(record["round-plan"])
    other = accepted._replace(plan_id="0" * 64)
    (group,) = accepted.plan.groups
    keys, length = {DECRYPTOR: record["round-key"]}, PK18_44.public_key_bytes
    client.accept_keys(keys, accepted, length)
    client.accept_opening(record["opening"], accepted, group)
    with pytest.raises(ProtocolError, match="another plan"):
        client.accept_keys(keys, other, length)
    with pytest.raises(ProtocolError, match="another plan"):
        client.accept_opening(record["opening"], other, group)


def test_an_opening_whose_digest_is_not_its_integers_is_not_accepted(world):
    world.beside().play(world.plan())
    record = {entry.kind: world.transcript.read(entry) for entry in world.transcript.entries}
    client = world.clients(world.enrolment())["a"]
    accepted = client.accept_plan(record["round-plan"])
    opening = outline(record["opening"])
    forged = seal(opening.model_copy(update={"sha256": "0" * 64}), world.holder_key)
    with pytest.raises(ProtocolError, match="sum"):
        client.accept_opening(forged, accepted, accepted.plan.groups[0])

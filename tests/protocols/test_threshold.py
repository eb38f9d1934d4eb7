"""Rounds with shared keys: exact sums, dropouts of clients and holders, crashes."""

import dataclasses
import os
from collections import Counter

import pytest

from protocols.envelope import outline
from protocols.errors import ProtocolError
from protocols.messages import (
    Contribution,
    KeyOpening,
    KeyShare,
    Opening,
    OpeningRequest,
    RoundKey,
    RoundPlan,
)
from protocols.multikey import MK18_39
from protocols.parties import reference_of
from protocols.policy import SERVER, holder_name
from protocols.secagg import Threshold
from protocols.share_holder import ShareHolder
from protocols.transport import HolderProcess
from tests.protocols.shared_rounds import (
    ALPHAS,
    CLIENT_PHASES,
    HOLDER_PHASES,
    HOLDERS,
    cut_at,
    exact,
    hook,
    kinds,
    reconnected,
    renamed,
)

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
    object.__setattr__(bad, "share_key", lambda *args: renamed(world, shares(*args)))
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

"""What a decryptor opens, and what no message can make it open."""

import numpy as np
import pytest

from protocols.envelope import identity, outline, seal
from protocols.residues import pack, weighted_sum
from protocols.rlwe import PK18_44
from tests.protocols.one_attempt import begin as begin


def test_an_honest_attempt_opens_the_weighted_sum(begin, world):
    attempt = begin()
    uploads = attempt.uploads()
    attempt.send(uploads)
    assert (attempt.opened(attempt.request(uploads)) == world.total(attempt.plan.groups[0])).all()


def test_a_tampered_byte_anywhere_in_an_upload_leaves_it_out(begin, world):
    attempt = begin()
    uploads = attempt.uploads()
    draw = np.random.default_rng(8)
    for place in [0, 5, 6, 8, 12, *draw.integers(0, len(uploads[0]), 60), len(uploads[0]) - 1]:
        changed = bytearray(uploads[0])
        changed[place] ^= 1 << int(draw.integers(0, 8))
        assert attempt.holder.answer(bytes(changed)) in ([], [attempt.refusal()])
        assert attempt.holder._attempt.uploads == []
    attempt.send(uploads)
    assert (attempt.opened(attempt.request(uploads)) == world.total(attempt.plan.groups[0])).all()


@pytest.mark.parametrize(
    "change",
    [
        {"sender": "b"},
        {"sender": "f"},
        {"round": 2},
        {"attempt": 2},
        {"session": "other"},
        {"plan": "0" * 64},
        {"group": "g1"},
        {"body": b""},
        {"body": bytes(100)},
        {"body": b"\xff" * PK18_44.ciphertext_bytes(40)},
    ],
)
def test_signed_uploads_that_do_not_belong_here_are_left_out(begin, change):
    attempt = begin()
    attempt.send([attempt.upload("a", **change)])
    assert attempt.holder._attempt.uploads == []
    assert attempt.opened(attempt.request(attempt.uploads())) is None


def test_replayed_duplicated_and_reordered_uploads_are_left_out(begin):
    first = begin()
    old = first.uploads()
    attempt = begin(first.holder)
    fresh = attempt.uploads()
    attempt.send([*old, fresh[1], fresh[0], fresh[0], *old, fresh[1], fresh[3]])
    assert attempt.holder._attempt.uploads == [identity(fresh[0]), identity(fresh[1])]
    attempt.send([fresh[2], fresh[3], fresh[3]])
    assert attempt.holder._attempt.uploads == [identity(blob) for blob in fresh]
    swapped = [fresh[1], fresh[0], *fresh[2:]]
    assert attempt.opened(attempt.request(swapped)) is None


@pytest.mark.parametrize(
    "case", ["one client", "other weights", "one left out", "one twice", "zero"]
)
def test_a_server_that_asks_for_another_sum_is_refused_and_the_key_is_gone(begin, case):
    attempt = begin()
    uploads = attempt.uploads()
    attempt.send(uploads)
    bodies = [outline(blob).body for blob in uploads]
    lie = {
        "one client": (bodies[:1], [1]),
        "other weights": (bodies, [1, 1, 1, 1]),
        "one left out": (bodies[1:], [2, 3, 4]),
        "one twice": ([*bodies, bodies[0]], [1, 2, 3, 4, 1]),
        "zero": ([], []),
    }[case]
    body = weighted_sum(PK18_44, attempt.plan.size, *lie)
    assert attempt.opened(attempt.request(uploads, body=body)) is None
    # One request per group and attempt: there is no second guess, not even an honest one.
    assert attempt.holder._attempt is None
    assert attempt.opened(attempt.request(uploads)) is None


def test_fewer_uploads_than_participants_open_nothing(begin):
    attempt = begin()
    uploads = attempt.uploads()
    attempt.send(uploads[:3])
    shorter = attempt.request(uploads[:3], alphas=(1, 2, 3))
    assert attempt.opened(shorter) is None


@pytest.mark.parametrize(
    "change", [{"plan": "0" * 64}, {"attempt": 2}, {"round": 2}, {"group": "g1"}]
)
def test_a_request_of_another_stage_plan_or_group_is_refused(begin, change):
    attempt = begin()
    uploads = attempt.uploads()
    attempt.send(uploads)
    assert attempt.opened(attempt.request(uploads, **change)) is None


def test_the_same_request_gets_the_same_opening_and_another_one_nothing(begin, world):
    attempt = begin()
    uploads = attempt.uploads()
    attempt.send(uploads)
    request = attempt.request(uploads)
    once = attempt.holder.answer(request)
    assert attempt.holder.answer(request) == once
    again = world.holder()
    assert again.answer(request) == once
    assert again.answer(attempt.request(uploads[::-1])) == [attempt.refusal()]


def test_an_opened_group_is_returned_to_a_new_attempt_and_never_summed_again(begin, world):
    first = begin()
    uploads = first.uploads()
    first.send(uploads)
    (opening,) = first.holder.answer(first.request(uploads))
    # The same group: its stored opening comes with the key; new uploads for it are left out.
    retry = begin(first.holder)
    assert retry.stored == [opening]
    (past,) = outline(retry.key_blob).opened
    assert (past.group, past.attempt, past.plan) == ("g0", 1, first.plan_id)
    fresh = retry.uploads()
    retry.send(fresh)
    assert retry.opened(retry.request(fresh)) is None
    # Another set, other weights, or the same clients under another name: no key at all.
    for groups in (
        world.groups("abc"),
        world.groups("abcde"),
        world.groups("abcd", alphas=(2, 2, 2, 2)),
        [world.groups("abcd")[0].model_copy(update={"name": "again"})],
    ):
        blob = seal(
            world.plan(
                groups=groups,
            ).model_copy(update={"attempt": 9}),
            world.server_key,
        )
        assert first.holder.answer(blob) == [first.refusal()]


def test_a_new_attempt_closes_the_one_before(begin, world):
    first = begin()
    uploads = first.uploads()
    first.send(uploads)
    second = begin(first.holder, groups=world.groups("abc"))
    assert first.opened(first.request(uploads)) is None
    third = begin(first.holder)
    assert third.plan.attempt == 3
    assert first.holder.answer(first.plan_blob) == [first.refusal()]
    assert first.holder.answer(second.plan_blob) == [first.refusal()]


def test_feigned_dropouts_never_give_two_sums_of_one_round(begin, world):
    """Every pair of participant sets of six clients: the second differing set gets no opening."""
    first = begin(groups=world.groups("abcdef", alphas=(1,) * 6))
    uploads = first.uploads()
    first.send(uploads)
    assert first.opened(first.request(uploads)) is not None
    for number in range(1 << 6):
        members = "".join(name for at, name in enumerate("abcdef") if number >> at & 1)
        if len(members) < 3 or members == "abcdef":
            continue
        groups = world.groups(members, alphas=(1,) * 6)
        plan = world.plan(groups=groups).model_copy(update={"attempt": 2})
        assert first.holder.answer(seal(plan, world.server_key)) == [first.refusal()]
    log = (world.folder / "decryptor/refusals.log").read_text().splitlines()
    assert sum("opened group g0 was changed" in line for line in log) == 41


def test_proxies_of_an_earlier_round_are_not_asked_again(begin, world):
    first = begin()
    repeated = world.plan(2, subset=[15, 99])
    assert first.holder.answer(seal(repeated, world.server_key)) == [first.refusal()]
    assert begin(first.holder, number=2).plan.round == 2


def test_plans_that_break_the_floors_or_are_not_the_servers_get_one_constant_refusal(begin, world):
    first = begin()
    plan = world.plan(2)
    floors = plan.floors.model_copy(update={"participants": 2})
    lone = plan.groups[0].model_copy(update={"alphas": (60, 1, 1, 1)})
    blobs = [
        seal(plan, world.keys["a"]),
        seal(plan.model_copy(update={"floors": floors}), world.server_key),
        seal(plan.model_copy(update={"groups": (lone,)}), world.server_key),
        seal(plan.model_copy(update={"session": "other"}), world.server_key),
        b"",
        bytes(1000),
    ]
    answers = [first.holder.answer(blob) for blob in blobs]
    assert answers == [[first.refusal()]] * len(blobs)
    # A refused plan changes nothing: the attempt before it is still open.
    uploads = first.uploads()
    first.send(uploads)
    assert first.opened(first.request(uploads)) is not None
    log = (world.folder / "decryptor/refusals.log").read_text()
    assert "participant floor was lowered" in log
    assert "signature" in log


def test_a_dishonest_clients_noise_opens_nothing(begin):
    """Signed, reduced and of the right length: the sum is refused, for it is out of bounds."""
    attempt = begin()
    draw = np.random.default_rng(9)
    noise = draw.integers(0, PK18_44.prime, 2 * PK18_44.degree).astype(np.uint64)
    uploads = [attempt.upload("a", body=pack(noise, 44)), *attempt.uploads()[1:]]
    attempt.send(uploads)
    assert attempt.opened(attempt.request(uploads)) is None
    assert attempt.holder._attempt is None


def test_uploads_of_zeros_add_up_to_no_ciphertext_and_are_refused(begin, world):
    """SEAL raises on c₁ = 0 in its own words; the answer is the one refusal."""
    attempt = begin()
    zeros = bytes(PK18_44.ciphertext_bytes(world.size))
    uploads = [attempt.upload(name, body=zeros) for name in "abcd"]
    attempt.send(uploads)
    assert attempt.opened(attempt.request(uploads)) is None


def test_six_hundred_mutants_signed_by_insiders_neither_crash_the_holder_nor_move_it(begin, world):
    """All parties' own messages, changed and signed again: refused, and the state as before."""
    attempt = begin()
    uploads = attempt.uploads()
    attempt.send(uploads)
    request = attempt.request(uploads)
    sources = [
        (attempt.plan_blob, world.server_key),
        (uploads[0], world.keys["a"]),
        (attempt.key_blob, world.holder_key),
    ]
    draw = np.random.default_rng(10)
    for number in range(600):
        blob, key = sources[number % len(sources)]
        unsigned = bytearray(blob[:-64])
        for _ in range(int(draw.integers(1, 4))):
            unsigned[draw.integers(0, min(len(unsigned), 400))] = draw.integers(0, 256)
        mutant = bytes(unsigned) + key.sign(bytes(unsigned))
        if mutant == blob:
            continue
        assert attempt.holder.answer(mutant) in ([], [attempt.refusal()])
        assert attempt.holder._attempt.uploads == [identity(upload) for upload in uploads]
    assert (attempt.opened(request) == world.total(attempt.plan.groups[0])).all()

import json
import struct
from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError

from protocols import envelope
from protocols.chain import canonical, digest
from protocols.envelope import authentic, identity, kind_of, outline, seal, unseal
from protocols.errors import NatflError, ProtocolError
from protocols.messages import (
    KINDS,
    Contribution,
    Group,
    KeyOpening,
    KeyShare,
    Opened,
    Opening,
    OpeningRequest,
    Refusal,
    RoundKey,
    Stage,
)
from protocols.policy import DECRYPTOR, SERVER
from protocols.rlwe import PK18_44

PREFIX = struct.calcsize("<5sBBII")
AT = Stage("study", 1, 1)
ROUND_KINDS = KINDS[:8]
"""Those of every round; what single topologies add is tested with them."""


def example(kind, world):
    """One message of each kind, and the key that signs it."""
    at = {**AT._asdict(), "sender": SERVER}
    if kind.kind == "round-plan":
        return world.plan(), world.server_key
    if kind is Contribution:
        body = bytes(PK18_44.ciphertext_bytes(world.size))
        return Contribution(
            **{**at, "sender": "b"}, plan="1" * 64, group="g0", body=body
        ), world.keys["b"]
    if kind is KeyShare:
        fields = {"plan": "1" * 64, "group": "g0", "holder": "a.holder", "contribution": "6" * 64}
        return KeyShare(**{**at, "sender": "b"}, **fields, body=bytes(1168)), world.keys["b"]
    if kind is OpeningRequest:
        listed = {"participants": ("a", "b"), "contributions": ("2" * 64, "3" * 64)}
        made = OpeningRequest(**at, plan="1" * 64, group="g0", **listed, body=b"sum")
        return made, world.server_key
    if kind is KeyOpening:
        at["sender"], fields = "a.holder", {"plan": "1" * 64, "group": "g0", "request": "5" * 64}
        return KeyOpening(**at, **fields, body=bytes(9984)), world.holder_keys["a"]
    at["sender"] = DECRYPTOR
    if kind is RoundKey:
        past = Opened(group="g1", attempt=1, plan="4" * 64)
        return RoundKey(**at, plan="1" * 64, opened=(past,), body=b"key"), world.holder_key
    if kind is Opening:
        body = np.arange(-3, 3).astype("<i8").tobytes()
        fields = {"plan": "1" * 64, "group": "g0", "participants": tuple("abcd")}
        fields |= {"request": "5" * 64, "sha256": digest(body)}
        return Opening(**at, **fields, body=body), world.holder_key
    return Refusal(**at), world.holder_key


@pytest.mark.parametrize("kind", ROUND_KINDS)
def test_every_kind_survives_the_wire_and_has_one_encoding(kind, world):
    message, key = example(kind, world)
    blob = seal(message, key)
    back = unseal(blob, kind, AT, sender=message.sender, verify_key=key.public)
    assert back == message
    assert back.body == message.body
    assert seal(back, key) == blob
    assert kind_of(blob) is kind
    assert outline(blob) == message
    assert identity(blob) == digest(blob[:-64])


def test_the_set_is_closed_and_messages_do_not_change(world):
    assert len({kind.code for kind in KINDS}) == len({kind.kind for kind in KINDS}) == len(KINDS)
    assert {kind.code: kind.kind for kind in ROUND_KINDS} == {
        1: "round-plan",
        2: "round-key",
        3: "contribution",
        4: "opening-request",
        5: "opening",
        6: "refusal",
        7: "key-share",
        8: "key-opening",
    }
    message, _ = example(Opening, world)
    with pytest.raises(ValidationError, match="frozen"):
        message.round = 2
    with pytest.raises(ValidationError, match="extra"):
        Refusal(**AT._asdict(), sender=SERVER, reason="because")
    assert message.integers.tolist() == [-3, -2, -1, 0, 1, 2]


def test_a_wrong_stage_sender_key_or_kind_is_refused(world):
    message, key = example(Contribution, world)
    blob = seal(message, key)
    good = {"sender": "b", "verify_key": key.public}
    for at in (Stage("other", 1, 1), Stage("study", 2, 1), Stage("study", 1, 2)):
        with pytest.raises(ProtocolError, match="another session, round or attempt"):
            unseal(blob, Contribution, at, **good)
    with pytest.raises(ProtocolError, match="another sender"):
        unseal(blob, Contribution, AT, sender="c", verify_key=key.public)
    with pytest.raises(ProtocolError, match="signature"):
        unseal(blob, Contribution, AT, sender="b", verify_key=world.keys["c"].public)
    with pytest.raises(ProtocolError, match="another kind"):
        unseal(blob, Opening, AT, **good)
    with pytest.raises(ProtocolError, match="not the preset's"):
        unseal(blob, Contribution, AT, **good, body_bytes=len(message.body) - 1)


def test_a_changed_byte_anywhere_in_a_contribution_is_refused(world):
    message, key = example(Contribution, world)
    blob = seal(message, key)
    draw = np.random.default_rng(5)
    header = len(blob) - 64 - len(message.body)
    places = [
        *range(header),
        *draw.integers(header, len(blob) - 64, 800),
        *range(len(blob) - 64, len(blob)),
    ]
    for place in places:
        changed = bytearray(blob)
        changed[place] ^= int(draw.integers(1, 256))
        with pytest.raises(ProtocolError):
            authentic(bytes(changed), Contribution, sender="b", verify_key=key.public)


def test_truncated_and_extended_messages_are_refused(world):
    message, key = example(Contribution, world)
    blob = seal(message, key)
    for wrong in (b"", blob[:10], blob[:-1], blob[:-64], blob + b"\0", blob + blob, blob[1:]):
        with pytest.raises(ProtocolError):
            authentic(wrong, Contribution, sender="b", verify_key=key.public)


def signed(prefix_and_rest, key):
    return prefix_and_rest + key.sign(prefix_and_rest)


def framed(code, header, body=b"", version=1, magic=b"NATFL", lengths=None):
    sizes = lengths or (len(header), len(body))
    return struct.pack("<5sBBII", magic, version, code, *sizes) + header + body


@pytest.mark.parametrize(
    "change",
    [
        {"magic": b"NATFX"},
        {"version": 2},
        {"version": 0},
        {"code": 0},
        {"code": 7},
        {"code": 1 + max(kind.code for kind in KINDS)},
        {"code": 255},
        {"lengths": (0, 0)},
        {"lengths": (1 << 31, 0)},
        {"lengths": (0, 1 << 31)},
        {"lengths": ((1 << 18) + 1, 0)},
    ],
)
def test_frames_of_other_versions_kinds_or_lengths_are_refused_though_signed(world, change):
    message, key = example(Refusal, world)
    header = canonical(message.model_dump(mode="json"))
    blob = signed(framed(**{"code": 6, "header": header, **change}), key)
    with pytest.raises(ProtocolError):
        authentic(blob, Refusal, sender=DECRYPTOR, verify_key=key.public)


HEADER = {"attempt": 1, "round": 1, "sender": "decryptor", "session": "study"}


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"null",
        b"[]",
        b"[" * 100_000,
        b'{"a":' * 40_000,
        json.dumps(HEADER).encode(),  # spaces
        canonical(HEADER) + b" ",
        canonical(HEADER) + b"\n",
        canonical(HEADER)[:-1] + b',"session":"study"}',
        canonical(HEADER).replace(b'"attempt":1', b'"attempt":1.0'),
        canonical(HEADER).replace(b'"attempt":1', b'"attempt":1e0'),
        canonical(HEADER).replace(b'"attempt":1', b'"attempt":"1"'),
        canonical(HEADER).replace(b'"attempt":1', b'"attempt":true'),
        canonical(HEADER).replace(b'"attempt":1', b'"attempt":-1'),
        canonical(HEADER).replace(b'"attempt":1', b'"attempt":NaN'),
        canonical(HEADER).replace(b'"attempt":1', b'"attempt":' + b"9" * 5000),
        canonical(HEADER).replace(b"study", b"st\\u0075dy"),
        canonical(HEADER).replace(b"study", b"st/../udy"),
        canonical(HEADER).replace(b"study", b"\xff\xfe"),
        canonical({**HEADER, "body": "x"}),
        canonical({**HEADER, "__class__": "os.system"}),
        canonical({name: value for name, value in HEADER.items() if name != "round"}),
    ],
)
def test_headers_that_are_not_canonical_are_refused_though_signed(world, header):
    key = world.holder_key
    whole = signed(framed(6, canonical(HEADER)), key)
    assert authentic(whole, Refusal, sender=DECRYPTOR, verify_key=key.public)
    blob = signed(framed(6, header), key)
    with pytest.raises(ProtocolError, match="message refused"):
        authentic(blob, Refusal, sender=DECRYPTOR, verify_key=key.public)


def test_sealing_refuses_bodies_over_the_limit(world):
    message = Refusal(**AT._asdict(), sender=DECRYPTOR, body=b"x")
    with pytest.raises(ProtocolError, match="limit"):
        seal(message, world.holder_key)
    many = tuple(f"{number:064x}" for number in range(5000))
    fields = {"plan": "1" * 64, "group": "g", "participants": ("a",), "contributions": many}
    wide = OpeningRequest(**AT._asdict(), sender=SERVER, **fields)
    with pytest.raises(ProtocolError, match="header"):
        seal(wide, world.server_key)


def test_a_plan_finds_the_groups_of_a_client_and_a_group_by_its_name(world):
    plan = world.plan(groups=world.groups("abc", "def"))
    assert [group.name for group in plan.groups_of("e")] == ["g1"]
    assert plan.group("g1").participants == tuple("def")
    assert plan.participants == tuple("abcdef")
    assert Group(name="g", participants=("a",), alphas=(3,)).total == 3
    assert plan.subset.tolist() == list(range(10, 20))
    with pytest.raises(ProtocolError, match="client is not in this plan"):
        plan.groups_of("z")
    with pytest.raises(ProtocolError, match="group is not in this plan"):
        plan.group("g2")


def test_groups_with_spans_sum_parts_of_the_vector_and_groups_without_the_whole(world):
    whole, part = world.groups("abc", "def")
    part = part.model_copy(update={"participants": tuple("abc"), "span": (10, 25)})
    plan = world.plan().model_copy(update={"groups": (whole, part)})
    assert (plan.span_of(whole), plan.width_of(whole)) == ((0, 40), 40)
    assert (plan.span_of(part), plan.width_of(part)) == ((10, 25), 15)
    assert plan.participants == tuple("abc")
    assert plan.groups_of("b") == (whole, part)


def test_a_group_among_some_keeps_order_and_weights():
    group = Group(name="g", participants=tuple("abcd"), alphas=(1, 2, 3, 4))
    kept = group.among({"d", "b", "z"})
    assert (kept.participants, kept.alphas, kept.total) == (("b", "d"), (2, 4), 6)
    assert group.total == 10


def mutate(unsigned, draw):
    """One random change to the bytes that a signature covers."""
    data, kind = bytearray(unsigned), int(draw.integers(0, 8))
    place = int(draw.integers(0, min(len(data), 700)))
    if kind == 0:
        data[place] ^= 1 << int(draw.integers(0, 8))
    elif kind == 1:
        data[place] = int(draw.integers(0, 256))
    elif kind == 2:
        del data[place : place + int(draw.integers(1, 40))]
    elif kind == 3:
        data[place:place] = draw.bytes(int(draw.integers(1, 40)))
    elif kind == 4:
        data = data[: int(draw.integers(0, len(data)))]
    elif kind == 5:
        data[PREFIX - 8 : PREFIX] = draw.bytes(8)
    else:
        return change_header(unsigned, draw, keep_canonical=kind == 6)
    return bytes(data)


def change_header(unsigned, draw, *, keep_canonical):
    """Replace one value of the JSON header by a hostile one; lengths fit again."""
    *_, size, body = struct.unpack_from("<5sBBII", unsigned)
    header = json.loads(unsigned[PREFIX : PREFIX + size])
    names = sorted(header)
    hostile = (-1, 0, 2, 1 << 31, "", "b", "a" * 200, None, [], {}, True, [["x"]], "0" * 64, 1.5)
    header[names[draw.integers(len(names))]] = hostile[draw.integers(len(hostile))]
    text = canonical(header) if keep_canonical else json.dumps(header).encode()
    return (
        unsigned[: PREFIX - 8]
        + struct.pack("<II", len(text), body)
        + text
        + unsigned[PREFIX + size :]
    )


def test_two_thousand_mutated_envelopes_crash_nothing_and_are_not_taken_for_others(world):
    """93 in 100 are signed again by the insider whose message it was, so they reach the parser."""
    topology = world.beside()
    enrolment, server, clients = (
        world.enrolment(),
        world.server(world.enrolment()),
        topology._clients,
    )
    plan = world.plan()
    plan_blob = seal(plan, world.server_key)
    plan_id = identity(plan_blob)
    body = bytes(PK18_44.ciphertext_bytes(world.size))
    accepted = clients["b"].accept_plan(plan_blob)
    (group,) = plan.groups
    upload = clients["b"].contribute(accepted, group, body)
    six = accepted._replace(plan=plan.model_copy(update={"size": 6}))
    opening, holder_key = example(Opening, world)
    opening = seal(opening.model_copy(update={"plan": plan_id}), holder_key)
    bytes_of = PK18_44.ciphertext_bytes(world.size)
    receivers = [
        (plan_blob, world.server_key, lambda blob: clients["b"].accept_plan(blob).plan),
        (
            upload,
            world.keys["b"],
            lambda blob: server.accept_contribution(blob, plan, plan_id, group, "b", bytes_of),
        ),
        (
            opening,
            holder_key,
            lambda blob: clients["b"].accept_opening(blob, six, group),
        ),
    ]
    for blob, _, receive in receivers:
        receive(blob)
    draw, seen = np.random.default_rng(6), Counter()
    for number in range(2400):
        blob, key, receive = receivers[number % 3]
        unsigned = mutate(blob[:-64], draw)
        insider = draw.random() < 0.93
        mutant = unsigned + (key.sign(unsigned) if insider else blob[-64:])
        seen["insider" if insider else "outsider"] += 1
        try:
            message = receive(mutant)
        except NatflError:
            seen["refused"] += 1
            continue
        # What is taken says what it says in its one encoding, and keeps to stage and enrolment.
        assert envelope._encode(message) + mutant[-64:] == mutant
        assert message.session == enrolment.session
        assert insider or unsigned == blob[:-64]
        seen["taken"] += 1
        if number % 3:
            assert message.stage == plan.stage
            assert (message.plan, message.group) == (plan_id, "g0")
    assert seen["insider"] >= 0.9 * 2400
    assert seen["refused"] > 2000

"""The real receivers of every message, each where its message is awaited.

The set beside each message names what its sender is free to choose: the server its plan within
the rules, whom to ask for, and what to sign as a sum; a holder its key, and what it says of
earlier attempts; a client its ciphertext. Everything else must be as in the original.
"""

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from mutants import Original
from receiving import Live, Receiver, authentic_to_second, plan_rules, signed
from rules import included, retry, subset
from wire import RefusedError

from protocols.envelope import identity, outline, seal
from protocols.messages import Opened, Reading
from protocols.multikey import MK18_39
from protocols.multikey_ckks import MultiKeySum
from protocols.parties import check_reading, opening_of
from protocols.policy import SERVER
from protocols.sealing import PUBLIC_BYTES
from protocols.sharing import unpack_share

Plan = dict[str, Any]

PLAN = {"round", "attempt", "groups", "layout", "size", "floors", "body"}
KEY = {"opened", "body"}
OPENING = {"participants", "request", "sha256", "body"}


def party(
    name: str, blob: bytes, key: Any, free: Collection[str], take: Callable[[bytes], object]
) -> Receiver:
    """A receiver that keeps nothing."""
    return Receiver(name, signed(blob, key), frozenset(free), take)


def holder(name: str, live: Live, blob: bytes, key: Any, free: Collection[str]) -> Receiver:
    """A key holder, put back after each message; a refused request ends its attempt."""
    original = signed(blob, key)
    return Receiver(name, original, frozenset(free), live.take, live.state, live.renew)


def threshold(world: Any, new_shared: Any, folder: Any) -> list[Receiver]:
    """Clients, server and a share holder; two groups side by side, one of them on its way."""
    enrolment = world.shared()
    world.threshold(enrolment)
    groups = [
        group.model_copy(update={"span": span})
        for group, span in zip(world.groups("abcd", "abcd"), [(0, 30), (30, 40)], strict=True)
    ]
    plan = world.plan(1, enrolment=enrolment, groups=groups)
    attempt = new_shared(world, enrolment, plan).begin(*world.holders.values())
    one, client, server = world.holders["a"], attempt.clients["a"], world.server(enrolment)
    accepted, group, plan_id = attempt.accepted("a"), plan.groups[0], attempt.plan_id
    began, uploads, shares = Live(one, folder / "began"), {}, {}
    for name in "abcd":
        uploads[name], shares[name] = attempt.upload(name)
        assert one.answer(shares[name][one.name]) == []
    asked = Live(one, folder / "asked")
    again = seal(plan.model_copy(update={"attempt": 2}), world.server_key)
    request = attempt.request(uploads)
    (answer,) = one.answer(request)
    opened = Opened(group="g0", attempt=1, plan=plan_id)
    integers = np.arange(-15, 15)
    opening = opening_of(plan, opened, "abcd", identity(request), integers, sender=SERVER)
    read = Reading(
        **plan.stage._asdict(),
        sender=one.name,
        plan=plan_id,
        group="g0",
        request="5" * 64,
        body=integers.astype("<f8").tobytes(),
    )
    key_blob, by, mine, ours = attempt.keys[one.name], world.keys["a"], one._key, world.server_key

    def keys(blob: bytes) -> None:
        found = client.accept_keys({**attempt.keys, one.name: blob}, accepted, PUBLIC_BYTES)
        # A key that is none is found out at the latest when a share is sealed to it.
        client.share_key(found, uploads["a"], group, [bytes(32)] * 6)

    def upload(blob: bytes) -> None:
        expected = MK18_39.ciphertext_bytes(30)
        message = server.accept_contribution(blob, plan, plan_id, group, "a", expected)
        MultiKeySum(MK18_39, 30).add(message.body, 4)

    def key_opening(blob: bytes) -> None:
        asked_for, size = outline(request), MK18_39.share_bytes
        message = server.accept_key_opening(blob, asked_for, identity(request), one.name, size)
        unpack_share(MK18_39, message.body)

    told = {"header": plan.model_dump(mode="json"), "body": plan.body.hex()}

    receivers = [
        party("client, plan", attempt.blob, ours, PLAN, client.accept_plan),
        party("client, round key", key_blob, mine, KEY, keys),
        party(
            "server, round key",
            key_blob,
            mine,
            KEY,
            lambda blob: server.accept_key(blob, plan, plan_id, one.name, PUBLIC_BYTES),
        ),
        party("server, contribution", uploads["a"], by, {"body"}, upload),
        party("server, key opening", answer, mine, {"body"}, key_opening),
        party(
            "client, opening",
            seal(opening, ours),
            ours,
            OPENING,
            lambda blob: client.accept_opening(blob, accepted, group),
        ),
        party(
            "server, reading",
            seal(read, mine),
            mine,
            {"body"},
            lambda blob: check_reading(blob, plan, plan_id, group, enrolment, "5" * 64),
        ),
        holder("holder, plan", asked, again, ours, PLAN),
        holder("holder, key share", began, shares["a"][one.name], by, {"contribution"}),
        holder(
            "holder, request",
            asked,
            request,
            ours,
            {"participants", "contributions"},
        ),
    ]

    receivers[9].second = request_rules(receivers[9], told, outline(request), uploads)
    receivers[0].second = plan_rules(enrolment, receivers[0], names_a)
    receivers[7].second = plan_rules(enrolment, receivers[7], lambda new: follows(new, told))
    return receivers


def names_a(new: Plan) -> bool:
    """The client looks for itself in a plan."""
    return any("a" in group["participants"] for group in new["header"]["groups"])


def follows(new: Plan, told: Plan) -> bool:
    """The holder compares a plan with the one that it took before."""
    subset(new, [told])
    if new["header"]["round"] == told["header"]["round"]:
        retry(new, told, [])
    return True


def request_rules(
    receiver: Receiver, told: Plan, genuine: Any, uploads: dict[str, bytes]
) -> Callable[[bytes], bool]:
    """A request is for clients who may be in a sum, by their contributions' identities, no more."""
    (group,) = (one for one in told["header"]["groups"] if one["name"] == genuine.group)

    def second(blob: bytes) -> bool:
        if not authentic_to_second(receiver.original, blob):
            return False
        sent = Original(blob, receiver.original.sign)
        header = sent.header
        if sent.body:
            return False
        fixed = ("session", "round", "attempt", "plan", "group")
        if any(header[name] != getattr(genuine, name) for name in fixed):
            return False
        try:
            included(group, header["participants"], told["header"]["floors"])
        except RefusedError:
            return False
        found = [identity(uploads[name]) for name in header["participants"]]
        return bool(header["contributions"] == found)

    return second

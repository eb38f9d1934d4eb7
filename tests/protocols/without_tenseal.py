"""Crafted bodies to server, client and share holder where tenseal cannot be imported.

`python without_tenseal.py VECTORS BODIES`: the folder with the fixed cast, and bodies as JSON.
"""

import contextlib
import importlib
import json
import sys
import tempfile
from pathlib import Path


class Blocked:
    """Before all finders: tenseal and its parts are not there."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tenseal", "_tenseal_cpp", "_sealapi_cpp"):
            raise ImportError(f"{name} is blocked here")


sys.meta_path.insert(0, Blocked())
sys.path.insert(0, sys.argv[1])

import cast  # noqa: E402
import envelopes  # noqa: E402

from protocols.envelope import kind_of, seal  # noqa: E402
from protocols.errors import NatflError  # noqa: E402
from protocols.messages import KINDS, OpeningRequest, Refusal  # noqa: E402
from protocols.multikey import MK18_39  # noqa: E402
from protocols.multikey_ckks import MultiKeySum  # noqa: E402
from protocols.parties import Client, Server, check_link, check_reading  # noqa: E402
from protocols.sealing import PUBLIC_BYTES  # noqa: E402
from protocols.share_holder import ShareHolder  # noqa: E402
from protocols.sharing import unpack_share  # noqa: E402

AGREED = cast.enrolment()
PLAN = seal(cast.plan(AGREED), cast.KEYS["server"])
SIZES = {
    "round-key": PUBLIC_BYTES,
    "contribution": MK18_39.ciphertext_bytes(cast.SIZE),
    "opening": 8 * cast.SIZE,
    "key-opening": MK18_39.share_bytes,
    "reading": 8 * cast.SIZE,
}


def receivers(holder):
    """What each kind is handed to; the holder takes any."""
    client, server = Client("a", cast.KEYS["a"], AGREED, None), Server(cast.KEYS["server"], AGREED)
    accepted = client.accept_plan(PLAN)
    plan, plan_id, _ = accepted
    group, agreed = plan.groups[0], AGREED
    request = OpeningRequest(
        **plan.stage._asdict(),
        sender="server",
        plan=plan_id,
        group="g0",
        participants=group.participants,
        contributions=("2" * 64,) * 4,
    )

    def upload(blob):
        size = SIZES["contribution"]
        message = server.accept_contribution(blob, plan, plan_id, group, "a", size)
        MultiKeySum(MK18_39, cast.SIZE).add(message.body, 1)

    def opened(blob):
        size = SIZES["key-opening"]
        asked = (request, "5" * 64, "a.holder", size)
        unpack_share(MK18_39, server.accept_key_opening(blob, *asked).body)

    def taken(blob):
        answers = holder.answer(blob)
        if not answers or kind_of(answers[0]) is Refusal:
            raise NatflError("refused")

    taker = {
        "round-plan": client.accept_plan,
        "round-key": lambda b: client.accept_keys({"a.holder": b}, accepted, PUBLIC_BYTES),
        "contribution": upload,
        "opening": lambda b: client.accept_opening(b, accepted, group),
        "key-opening": opened,
        "link": lambda b: check_link(b, plan, plan_id, group, agreed, "a", SIZES["opening"]),
        "reading": lambda b: check_reading(b, plan, plan_id, group, agreed, "5" * 64),
    }
    return plan_id, {kind.kind: taker.get(kind.kind, taken) for kind in KINDS}, taken


def main(bodies):
    """Every kind with every body, as it is and at the length that is awaited."""
    with tempfile.TemporaryDirectory() as folder:
        holder = ShareHolder(Path(folder), AGREED, "a.holder", cast.KEYS["a.holder"])
        assert kind_of(holder.answer(PLAN)[0]) is not Refusal
        plan_id, take, holders = receivers(holder)
        count = 0
        for kind in KINDS:
            size = min(SIZES.get(kind.kind, 4096), kind.body_limit)
            known = {"plan": plan_id, "group": "g0", "request": "5" * 64}
            fields = {name: value for name, value in known.items() if name in kind.model_fields}
            message = envelopes.sample(kind).model_copy(update=fields)
            for body in bodies:
                for made in (body[: kind.body_limit], (body * size)[:size]):
                    key = cast.KEYS[message.sender]
                    blob = seal(message.model_copy(update={"body": made}), key)
                    for receiver in (take[kind.kind], holders):
                        with contextlib.suppress(NatflError):
                            receiver(blob)
                    count += 1
        holder.close()
    assert not [name for name in sys.modules if "tenseal" in name]
    with contextlib.suppress(ImportError):
        importlib.import_module("tenseal")
        raise AssertionError("tenseal is not blocked")
    sys.stdout.write(f"{count} messages, tenseal not imported\n")


if __name__ == "__main__":
    main([bytes.fromhex(body) for body in json.loads(sys.argv[2]).values()])

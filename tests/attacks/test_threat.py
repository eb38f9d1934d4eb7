import os

import numpy as np
import pytest

from attacks.threat import Capability, capabilities
from protocols.chain import SigningKey
from protocols.envelope import seal
from protocols.messages import Contribution, Floors, Group, Opening, RoundPlan
from protocols.transcript import Transcript

AT = {"session": "study", "round": 1, "attempt": 1}
KEY = SigningKey.generate(os.urandom)


def plan(size):
    some = "1" * 64
    return RoundPlan(
        **AT,
        sender="server",
        version="0.1.0",
        proxies=some,
        groups=(Group(name="g", participants=("a", "b"), alphas=(1, 1)),),
        preset="pk18-44",
        layout=some,
        size=size,
        terms=some,
        floors=Floors(),
        mode="ckks/decryptor",
        holders=some,
        body=np.arange(3, dtype="<u4").tobytes(),
    )


@pytest.fixture
def transcript(tmp_path):
    """A plan to a and b, one clear upload of each, one opening to a."""
    with Transcript(tmp_path / "transcript") as record:
        record.append(seal(plan(size=5), KEY), "server", ("a", "b"))
        for name in "ab":
            sent = Contribution(**AT, sender=name, plan="2" * 64, group="g", body=bytes(20))
            record.append(seal(sent, KEY), name, ("server",))
        fields = {"plan": "2" * 64, "group": "g", "participants": ("a", "b")}
        fields |= {"request": "3" * 64, "sha256": "4" * 64}
        opening = Opening(**AT, sender="decryptor", **fields, body=bytes(40))
        record.append(seal(opening, KEY), "decryptor", ("server", "a"))
        yield record


def test_a_view_gives_what_its_messages_give(transcript):
    clear = {Capability.PLANS, Capability.CONTRIBUTIONS, Capability.CLEAR_CONTRIBUTIONS}
    assert capabilities(transcript.view({"server"})) == clear | {Capability.AGGREGATES}
    assert capabilities(transcript.view({"b"})) == clear
    assert capabilities(transcript.view({"decryptor"})) == {Capability.AGGREGATES}
    assert capabilities(transcript.view({"z"})) == frozenset()
    assert len(transcript.view({"a", "b"}).of(Contribution)) == 2


def test_ciphertexts_are_not_clear(tmp_path):
    with Transcript(tmp_path / "other") as record:
        record.append(seal(plan(size=6), KEY), "server", ("a",))
        sent = Contribution(**AT, sender="a", plan="2" * 64, group="g", body=bytes(20))
        record.append(seal(sent, KEY), "a", ("server",))
        assert Capability.CLEAR_CONTRIBUTIONS not in capabilities(record.view({"server"}))

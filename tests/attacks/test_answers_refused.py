"""Crafted and per-client proxies meet the real protocol: who refuses them, and when."""

import numpy as np
import pytest

from protocols.chain import digest
from protocols.envelope import kind_of, seal
from protocols.errors import ProtocolError
from protocols.messages import Refusal, RoundKey
from tests.protocols.conftest import NAMES, World


@pytest.fixture
def parties(tmp_path):
    world = World(tmp_path)
    enrolment = world.shared()
    holders = [world.share_holder(name, enrolment) for name in NAMES]
    return world, enrolment, holders


def test_a_crafted_proxy_set_is_refused_by_every_client_and_holder(parties):
    """Its digest is not the one that all enrolled under; the honest plan beside is taken."""
    world, enrolment, holders = parties
    plan = world.plan(enrolment=enrolment)
    crafted = plan.model_copy(update={"proxies": digest(b"crafted")})
    clients = world.clients(enrolment)
    for name in plan.participants:
        with pytest.raises(ProtocolError, match="proxies"):
            clients[name].accept_plan(seal(crafted, world.server_key))
        assert clients[name].accept_plan(seal(plan, world.server_key)).plan == plan
    for holder in holders:
        (answer,) = holder.answer(seal(crafted, world.server_key))
        assert kind_of(answer) is Refusal


def test_proxies_of_its_own_for_each_client_get_no_keys(parties):
    """Two clients are shown two plans of one attempt: holders serve the first and no other."""
    world, enrolment, holders = parties
    shown = [
        world.plan(enrolment=enrolment, subset=np.arange(start, start + 10)) for start in (10, 20)
    ]
    blobs = [seal(plan, world.server_key) for plan in shown]
    kinds = [[kind_of(holder.answer(blob)[0]) for holder in holders] for blob in blobs]
    assert kinds == [[RoundKey] * 6, [Refusal] * 6]

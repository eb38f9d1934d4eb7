"""One attempt with a decryptor, message by message."""

import pytest

from protocols.envelope import identity, kind_of, outline, seal
from protocols.messages import OpeningRequest, Refusal, RoundKey
from protocols.policy import SERVER
from protocols.residues import weighted_sum
from protocols.rlwe import PK18_44
from protocols.tenseal_ckks import PublicKey, encrypt


class Attempt:
    """The messages of one attempt as honest parties make them, to be bent by each test."""

    def __init__(self, world, holder, plan, make_released):
        self.world, self.holder, self.plan = world, holder, plan
        self.plan_blob = seal(plan, world.server_key)
        self.plan_id = identity(self.plan_blob)
        self.key_blob, *self.stored = holder.answer(self.plan_blob)
        assert kind_of(self.key_blob) is RoundKey
        self.public = PublicKey(PK18_44, outline(self.key_blob).body)
        self.clients = world.clients(world.enrolment())
        self.make_released = make_released

    def upload(self, name, number=None, **changes):
        values = self.world.values[name, number or self.plan.round]
        made = self.make_released(values, round_number=self.plan.round)
        body = encrypt(self.public, made, (0, self.plan.size))
        blob = self.clients[name].contribute(self.accepted(name), self.plan.groups[0], body)
        if not changes:
            return blob
        return seal(outline(blob).model_copy(update=changes), self.world.keys[name])

    def accepted(self, name):
        return self.clients[name].accept_plan(self.plan_blob)

    def uploads(self):
        return [self.upload(name) for name in self.plan.participants]

    def request(self, uploads, alphas=None, **changes):
        group = self.plan.groups[0]
        bodies = [outline(blob).body for blob in uploads]
        made = OpeningRequest(
            **self.plan.stage._asdict(),
            sender=SERVER,
            plan=self.plan_id,
            group=group.name,
            participants=group.participants,
            contributions=tuple(identity(blob) for blob in uploads),
            body=weighted_sum(PK18_44, self.plan.size, bodies, alphas or group.alphas),
        )
        return seal(made.model_copy(update=changes), self.world.server_key)

    def send(self, blobs):
        for blob in blobs:
            assert self.holder.answer(blob) == []

    def opened(self, request):
        """The integers that the holder returns for a request; None for its refusal."""
        (answer,) = self.holder.answer(request)
        message = outline(answer)
        if isinstance(message, Refusal):
            assert answer == self.refusal()
            return None
        return message.integers

    def refusal(self):
        (answer,) = self.holder.answer(b"nothing")
        return answer


@pytest.fixture
def begin(world, make_released):
    """Begin an attempt at a new or the given holder."""

    def start(holder=None, number=1, **changes):
        holder = holder or world.holder()
        past = holder._plan(number)
        plan = world.plan(number, **changes)
        plan = plan.model_copy(update={"attempt": past.attempt + 1 if past else 1})
        return Attempt(world, holder, plan, make_released)

    return start

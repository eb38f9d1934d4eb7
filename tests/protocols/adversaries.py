"""A malicious server with a malicious holder, for the tests of threshold sums."""

from collections import defaultdict

import numpy as np
import pytest

from protocols.envelope import identity, kind_of, outline, seal
from protocols.errors import ProtocolError
from protocols.messages import KeyOpening, RoundKey
from protocols.multikey import MK18_39
from protocols.multikey_ckks import MultiKeySum
from protocols.sealing import SealingKey
from protocols.secagg.threshold import open_with
from protocols.secagg.topology import Absent
from protocols.sharing import weighted_share

EQUAL = (1, 1, 1, 1, 1, 1)
HONEST = "abcde"
LIAR = "f"


class Adversary:
    """The server, who signs whatever it likes, and holder f, who answers everything.

    Clients and the other holders are the real ones.
    """

    def __init__(self, world, new_shared, rules, plan):
        self.world, self.rules, self.plan = world, rules, plan
        self.made = new_shared(world, rules, plan)
        self.secret = SealingKey()
        self.uploads = defaultdict(dict)
        self.shares = defaultdict(dict)
        self.stolen = {}

    def begin(self, holders=HONEST):
        """The plan goes to these; the liar has a key for any plan, and never opened anything."""
        self.made.begin(*(self.world.holders[name] for name in holders))
        key = RoundKey(
            **self.plan.stage._asdict(),
            sender=f"{LIAR}.holder",
            plan=self.made.plan_id,
            opened=(),
            body=self.secret.public,
        )
        self.made.keys[key.sender] = seal(key, self.world.holder_keys[LIAR])
        return self

    def encrypt(self, group="g0"):
        """Every client of the group, as far as it agrees to; shares go where they belong."""
        for client in self.plan.group(group).participants:
            blob, shares = self.made.upload(client, group)
            self.uploads[group][client] = blob
            for name, share in shares.items():
                if name == f"{LIAR}.holder":
                    context = (self.made.plan_id, group, client, name)
                    self.stolen[group, client] = self.secret.open(outline(share).body, *context)
                else:
                    assert self.world.holders[name[0]].answer(share) == []
        return self

    def request(self, names, group="g0"):
        return self.made.request({name: self.uploads[group][name] for name in names}, group)

    def ask(self, holder, names, group="g0"):
        """An honest holder's answer for this set, or None."""
        (answer,) = self.world.holders[holder].answer(self.request(names, group))
        return outline(answer) if kind_of(answer) is KeyOpening else None

    def lie(self, names, group="g0"):
        """The liar's answer, for this set too."""
        part = self.plan.group(group).among(names)
        body = weighted_share(
            MK18_39, [self.stolen[group, name] for name in part.participants], part.alphas
        )
        return KeyOpening(
            **self.plan.stage._asdict(),
            sender=f"{LIAR}.holder",
            plan=self.made.plan_id,
            group=group,
            request=identity(self.request(names, group)),
            body=body,
        )

    def opened(self, names, answers, group="g0"):
        """The integers that the server gets from answers by holder, its liar's included."""
        whole = self.plan.group(group)
        part, total = whole.among(names), MultiKeySum(MK18_39, self.plan.size)
        for name, alpha in zip(part.participants, part.alphas, strict=True):
            total.add(outline(self.uploads[group][name]).body, alpha)
        numbered = {"abcdef".index(holder) + 1: answer for holder, answer in answers.items()}
        numbered[6] = self.lie(names, group)
        request = outline(self.request(names, group))
        try:
            return open_with(total, numbered, request, whole, MK18_39, self.rules, Absent())
        except ProtocolError:
            return None


@pytest.fixture
def attack(world, new_shared):
    """An attempt in the adversary's hands; t = 3 of 6 is what no enrolment allows."""

    def make(number=1, attempt=1, threshold=4, groups=None, **changes):
        rules = world.shared().model_copy(update={"threshold": threshold})
        if not world.holders:
            world.threshold(rules)
        groups = groups or world.groups("abcdef", alphas=EQUAL)
        plan = world.plan(1, enrolment=rules, groups=groups)
        subset = np.arange(4 * number, 4 * number + 4).astype("<u4").tobytes()
        plan = plan.model_copy(
            update={"round": number, "attempt": attempt, "body": subset, **changes}
        )
        return Adversary(world, new_shared, rules, plan)

    return make

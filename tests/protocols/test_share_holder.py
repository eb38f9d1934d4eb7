import os
from itertools import combinations

import numpy as np
import pytest

from protocols.envelope import identity, kind_of, outline, seal
from protocols.messages import KeyOpening, Opened, Refusal
from protocols.multikey import MK18_39
from protocols.multikey_ckks import MultiKeySum
from protocols.parties import reference_of
from protocols.policy import holder_name
from protocols.sealing import SealingKey, seal_to
from protocols.sharing import interpolate, unpack_share, weighted_share

ALPHAS = (1, 1, 2, 2)


class Case:
    """An attempt at real holders, one of whom is looked at."""

    def __init__(self, world, new_shared, number=1, **changes):
        self.world, self.enrolment = world, world.shared()
        if not world.holders:
            world.threshold(self.enrolment)
        self.holder = world.holders["a"]
        groups = changes.pop("groups", world.groups("abcd", alphas=ALPHAS))
        plan = world.plan(number, enrolment=self.enrolment, groups=groups)
        past = self.holder._plan(number)
        plan = plan.model_copy(update={"attempt": past.attempt + 1 if past else 1, **changes})
        self.attempt = new_shared(world, self.enrolment, plan).begin(*world.holders.values())
        self.group = plan.groups[0]
        self.uploads, self.shares = {}, {}
        for name in self.group.participants:
            self.uploads[name], self.shares[name] = self.attempt.upload(name, self.group.name)

    def share(self, name, **changes):
        """A client's share for this holder; `changes` are signed by the client."""
        blob = self.shares[name][self.holder.name]
        if not changes:
            return blob
        return seal(outline(blob).model_copy(update=changes), self.world.keys[name])

    def sealed(self, name, content, *context):
        """Other content, sealed and signed by the client itself."""
        public = outline(self.attempt.keys[self.holder.name]).body
        context = context or (self.attempt.plan_id, self.group.name, name, self.holder.name)
        return self.share(name, body=seal_to(public, content, *context))

    def send(self, *blobs):
        for blob in blobs:
            assert self.holder.answer(blob) == []

    def kept(self):
        return [client for _, client in self.holder._attempt.shares]

    def request(self, names=None, **changes):
        names = names or self.group.participants
        uploads = {name: self.uploads[name] for name in names}
        return self.attempt.request(uploads, **{"group": self.group.name, **changes})

    def answered(self, request):
        """The holder's share of Σα·s; None for its refusal."""
        (answer,) = self.holder.answer(request)
        if kind_of(answer) is Refusal:
            assert answer == self.refusal()
            return None
        return outline(answer)

    def refusal(self):
        return self.holder.answer(b"nothing")[0]

    def log(self):
        return (self.world.folder / self.holder.name / "refusals.log").read_text().splitlines()


@pytest.fixture
def case(world, new_shared):
    def make(**changes):
        return Case(world, new_shared, **changes)

    return make


def test_four_of_six_answers_open_the_weighted_sum_and_three_do_not(case, world):
    """The holders' real bytes by the arithmetic alone: all 15 sets of four, all 20 of three."""
    made = case()
    answers = {}
    for number, holder in enumerate(world.holders.values(), 1):
        for name in made.group.participants:
            assert holder.answer(made.shares[name][holder.name]) == []
        (blob,) = holder.answer(made.request())
        answers[number] = unpack_share(MK18_39, outline(blob).body)
    total = MultiKeySum(MK18_39, world.size)
    for name, alpha in zip(made.group.participants, ALPHAS, strict=True):
        total.add(outline(made.uploads[name]).body, alpha)
    asked = {"reference": reference_of(made.attempt.plan_id, "g0"), "alphas": ALPHAS}
    for chosen in (*combinations(answers, 4), (6, 4, 2, 1), (1, 2, 3, 4, 5, 6)):
        key_sum = interpolate(MK18_39, {number: answers[number] for number in chosen})
        assert (total.open(key_sum, **asked) == world.total(made.group)).all()
    for chosen in (*combinations(answers, 3), (2, 6), (1,)):
        key_sum = interpolate(MK18_39, {number: answers[number] for number in chosen})
        assert not total.opens(key_sum, **asked)


def test_an_answer_is_the_sum_of_the_shares_and_says_what_it_answers(case):
    made = case()
    made.send(*map(made.share, "abcd"))
    shares = [made.holder._attempt.shares["g0", name][1] for name in "abcd"]
    request = made.request()
    answer = made.answered(request)
    assert answer.body == weighted_share(MK18_39, shares, ALPHAS)
    assert (answer.plan, answer.group) == (made.attempt.plan_id, "g0")
    assert answer.request == identity(request)
    assert answer.sender == made.holder.name


def test_gaps_are_dropouts_and_the_rest_of_the_group_is_answered(case):
    made = case()
    made.send(made.share("a"), made.share("c"), made.share("d"))
    assert made.answered(made.request("acd")) is not None


def test_replayed_duplicated_and_reordered_shares_are_left_out(case, world, new_shared):
    old = case()
    made = case()
    assert made.holder is old.holder
    made.send(*map(old.share, "abcd"), made.share("b"), made.share("b"), made.share("a"))
    assert made.kept() == ["b"]
    made.send(made.share("d"), made.share("c"), *map(old.share, "abcd"))
    assert made.kept() == ["b", "d"]
    assert made.answered(made.request("abd")) is None


@pytest.mark.parametrize(
    "change",
    [
        {"sender": "b"},
        {"sender": "e"},
        {"sender": "a.holder"},
        {"session": "other"},
        {"round": 2},
        {"attempt": 2},
        {"plan": "0" * 64},
        {"group": "g1"},
        {"holder": "b.holder"},
        {"body": b""},
        {"body": bytes(1168)},
        {"body": bytes(1 << 18)},
    ],
)
def test_signed_shares_that_do_not_belong_here_are_left_out(case, change):
    made = case()
    made.send(made.share("a", **change))
    assert made.kept() == []
    # Nothing is lost by it: the honest share still comes in.
    made.send(*map(made.share, "abcd"))
    assert made.answered(made.request()) is not None


def test_a_share_that_names_another_contribution_is_refused_at_the_request(case):
    made = case()
    made.send(made.share("a", contribution="0" * 64), *map(made.share, "bcd"))
    assert made.answered(made.request()) is None
    assert made.holder._attempt is None


def test_a_share_sealed_for_another_holder_group_plan_or_client_is_left_out(case):
    made = case()
    plan, name = made.attempt.plan_id, made.holder.name
    wrong = [
        ("0" * 64, "g0", "a", name),
        (plan, "g1", "a", name),
        (plan, "g0", "b", name),
        (plan, "g0", "a", "b.holder"),
    ]
    for context in wrong:
        made.send(made.sealed("a", bytes(32), *context))
    for other in ("b", "c"):
        # Another holder's share in this one's envelope; another client's under one's own name.
        made.send(made.share("a", body=outline(made.shares["a"][holder_name(other)]).body))
        made.send(made.share("a", body=outline(made.share(other)).body))
    made.send(made.share("a", body=seal_to(SealingKey().public, bytes(32), plan, "g0", "a", name)))
    assert made.kept() == []
    assert len(made.log()) == 9


def test_every_changed_byte_and_cut_of_a_share_is_left_out(case):
    """300 places of the message and 30 cuts; the state stays as it was."""
    made = case()
    blob, draw = made.share("a"), np.random.default_rng(12)
    for place in draw.choice(len(blob), 300, replace=False):
        changed = bytearray(blob)
        changed[place] ^= 1 << int(draw.integers(0, 8))
        assert made.holder.answer(bytes(changed)) in ([], [made.refusal()])
    for stop in draw.choice(len(blob), 30, replace=False):
        assert made.holder.answer(blob[:stop]) in ([], [made.refusal()])
    assert made.kept() == []
    made.send(*map(made.share, "abcd"))
    assert made.answered(made.request()) is not None


@pytest.mark.parametrize("size", [0, 1, 31, 33, MK18_39.share_bytes - 1, MK18_39.share_bytes + 1])
def test_shares_of_hostile_lengths_give_the_constant_refusal(case, size):
    made = case()
    made.send(made.sealed("a", os.urandom(size)), *map(made.share, "bcd"))
    assert made.answered(made.request()) is None


def test_a_packed_share_that_is_not_reduced_gives_the_constant_refusal(case):
    made = case()
    made.send(made.sealed("a", b"\xff" * MK18_39.share_bytes), *map(made.share, "bcd"))
    assert made.answered(made.request()) is None


@pytest.mark.parametrize(
    "change",
    [
        {"sender": "a"},
        {"session": "other"},
        {"round": 2},
        {"attempt": 2},
        {"plan": "0" * 64},
        {"group": "g1"},
        {"participants": tuple("ab")},
        {"participants": tuple("abc")},
        {"participants": tuple("abdc")},
        {"participants": tuple("abcdd")},
        {"participants": tuple("abce")},
        {"contributions": ("0" * 64,) * 4},
        {"contributions": ("0" * 64,)},
        {"contributions": ("0" * 64,) * 5},
    ],
)
def test_a_request_for_anything_else_is_refused(case, change):
    made = case()
    made.send(*map(made.share, "abcd"))
    assert made.answered(made.request(**change)) is None


def test_a_request_refused_ends_the_attempt_and_one_not_signed_by_the_server_changes_nothing(case):
    made = case()
    made.send(*map(made.share, "abcd"))
    unsigned = outline(made.request())
    for key in (made.world.keys["a"], made.world.holder_keys["b"]):
        assert made.answered(seal(unsigned, key)) is None
    assert made.kept() == list("abcd")
    assert made.answered(made.request("ab")) is None
    assert made.holder._attempt is None
    assert made.answered(made.request()) is None


@pytest.mark.parametrize("names", ["abc", "abd", "acd", "bcd", "abcd"])
def test_one_set_is_answered_and_then_no_other_not_even_after_a_restart(case, world, names):
    made = case()
    made.send(*map(made.share, "abcd"))
    request = made.request(names)
    (answer,) = made.holder.answer(request)
    assert kind_of(answer) is KeyOpening
    others = [made.request(other) for other in ("abc", "abd", "acd", "bcd", "abcd")]
    for holder in (made.holder, world.share_holder("a", made.enrolment)):
        answers = [holder.answer(other) for other in others]
        assert answers.count([answer]) == 1
        assert answers.count([made.refusal()]) == 4
        assert holder.answer(request) == [answer]


def test_a_new_attempt_lists_what_was_answered_and_takes_no_share_for_it(case, world):
    first = case(groups=world.groups("abc", "def", alphas=(1, 1, 1)))
    first.send(*map(first.share, "abc"))
    answer = first.answered(first.request())
    again = case(groups=world.groups("abc", "def", alphas=(1, 1, 1)))
    past = (Opened(group="g0", attempt=1, plan=first.attempt.plan_id),)
    assert outline(again.attempt.keys[again.holder.name]).opened == past
    (key,) = world.share_holder("a", again.enrolment).answer(
        seal(_next(again.attempt.plan), world.server_key)
    )
    assert outline(key).opened == past
    again.send(*map(again.share, "abc"))
    assert again.kept() == []
    assert again.answered(again.request()) is None
    assert outline(again.holder.answer(first.request())[0]) == answer


def _next(plan):
    return plan.model_copy(update={"attempt": plan.attempt + 1})


def test_an_answered_group_that_is_changed_gets_no_key(case, world):
    made = case()
    made.send(*map(made.share, "abcd"))
    made.answered(made.request())
    (group,) = made.attempt.plan.groups
    changes = [
        {"participants": tuple("abc"), "alphas": (1, 1, 2)},
        {"alphas": (2, 2, 1, 1)},
        {"least": 2},
        {"name": "g9"},
        {"span": (0, 40)},
    ]
    for change in changes:
        groups = (group.model_copy(update=change),)
        plan = _next(made.attempt.plan).model_copy(update={"groups": groups})
        assert made.holder.answer(seal(plan, world.server_key)) == [made.refusal()]
    assert sum("opened group g0 was changed" in line for line in made.log()) == len(changes)


def test_a_new_attempt_or_a_restart_destroys_key_and_shares_of_the_one_before(case, world):
    made = case()
    made.send(*map(made.share, "abcd"))
    request = made.request()
    restarted = world.share_holder("a", made.enrolment)
    assert restarted.answer(request) == [made.refusal()]
    # The same plan again is no new attempt: a second key for it is never made.
    assert restarted.answer(made.attempt.blob) == [made.refusal()]
    case()
    assert made.answered(request) is None


def test_the_last_group_destroys_the_sealing_key_and_an_earlier_one_its_own_shares(case, world):
    made = case(groups=world.groups("abc", "def", alphas=(1, 1, 1)))
    made.send(*map(made.share, "abc"))
    uploads = {}
    for name in "def":
        uploads[name], shares = made.attempt.upload(name, "g1")
        made.send(shares[made.holder.name])
    assert made.answered(made.request()) is not None
    assert made.kept() == list("def")
    assert made.answered(made.attempt.request(uploads, "g1")) is not None
    assert made.holder._attempt is None


def test_other_kinds_of_message_and_noise_get_the_one_refusal(case, world):
    made = case()
    blobs = [
        b"",
        bytes(1000),
        made.uploads["a"],
        made.attempt.keys["b.holder"],
        made.refusal(),
        seal(outline(made.attempt.blob), world.keys["a"]),
    ]
    assert [made.holder.answer(blob) for blob in blobs] == [[made.refusal()]] * len(blobs)
    made.send(*map(made.share, "abcd"))
    assert made.answered(made.request()) is not None


def test_closing_destroys_the_secrets_and_nothing_secret_is_in_the_folder(case, world):
    made = case()
    made.send(*map(made.share, "abcd"))
    shares = [share for _, share in made.holder._attempt.shares.values()]
    made.holder.close()
    assert made.holder._attempt is None
    folder = world.folder / made.holder.name
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert len(shares) == 4
    assert not any(share[:16] in written for share in shares)
    assert {path.name for path in folder.iterdir()} <= {"journal", "refusals.log"}


def test_nothing_but_plans_and_answers_is_written_down(case, world):
    made = case()
    made.send(*map(made.share, "abcd"))
    made.answered(made.request())
    journal = [made.holder._journal.read(entry) for entry in made.holder._journal.entries]
    assert [kind_of(blob).kind for blob in journal] == ["round-plan", "key-opening"]


def test_what_comes_before_any_plan_is_left_out(case, world):
    made = case()
    fresh = world.shared()
    world.folder = world.folder / "elsewhere"
    world.folder.mkdir()
    holder = world.share_holder("a", fresh)
    assert holder.answer(made.share("a")) == []
    assert holder.answer(made.request()) == [made.refusal()]


def test_four_hundred_mutants_signed_by_insiders_move_nothing(case, world):
    """Plan and share, changed and signed again by their authors, 400 in all."""
    made = case()
    made.send(*map(made.share, "abc"))
    sources = [(made.attempt.blob, world.server_key), (made.share("d"), world.keys["d"])]
    draw = np.random.default_rng(11)
    # A client may name another contribution than it sent: then no request fits its share.
    named = sources[1][0].index(b'"contribution"') + len(b'"contribution":"')
    for number in range(400):
        blob, key = sources[number % 2]
        unsigned = bytearray(blob[:-64])
        for place in draw.integers(0, min(len(unsigned), 1200), int(draw.integers(1, 4))):
            if blob is sources[0][0] or not named <= place < named + 64:
                unsigned[place] = draw.integers(0, 256)
        mutant = bytes(unsigned) + key.sign(bytes(unsigned))
        if mutant == blob:
            continue
        assert made.holder.answer(mutant) in ([], [made.refusal()])
        assert made.kept() == list("abc")
    made.send(made.share("d"))
    assert made.answered(made.request()) is not None

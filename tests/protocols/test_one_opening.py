"""One opening per client and round, whatever a malicious server and f malicious holders try."""

from collections import defaultdict
from itertools import combinations, compress, product

import numpy as np
import pytest

from protocols.envelope import outline, seal
from protocols.errors import ProtocolError
from protocols.messages import RoundKey
from tests.protocols.adversaries import EQUAL, HONEST
from tests.protocols.adversaries import attack as attack


def subsets(names="abcdef"):
    """Every subset, in the plan's order."""
    for picked in product((False, True), repeat=len(names)):
        yield tuple(compress(names, picked))


def test_whichever_of_64_sets_is_asked_first_a_holder_answers_no_other(attack, world):
    """64 × 64 ordered pairs of sets at a real holder: 42 sets pass the floors, each once."""
    world.values = {(name, at): world.values[name, 1] for name in "abcdef" for at in range(70)}
    everything, answered = [names for names in subsets() if names], 0
    shares = [bytes([number]) * 32 for number in range(6)]
    for number, first in enumerate(everything, 1):
        attempt = attack(number)
        attempt.made.begin(world.holders["a"])
        # Only this holder is looked at, so three more keys come from the adversary.
        attempt.made.keys |= _keys_of(attempt, "bcd")
        holder, group = world.holders["a"], attempt.plan.groups[0]
        for client in group.participants:
            own, member = attempt.made.accepted(client), attempt.made.clients[client]
            blob = member.contribute(own, group, client.encode())
            attempt.uploads["g0"][client] = blob
            sealed, *_ = member.share_key(own, blob, group, shares)
            assert holder.answer(sealed) == []
        got = attempt.ask("a", first)
        assert (got is not None) == (len(first) >= 3)
        answered += got is not None
        others = [names for names in everything if names != first]
        assert [attempt.ask("a", names) for names in others] == [None] * len(others)
        assert attempt.ask("a", first) == got
    assert answered == 42


def _keys_of(attempt, names):
    """Round keys of these holders for a plan, as they would sign them."""
    keys = {}
    for name in names:
        key = RoundKey(
            **attempt.plan.stage._asdict(),
            sender=f"{name}.holder",
            plan=attempt.made.plan_id,
            opened=(),
            body=attempt.secret.public,
        )
        keys[key.sender] = seal(key, attempt.world.holder_keys[name])
    return keys


@pytest.mark.parametrize("split", [(a, b) for a in range(6) for b in range(6 - a)])
def test_however_the_honest_holders_are_split_no_two_sets_open(attack, world, split):
    """All 21 splits of five honest holders between two sets; the liar answers both."""
    attempt = attack().begin().encrypt()
    sets = (tuple("abcdef"), tuple("bcdef"))
    cut = (HONEST[: split[0]], HONEST[split[0] : sum(split)])
    opened = []
    for names, holders in zip(sets, cut, strict=True):
        answers = {holder: attempt.ask(holder, names) for holder in holders}
        assert None not in answers.values()
        integers = attempt.opened(names, answers)
        assert (integers is not None) == (len(holders) + 1 >= 4)
        if integers is not None:
            opened.append(integers)
            assert (integers == world.total(attempt.plan.groups[0].among(names))).all()
    assert len(opened) <= 1


def test_below_the_bound_two_sets_open_and_their_difference_is_one_client(attack, world):
    """What the rule 2t > n + f prevents: t = 3 of 6 with one liar, real bytes."""
    attempt = attack(threshold=3).begin().encrypt()
    whole, without = tuple("abcdef"), tuple("bcdef")
    first = attempt.opened(whole, {holder: attempt.ask(holder, whole) for holder in "ab"})
    second = attempt.opened(without, {holder: attempt.ask(holder, without) for holder in "cd"})
    assert (first - second == world.values["a", 1]).all()


def test_a_feigned_dropout_gets_nothing_that_could_open_twice(attack, world):
    """So many honest holders answered for all six; then a is said to have gone."""
    for answered in range(6):
        number = answered + 1
        attempt = attack(number).begin().encrypt()
        whole, without = tuple("abcdef"), tuple("bcdef")
        first = {name: attempt.ask(name, whole) for name in HONEST[:answered]}
        opens = attempt.opened(whole, first) is not None
        # The same group under its name: holders that answered list it, or see it changed.
        changed = world.groups("bcdef", alphas=EQUAL)
        again = attack(number, 2, groups=changed).begin()
        assert len(again.made.keys) == 6 - answered
        assert opens == (answered >= 3)
        if opens:
            with pytest.raises(ProtocolError, match="too few key holders"):
                again.encrypt()
            continue
        again.encrypt()
        second = {name: again.ask(name, without) for name in HONEST[answered:]}
        assert again.opened(without, second) is not None
        # The first attempt is closed for those that had not answered: it never opens.
        late = {name: attempt.ask(name, whole) for name in HONEST[answered:]}
        assert set(late.values()) <= {None}
        assert attempt.opened(whole, first) is None


def test_an_unchanged_group_is_not_encrypted_again_unless_enough_have_closed_it(attack, world):
    for answered in range(6):
        number = answered + 1
        attempt = attack(number).begin().encrypt()
        for name in HONEST[:answered]:
            assert attempt.ask(name, tuple("abcdef")) is not None
        again = attack(number, 2).begin()
        assert len(again.made.keys) == 6
        listed = [key for key in map(outline, again.made.keys.values()) if key.opened]
        assert {key.sender[0] for key in listed} == set(HONEST[:answered])
        if answered <= 2:
            again.encrypt()
            answers = {name: again.ask(name, tuple("abcdef")) for name in HONEST}
            fresh = {name: answer for name, answer in answers.items() if answer is not None}
            assert set(fresh) == set(HONEST[answered:])
            assert again.opened(tuple("abcdef"), fresh) is not None
        else:
            with pytest.raises(ProtocolError, match="may still be opened"):
                again.encrypt()


def test_two_plans_of_one_attempt_do_not_both_get_enough_keys(attack, world):
    """The server equivocates: every split of the honest holders between two plans."""
    for number, count in enumerate(range(6), 1):
        groups = world.groups("bcdef", alphas=EQUAL)
        one = attack(number).begin(HONEST[:count])
        two = attack(number, groups=groups).begin(HONEST)
        assert len(one.made.keys) + len(two.made.keys) == 7
        ready = [attempt for attempt in (one, two) if len(attempt.made.keys) >= 4]
        for attempt in (one, two):
            if attempt in ready:
                attempt.encrypt()
            else:
                with pytest.raises(ProtocolError, match="too few key holders"):
                    attempt.encrypt()
        assert len(ready) == 1


def play(attack, world, number, draw, threshold):
    """One round of a random adversary: what it could open, as (plan, group, names)."""
    honest = dict(zip(HONEST, HONEST, strict=True))
    answers, asked = defaultdict(set), []
    for attempt_number in range(1, int(draw.integers(2, 5))):
        for _ in range(int(draw.integers(1, 3))):
            attempt = attack(number, attempt_number, threshold, groups=_groups(world, draw)).begin(
                [name for name in honest if draw.random() < 0.8]
            )
            for group in attempt.plan.groups:
                try:
                    attempt.encrypt(group.name)
                except ProtocolError:
                    continue
                sets = [_some(draw, group.participants) for _ in range(2)]
                asked += [(attempt, group.name, names) for names in sets]
            for holder in honest:
                for at in draw.permutation(len(asked))[: int(draw.integers(0, 4))]:
                    attempt, group, names = asked[at]
                    if attempt.ask(holder, names, group) is not None:
                        answers[attempt.made.plan_id, group, names].add(holder)
    return {key for key, holders in answers.items() if len(holders) + 1 >= threshold}


def _groups(world, draw):
    kind = int(draw.integers(0, 5))
    names = _some(draw, "abcdef") if kind == 1 else tuple("abcdef")
    (base,) = world.groups("".join(names), alphas=EQUAL)
    if kind == 2:
        return [base.model_copy(update={"name": "renamed"})]
    if kind == 3:
        return [base.model_copy(update={"alphas": (1, 1, 1, 2, 2, 2)})]
    if kind == 4:
        return world.groups("abc", "def", alphas=(1, 1, 1))
    return [base]


def _some(draw, names):
    """At least three of these, in order; mostly all or all but one."""
    size = max(3, len(names) - int(draw.integers(0, 3)))
    return tuple(names[at] for at in sorted(draw.choice(len(names), size, replace=False)))


def clashes(openable):
    return [(one, two) for one, two in combinations(openable, 2) if set(one[2]) & set(two[2])]


def games(attack, world, count, threshold, seed):
    """How many rounds opened something, and in how many a client was in two openable sums."""
    values = {name: world.values[name, 1] for name in "abcdef"}
    world.values = {(name, at): values[name] for name in values for at in range(count + 1)}
    draw = np.random.default_rng(seed)
    found = [play(attack, world, number, draw, threshold) for number in range(1, count + 1)]
    return sum(map(bool, found)), sum(bool(clashes(openable)) for openable in found)


def test_twenty_random_adversaries_never_open_two_sums_of_a_client(attack, world):
    opened, clashed = games(attack, world, 20, 4, 1)
    assert clashed == 0
    assert opened >= 5


def test_the_same_adversaries_do_where_the_threshold_is_too_low(attack, world):
    """The control: 10 rounds against t = 3, which no enrolment allows."""
    _, clashed = games(attack, world, 10, 3, 1)
    assert clashed >= 2


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_a_thousand_random_adversaries_never_open_two_sums_of_a_client(attack, world):
    opened, clashed = games(attack, world, 1000, 4, 2)
    assert clashed == 0
    assert opened > 100

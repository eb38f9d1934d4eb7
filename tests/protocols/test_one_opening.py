"""One opening per client and round, whatever a malicious server and f malicious holders try."""

from collections import defaultdict
from itertools import combinations, compress, product

import numpy as np
import pytest

from protocols.envelope import identity, kind_of, outline, seal
from protocols.errors import ProtocolError
from protocols.messages import KeyOpening, RoundKey
from protocols.multikey import MK18_39
from protocols.multikey_ckks import MultiKeySum
from protocols.parties import reference_of
from protocols.sealing import SealingKey
from protocols.secagg.threshold import open_with
from protocols.secagg.topology import Absent
from protocols.sharing import expand, interpolate, weighted_share

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


# Fewer than t holders


def rank(rows, prime):
    """Rank over the field of `prime` elements."""
    rows, found = [[value % prime for value in row] for row in rows], 0
    for column in range(len(rows[0])):
        pivot = next((at for at in range(found, len(rows)) if rows[at][column]), None)
        if pivot is None:
            continue
        rows[found], rows[pivot] = rows[pivot], rows[found]
        inverse = pow(rows[found][column], -1, prime)
        rows[found] = [value * inverse % prime for value in rows[found]]
        for at, row in enumerate(rows):
            if at != found and row[column]:
                factor = row[column]
                rows[at] = [(a - factor * b) % prime for a, b in zip(row, rows[found], strict=True)]
        found += 1
    return found


class Memory:
    """What the coalition of a test holds, read out of the real holders before they answer."""

    def __init__(self, attempt, world):
        self.attempt, self.world = attempt, world
        self.kept = {
            (number, client): expand(share, MK18_39)
            for number, holder in enumerate(HONEST, 1)
            for (_, client), (_, share) in world.holders[holder]._attempt.shares.items()
        }
        self.reference = reference_of(attempt.made.plan_id, "g0")

    def key_from(self, client, numbers):
        return interpolate(MK18_39, {at: self.kept[at, client] for at in numbers})

    def single(self, client, key):
        """One client's own contribution under a key; None if that does not open it."""
        total = MultiKeySum(MK18_39, self.world.size)
        total.add(outline(self.attempt.uploads["g0"][client]).body, 1)
        asked = {"reference": self.reference, "alphas": (1,), "heaviest": 2}
        return total.open(key, **asked) if total.opens(key, **asked) else None


ALPHAS = (1, 2, 1, 1, 2, 1)


@pytest.fixture
def memory(attack, world):
    attempt = attack(groups=world.groups("abcdef", alphas=ALPHAS)).begin().encrypt()
    return Memory(attempt, world)


def test_four_holders_memories_open_a_single_contribution_and_three_open_nothing(memory, world):
    """The control and the claim, on the same bytes: all 5 sets of four, all 10 of three."""
    for numbers in combinations(range(1, 6), 4):
        for client in "ab":
            opened = memory.single(client, memory.key_from(client, numbers))
            assert (opened == world.values[client, 1]).all()
    for numbers in combinations(range(1, 6), 3):
        for client in "ab":
            assert memory.single(client, memory.key_from(client, numbers)) is None


def test_three_holders_memories_fit_every_key_alike(memory):
    """For 200 keys drawn at random there is a fourth share that makes it the key."""
    draw = np.random.default_rng(6)
    held = {at: memory.kept[at, "a"] for at in (1, 2, 3)}
    for _ in range(200):
        guess = np.stack(
            [draw.integers(0, prime, MK18_39.degree) for prime in MK18_39.primes]
        ).astype(np.uint64)
        # f through the guess at 0 and the three shares; its value at 4 by the same formula.
        fourth = _value_at(4, {0: guess, **held})
        assert (interpolate(MK18_39, {**held, 4: fourth}) == guess).all()
        assert memory.single("a", guess) is None


def _value_at(place, points):
    """Lagrange in whole numbers, independently of protocols.sharing."""
    rows = []
    for row, prime in enumerate(MK18_39.primes):
        total = np.zeros(MK18_39.degree, np.int64)
        for at, residues in points.items():
            weight = 1
            for other in points:
                if other != at:
                    weight = weight * (place - other) * pow(at - other, -1, prime) % prime
            total = (total + weight * residues[row].astype(np.int64)) % prime
        rows.append(total.astype(np.uint64))
    return np.stack(rows)


def test_all_but_two_clients_with_server_and_three_holders_get_the_sum_of_the_two_alone(
    memory, world
):
    """They know four clients' keys, 3 shares of each key, and the opened Σα·s of all six."""
    attempt, names = memory.attempt, tuple("abcdef")
    group = attempt.plan.groups[0]
    answers = {holder: attempt.ask(holder, names) for holder in HONEST}
    assert (attempt.opened(names, answers) == world.total(group)).all()
    keys = {name: memory.key_from(name, (1, 2, 3, 4)) for name in "abcdef"}
    moduli = np.array(MK18_39.primes, np.uint64)[:, None]
    alphas = dict(zip(names, map(np.uint64, ALPHAS), strict=True))
    key_sum = sum(alphas[name] * keys[name] for name in names) % moduli
    known = sum(alphas[name] * keys[name] for name in "cdef") % moduli
    rest = (key_sum + moduli - known) % moduli
    # Positive: that is the key of α·a + α·b.
    total = MultiKeySum(MK18_39, world.size)
    for name in "ab":
        total.add(outline(attempt.uploads["g0"][name]).body, int(alphas[name]))
    opened = total.open(rest, reference=memory.reference, alphas=(1, 2), heaviest=2)
    assert (opened == world.values["a", 1] + 2 * world.values["b", 1]).all()
    # Neither of the two by itself, however the sum is divided.
    halves = np.array([pow(2, -1, prime) for prime in MK18_39.primes], np.uint64)[:, None]
    for key in (rest, rest * halves % moduli):
        assert memory.single("a", key) is None
        assert memory.single("b", key) is None


@pytest.mark.parametrize("held", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("prime", MK18_39.primes)
def test_the_equations_of_a_coalition_determine_no_clients_key_below_the_threshold(held, prime):
    """Unknown: the polynomials of two honest clients, 2 × 4 coefficients, at one place.

    Known: `held` shares of each, and all six answers α·f + β·g. Is f(0) a combination of these?
    """
    alpha, beta = 1, 2

    def row(at, first, second):
        powers = [pow(at, degree, prime) for degree in range(4)]
        return [first * power for power in powers] + [second * power for power in powers]

    rows = [row(at, alpha, beta) for at in range(1, 7)]
    rows += [row(at, 1, 0) for at in range(1, held + 1)]
    rows += [row(at, 0, 1) for at in range(1, held + 1)]
    target = row(0, 1, 0)
    determined = rank([*rows, target], prime) == rank(rows, prime)
    assert determined == (held >= 4)
    # What they may know, the sum's key, they do.
    assert rank([*rows, row(0, alpha, beta)], prime) == rank(rows, prime)


def test_what_a_holder_answers_is_not_a_share_of_any_one_client(memory, world):
    """Its answer for three clients is their weighted sum, and equals no share that it holds."""
    shares = [share for _, share in world.holders["a"]._attempt.shares.values()]
    answer = memory.attempt.ask("a", tuple("abc"))
    single = [weighted_share(MK18_39, [share], [alpha]) for share in shares for alpha in (1, 2)]
    assert len(single) == 12
    assert answer.body not in single

"""What fewer than t holders' memories give away: nothing of a single client."""

from itertools import combinations

import numpy as np
import pytest

from protocols.envelope import outline
from protocols.multikey import MK18_39
from protocols.multikey_ckks import MultiKeySum
from protocols.parties import reference_of
from protocols.sharing import expand, interpolate, weighted_share
from tests.protocols.adversaries import HONEST
from tests.protocols.adversaries import attack as attack


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

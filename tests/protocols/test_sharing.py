import itertools
import os
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import ConfigError, ProtocolError
from protocols.expansion import SHARE, keystream, uniform
from protocols.multikey import MK18_39, MK18_49, MultiKeyPreset
from protocols.sampler import seeded_random
from protocols.sharing import (
    consistent,
    expand,
    interpolate,
    split,
    unpack_share,
    weighted_share,
)

PRESETS = [MK18_39, MK18_49]


def key(preset: MultiKeyPreset) -> np.ndarray:
    return np.stack([uniform(prime, preset.degree, os.urandom) for prime in preset.primes])


def through(points: dict[int, int], at: int, prime: int) -> int:
    """The polynomial through `points` at `at`: Lagrange with rationals, then modulo p."""
    value = Fraction(0)
    for x, y in points.items():
        basis = Fraction(y)
        for other in points:
            if other != x:
                basis *= Fraction(at - other, x - other)
        value += basis
    return value.numerator * pow(value.denominator, -1, prime) % prime


def packed(rows: list[list[int]], primes: tuple[int, ...]) -> bytes:
    body = b""
    for row, prime in zip(rows, primes, strict=True):
        bits = prime.bit_length()
        stream = "".join(format(value, f"0{bits}b") for value in reversed(row))
        body += int(stream, 2).to_bytes(len(row) * bits // 8, "little")
    return body


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("holders", "threshold"), [(1, 1), (3, 1), (2, 2), (5, 3), (7, 7)])
def test_shares_are_those_of_a_second_implementation(
    preset: MultiKeyPreset, holders: int, threshold: int
) -> None:
    secret, number = key(preset), f"{holders} {threshold}".encode()
    shares = split(preset, secret, holders, threshold, seeded_random(number))
    again = seeded_random(number)
    seeds = [again(32) for _ in range(threshold - 1)]
    assert list(shares[: threshold - 1]) == seeds
    assert len(shares) == holders
    known = [
        [uniform(prime, preset.degree, keystream(SHARE, seed, prime)) for prime in preset.primes]
        for seed in seeds
    ]
    for holder in range(threshold, holders + 1):
        rows = []
        for at, prime in enumerate(preset.primes):
            columns = zip(
                secret[at].tolist(), *(share[at].tolist() for share in known), strict=True
            )
            rows.append([through(dict(enumerate(column)), holder, prime) for column in columns])
        assert shares[holder - 1] == packed(rows, preset.primes)
        assert len(shares[holder - 1]) == preset.share_bytes


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_threshold_of_holders_opens_the_weighted_sum(data: st.DataObject) -> None:
    preset = data.draw(st.sampled_from(PRESETS))
    holders = data.draw(st.integers(1, 12))
    threshold = data.draw(st.integers(1, holders))
    alphas = data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=4))
    keys = [key(preset) for _ in alphas]
    shares = [split(preset, secret, holders, threshold) for secret in keys]
    moduli = np.array(preset.primes)[:, None]
    wanted = sum(a * k.astype(np.int64) for a, k in zip(alphas, keys, strict=True)) % moduli
    order = data.draw(st.permutations(range(1, holders + 1)))
    answers = {
        holder: unpack_share(
            preset, weighted_share(preset, [each[holder - 1] for each in shares], alphas)
        )
        for holder in order
    }
    chosen = {holder: answers[holder] for holder in order[:threshold]}
    np.testing.assert_array_equal(interpolate(preset, chosen), wanted)
    for holder in order[threshold:]:
        assert consistent(preset, chosen, holder, answers[holder])
        wrong = answers[holder].copy()
        wrong[-1, 77] = (wrong[-1, 77] + np.uint64(1)) % np.uint64(preset.primes[-1])
        assert not consistent(preset, chosen, holder, wrong)
    if threshold > 1:
        fewer = {holder: answers[holder] for holder in order[: threshold - 1]}
        assert (interpolate(preset, fewer) != wanted).mean() > 0.9


@pytest.mark.parametrize("preset", PRESETS)
def test_fewer_than_the_threshold_are_consistent_with_every_secret(preset: MultiKeyPreset) -> None:
    """For t − 1 shares and any secret, exactly one polynomial of degree below t passes through.

    The shares of the first t − 1 holders are uniform. Those of any other t − 1 are, for each
    secret, an invertible matrix times them plus a constant: uniform too, whatever the secret.
    """
    threshold, holders = 4, 6
    for prime in preset.primes:
        for coalition in itertools.combinations(range(1, holders + 1), threshold - 1):
            base = range(threshold)  # the secret's place 0, then the seeded holders
            rows = [
                [through({x: int(x == at) for x in base}, holder, prime) for at in base[1:]]
                for holder in coalition
            ]
            assert determinant(rows) % prime != 0


@pytest.mark.parametrize("preset", PRESETS)
def test_another_secret_explains_what_a_coalition_holds(preset: MultiKeyPreset) -> None:
    holders, threshold = 5, 3
    shares = split(preset, key(preset), holders, threshold)
    for coalition in itertools.combinations(range(1, holders + 1), threshold - 1):
        held = {holder: expand(shares[holder - 1], preset) for holder in coalition}
        other = key(preset)
        outside = [holder for holder in range(1, holders + 1) if holder not in held]
        story = interpolate_at(preset, {0: other, **held}, outside[0])
        np.testing.assert_array_equal(interpolate(preset, {**held, outside[0]: story}), other)


def determinant(rows: list[list[int]]) -> int:
    """By expansion along the first row."""
    if not rows:
        return 1
    minors = ([row[:at] + row[at + 1 :] for row in rows[1:]] for at in range(len(rows)))
    return sum((-1) ** at * rows[0][at] * determinant(minor) for at, minor in enumerate(minors))


def interpolate_at(preset: MultiKeyPreset, points: dict[int, np.ndarray], at: int) -> np.ndarray:
    """Values of the polynomial through `points`, by shifting the places."""
    return interpolate(preset, {place - at: residues for place, residues in points.items()})


def test_seeded_shares_are_used_up_once_each() -> None:
    shares = split(MK18_39, key(MK18_39), 5, 3)
    again = split(MK18_39, key(MK18_39), 5, 3)
    assert [len(share) for share in shares] == [32, 32, 9984, 9984, 9984]
    assert len({*shares, *again}) == 10


@pytest.mark.parametrize(("holders", "threshold"), [(3, 0), (3, 4), (0, 0), (12289, 3)])
def test_other_thresholds_are_refused(holders: int, threshold: int) -> None:
    with pytest.raises(ConfigError, match="key holders"):
        split(MK18_49, key(MK18_49), holders, threshold)


@pytest.mark.parametrize("length", [0, 31, 33, 9983, 9985, 12800])
def test_shares_of_other_lengths_are_refused(length: int) -> None:
    with pytest.raises(ProtocolError, match="another length"):
        weighted_share(MK18_39, [bytes(length)], [1])
    with pytest.raises(ProtocolError, match="another length"):
        unpack_share(MK18_39, bytes(length))


def test_a_seed_is_no_answer_and_residues_are_reduced() -> None:
    with pytest.raises(ProtocolError, match="another length"):
        unpack_share(MK18_39, bytes(32))
    for place in range(2):
        rows = [[0] * 2048, [0] * 2048]
        rows[place][5] = MK18_39.primes[place]
        with pytest.raises(ProtocolError, match="not below its modulus"):
            expand(packed(rows, MK18_39.primes), MK18_39)


@pytest.mark.parametrize("alphas", [[0, 1], [1, -1], [32, 1], [1, 33]])
def test_weights_outside_the_proof_are_refused(alphas: list[int]) -> None:
    shares = [bytes(32), bytes(32)]
    with pytest.raises(ProtocolError, match="weights"):
        weighted_share(MK18_39, shares, alphas)


def test_the_largest_weights_do_not_overflow() -> None:
    top = np.array(MK18_49.primes)[:, None] - np.ones((3, 2048), np.int64)
    body = packed(top.tolist(), MK18_49.primes)
    total = MK18_49.largest_total(1)
    answer = unpack_share(MK18_49, weighted_share(MK18_49, [body] * 2, [1, total - 1]))
    np.testing.assert_array_equal(answer, total * top % np.array(MK18_49.primes)[:, None])
    with pytest.raises(ValueError, match="zip"):
        weighted_share(MK18_49, [body], [1, 1])

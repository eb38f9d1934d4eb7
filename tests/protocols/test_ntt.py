import itertools
import math

import numpy as np
import pytest

from protocols.errors import ConfigError
from protocols.multikey import MK18_39, MK18_49
from protocols.ntt import Transform, combine, smallest_root, transform

RINGS = [(2048, prime) for prime in MK18_39.primes + MK18_49.primes] + [(4096, 1032193)]


def matrix(degree: int, prime: int) -> np.ndarray:
    """ψ^((2i+1)·n): the transform as its definition has it."""
    root = smallest_root(degree, prime)
    powers = [pow(root, power, prime) for power in range(2 * degree)]
    exponents = np.outer(2 * np.arange(degree) + 1, np.arange(degree)) % (2 * degree)
    return np.array(powers, np.int64)[exponents]


def kronecker(one: np.ndarray, other: np.ndarray, prime: int) -> np.ndarray:
    """The product modulo X^N + 1 and p by one product of big integers."""
    degree = len(one)
    big = (int.from_bytes(x.astype("<u8").tobytes(), "little") for x in (one, other))
    whole = np.frombuffer((next(big) * next(big)).to_bytes(16 * degree, "little"), "<u8")
    return (whole[:degree].astype(np.int64) - whole[degree:].astype(np.int64)) % prime


def extremes(degree: int, prime: int, draw: np.random.Generator) -> np.ndarray:
    """Polynomials that make sums as large as they get, and random ones."""
    half = prime // 2
    return np.stack(
        [
            np.full(degree, prime - 1),
            np.full(degree, half),
            np.full(degree, half + 1),
            draw.choice([0, prime - 1], degree),
            draw.choice([half, half + 1], degree),
            draw.integers(0, prime, degree),
        ]
    ).astype(np.uint64)


@pytest.mark.parametrize(("degree", "prime"), RINGS)
def test_the_transform_is_evaluation_at_odd_powers_of_the_root(degree: int, prime: int) -> None:
    values = extremes(degree, prime, np.random.default_rng(prime))
    # Each product is below 2^40 and each sum below 2^52.
    expected = values.astype(np.int64) @ matrix(degree, prime).T % prime
    ring = transform(degree, prime)
    np.testing.assert_array_equal(ring.forward(values), expected)
    np.testing.assert_array_equal(ring.inverse(ring.forward(values)), values)
    np.testing.assert_array_equal(ring.forward(ring.inverse(values)), values)


@pytest.mark.parametrize(("degree", "prime"), RINGS)
def test_products_are_those_of_big_integers(degree: int, prime: int) -> None:
    draw = np.random.default_rng(prime + 1)
    ring, values = transform(degree, prime), extremes(degree, prime, draw)
    for one, other in itertools.product(values, repeat=2):
        product = ring.product(ring.forward(one), ring.forward(other))
        np.testing.assert_array_equal(product, kronecker(one, other, prime))


def test_any_axes_before_the_last_are_a_batch() -> None:
    prime = MK18_39.primes[0]
    ring, draw = transform(2048, prime), np.random.default_rng(0)
    values = draw.integers(0, prime, (3, 2, 2048)).astype(np.uint64)
    key = draw.integers(0, prime, 2048).astype(np.uint64)
    for operation in (ring.forward, ring.inverse, lambda x: ring.product(x, key)):
        batch = operation(values)
        assert batch.shape == values.shape
        assert batch.dtype == np.uint64
        for at in np.ndindex(3, 2):
            np.testing.assert_array_equal(batch[at], operation(values[at]))


@pytest.mark.parametrize(("degree", "prime"), RINGS)
def test_the_root_is_the_smallest(degree: int, prime: int) -> None:
    found = next(root for root in range(2, prime) if pow(root, degree, prime) == prime - 1)
    assert smallest_root(degree, prime) == found


@pytest.mark.parametrize("primes", [MK18_39.primes, MK18_49.primes, (1032193,)])
def test_combined_residues_are_the_integer_they_came_from(primes: tuple[int, ...]) -> None:
    modulus, draw = math.prod(primes), np.random.default_rng(2)
    edges = [0, 1, modulus - 1, modulus - 2, modulus // 2, *primes, *(modulus - p for p in primes)]
    wanted = np.concatenate([np.array(edges) % modulus, draw.integers(0, modulus, 20_000)])
    rows = [(wanted % prime).astype(np.uint64) for prime in primes]
    combined = combine(primes, rows)
    assert combined.dtype == np.uint64
    np.testing.assert_array_equal(combined, wanted)


@pytest.mark.parametrize(
    ("degree", "prime", "message"),
    [
        (1024, 1032193, "no transform"),
        (2048, 1032192, "no transform"),
        (2048, 11_886_593, "too large"),
    ],
)
def test_other_rings_are_refused(degree: int, prime: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Transform(degree, prime)

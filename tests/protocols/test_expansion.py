import hashlib
import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from protocols.expansion import REFERENCE, SHARE, keystream, uniform
from protocols.sampler import seeded_random

PRIMES = [12289, 61441, 520193, 1032193]


def words_by_counter(tag: bytes, seed: bytes, prime: int, count: int) -> list[int]:
    """The keystream as the docstring has it: AES of one counter block after the other."""
    key = hashlib.sha256(tag + prime.to_bytes(4, "little") + seed).digest()
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305
    counters = (number.to_bytes(16, "big") for number in range(-(-count // 4)))
    stream = b"".join(map(block.update, counters))
    return [int.from_bytes(stream[4 * i : 4 * i + 4], "little") for i in range(count)]


@pytest.mark.parametrize("prime", PRIMES)
@pytest.mark.parametrize("tag", [REFERENCE, SHARE])
def test_expansion_is_what_the_docstring_says(prime: int, tag: bytes) -> None:
    seed = os.urandom(32)
    limit = 2**32 // prime * prime
    words = words_by_counter(tag, seed, prime, 20_100)
    expected = [word % prime for word in words if word < limit][:20_000]
    assert uniform(prime, 20_000, keystream(tag, seed, prime)).tolist() == expected
    assert uniform(prime, 9_000, keystream(tag, seed, prime)).tolist() == expected[:9_000]


def test_each_use_prime_and_seed_has_its_own_stream() -> None:
    one, other = os.urandom(32), os.urandom(32)
    streams = {
        keystream(tag, seed, prime)(32)
        for tag in (REFERENCE, SHARE)
        for seed in (one, other)
        for prime in PRIMES
    }
    assert len(streams) == 16


def test_words_beyond_the_last_multiple_are_skipped_until_there_are_enough() -> None:
    prime = 1032193
    limit = 2**32 // prime * prime
    words = iter([limit, 2**32 - 1, limit - 1, 5, limit + 1, limit, 2**32 - 1, prime, 7])

    def read(count: int) -> bytes:
        return b"".join(next(words).to_bytes(4, "little") for _ in range(count // 4))

    assert uniform(prime, 4, read).tolist() == [prime - 1, 5, 0, 7]
    assert next(words, None) is None
    words = iter([limit, 3])
    assert uniform(prime, 1, read).tolist() == [3]


@pytest.mark.parametrize("prime", PRIMES)
def test_residues_are_spread_evenly(prime: int) -> None:
    draws = uniform(prime, 400_000, seeded_random(b"even %d" % prime))
    counts = np.bincount((draws * np.uint64(64) // np.uint64(prime)).astype(int), minlength=64)
    edges = [-(-k * prime // 64) for k in range(65)]
    assert stats.chisquare(counts, np.diff(edges) * (draws.size / prime)).pvalue > 1e-6
    assert draws.max() < prime

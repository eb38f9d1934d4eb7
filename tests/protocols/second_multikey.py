"""Multi-key sums a second time, and rounds of them for the tests.

The second implementation follows the docstrings alone: Python integers, nothing of the first.
"""

import hashlib
import os
from functools import lru_cache

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from protocols.expansion import uniform
from protocols.multikey import MK18_39, MK18_49, MultiKeyPreset
from protocols.multikey_ckks import MultiKeySum, Protected
from protocols.sharing import expand, interpolate, unpack_share, weighted_share

PRESETS = [MK18_39, MK18_49]
REFERENCE = hashlib.sha256(b"reference").digest()
Values = np.ndarray


# A second implementation, from the docstrings: Python integers, nothing of the first.


@lru_cache
def inverse_matrix(prime: int, degree: int) -> Values:
    """ψ^(−(2i+1)·n) by row n: N times the inverse of evaluation at the odd powers."""
    root = next(root for root in range(2, prime) if pow(root, degree, prime) == prime - 1)
    powers = np.array([pow(root, -power, prime) for power in range(2 * degree)])
    return powers[np.outer(np.arange(degree), 2 * np.arange(degree) + 1) % (2 * degree)]


def coefficients(values: Values, prime: int) -> Values:
    degree = len(values)
    whole = inverse_matrix(prime, degree) @ values.astype(np.int64) % prime
    return whole * pow(degree, -1, prime) % prime


def public_transforms(reference: bytes, prime: int, blocks: int, degree: int) -> list[list[int]]:
    tag = b"natfl multi-key reference" + prime.to_bytes(4, "little") + reference
    cipher = Cipher(algorithms.AES(hashlib.sha256(tag).digest()), modes.ECB()).encryptor()  # noqa: S305
    counters = (number.to_bytes(16, "big") for number in range(blocks * degree // 4 + 100))
    stream = b"".join(map(cipher.update, counters))
    words = (int.from_bytes(stream[at : at + 4], "little") for at in range(0, len(stream), 4))
    found = [word % prime for word in words if word < 2**32 // prime * prime]
    return [found[at * degree : (at + 1) * degree] for at in range(blocks)]


def big_product(one: Values, other: Values, prime: int) -> Values:
    """The product modulo X^N + 1 and p by one product of big integers (Kronecker)."""
    degree = len(one)
    big = [int.from_bytes(x.astype("<u8").tobytes(), "little") for x in (one, other)]
    whole = np.frombuffer((big[0] * big[1]).to_bytes(16 * degree, "little"), "<u8")
    return (whole[:degree].astype(np.int64) - whole[degree:].astype(np.int64)) % prime


def masks(preset: MultiKeyPreset, secret: Values, reference: bytes, blocks: int) -> list[int]:
    """Coefficients of a·s in [0, q)."""
    total = [0] * (blocks * preset.degree)
    for prime, row in zip(preset.primes, secret, strict=True):
        key = coefficients(row, prime)
        cofactor = preset.q // prime
        unit = cofactor * pow(cofactor, -1, prime)
        for at, public in enumerate(public_transforms(reference, prime, blocks, preset.degree)):
            product = big_product(coefficients(np.array(public), prime), key, prime).tolist()
            for n, residue in enumerate(product, at * preset.degree):
                total[n] = (total[n] + unit * residue) % preset.q
    return total


def second_body(
    preset: MultiKeyPreset, secret: Values, errors: Values, values: Values, reference: bytes
) -> bytes:
    blocks = len(errors) // preset.degree
    padded = values.tolist() + [0] * (len(errors) - len(values))
    stream = ""
    parts = zip(masks(preset, secret, reference, blocks), errors.tolist(), padded, strict=True)
    for mask, error, value in parts:
        b = (-mask + error + preset.scale * value) % preset.q
        stream = format((b + 2**9) // 2**10, f"0{preset.wire_bits}b") + stream
    return int(stream, 2).to_bytes(len(stream) // 8, "little")


def second_opening(
    preset: MultiKeyPreset,
    bodies: list[bytes],
    alphas: list[int],
    key_sum: Values,
    reference: bytes,
) -> list[int]:
    streams = [int.from_bytes(body, "little") for body in bodies]
    bits = preset.wire_bits
    count = len(bodies[0]) * 8 // bits
    opened = []
    for n, mask in enumerate(masks(preset, key_sum, reference, count // preset.degree)):
        integers = [stream >> bits * n & (1 << bits) - 1 for stream in streams]
        total = sum(a * c for a, c in zip(alphas, integers, strict=True))
        phase = (2**10 * total + mask) % preset.q
        phase -= preset.q if phase > preset.q // 2 else 0
        opened.append((2 * phase + preset.scale) // (2 * preset.scale))
    return opened


# Helpers.


def fresh_key(preset: MultiKeyPreset) -> Values:
    return np.stack([uniform(prime, preset.degree, os.urandom) for prime in preset.primes])


def key_sum(preset: MultiKeyPreset, keys: list[Values], alphas: list[int]) -> Values:
    total = sum(a * key.astype(np.int64) for a, key in zip(alphas, keys, strict=True))
    return (total % np.array(preset.primes)[:, None]).astype(np.uint64)


def added(preset: MultiKeyPreset, size: int, bodies: list[bytes], alphas: list[int]) -> MultiKeySum:
    total = MultiKeySum(preset, size)
    for body, alpha in zip(bodies, alphas, strict=True):
        total.add(body, alpha)
    return total


def integers(preset: MultiKeyPreset, size: int, draw: np.random.Generator) -> Values:
    limit = preset.value_limit
    return (
        draw.choice([limit, -limit, 0, int(draw.integers(-limit, limit + 1))], size)
        if draw.integers(2)
        else draw.integers(-limit, limit + 1, size)
    )


def opened_by(
    preset: MultiKeyPreset,
    contributions: list[Protected],
    alphas: list[int],
    size: int,
    holders: list[int],
    plan_alphas: list[int] | None = None,
) -> Values:
    """What these holders' answers open."""
    total = added(preset, size, [each.body for each in contributions], alphas)
    answers = {
        holder: unpack_share(
            preset,
            weighted_share(preset, [each.shares[holder - 1] for each in contributions], alphas),
        )
        for holder in holders
    }
    secret = interpolate(preset, answers)
    heaviest = max(plan_alphas or alphas)
    assert total.opens(secret, reference=REFERENCE, alphas=alphas, heaviest=heaviest)
    return total.open(secret, reference=REFERENCE, alphas=alphas, heaviest=heaviest)


# What does not open.


def shared_key(contributions: list[Protected], alphas: list[int], holders: list[int]) -> Values:
    return interpolate(
        MK18_39,
        {
            holder: expand(
                weighted_share(MK18_39, [c.shares[holder - 1] for c in contributions], alphas),
                MK18_39,
            )
            for holder in holders
        },
    )

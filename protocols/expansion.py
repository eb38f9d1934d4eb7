"""Uniform residues from bytes: the public polynomials, the seed shares, the one-time keys.

A residue modulo p comes from a word of four bytes, little-endian: words of at least
⌊2^32/p⌋·p are skipped, any other word w gives w mod p. Residues are exactly uniform if the bytes
are, and the first n of a stream are the same however many are taken.

The stream of a 32-byte seed is the keystream of AES-256 in counter mode (SP 800-38A), counter
block starting at sixteen zero bytes, under the key

    SHA-256(tag | p in four bytes, little-endian | seed)

with `tag` one of REFERENCE and SHARE below, in ASCII: each prime and each use has its own stream.
"""

import hashlib
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from protocols.chain import RandomBytes
from protocols.residues import Residues

REFERENCE: Final = b"natfl multi-key reference"
"""Tag of the public polynomials of a group, that all its clients and the server expand."""

SHARE: Final = b"natfl multi-key share"
"""Tag of a key share that travels as its seed."""

SEED_BYTES: Final = 32


def keystream(tag: bytes, seed: bytes, prime: int) -> RandomBytes:
    """The stream of `seed` (32 bytes) for one use and one prime; each call reads on."""
    key = hashlib.sha256(tag + prime.to_bytes(4, "little") + seed).digest()
    cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return lambda count: cipher.update(bytes(count))


def uniform(prime: int, count: int, random: RandomBytes) -> Residues:
    """The first `count` residues modulo a prime below 2^32 that the bytes of `random` give."""
    found = _residues(prime, count, random)
    while found.size < count:
        more = _residues(prime, count - found.size, random)
        found = np.concatenate([found, more])
    return found


def _residues(prime: int, words: int, random: RandomBytes) -> Residues:
    drawn = np.frombuffer(random(4 * words), "<u4")
    limit = 2**32 // prime * prime
    if int(drawn.max()) >= limit:
        drawn = drawn[drawn < limit]
    # numpy divides by a constant many times faster than it takes remainders.
    residues: Residues = (drawn - drawn // np.uint32(prime) * np.uint32(prime)).astype(np.uint64)
    return residues

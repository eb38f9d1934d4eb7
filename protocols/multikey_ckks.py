"""CKKS under one-time keys: a client protects, the server adds, t of n key holders open the sum.

The arithmetic is in protocols.multikey. Each client draws a key of its own per group and attempt
and shares it (protocols.sharing); the polynomials a are expanded from the reference, 32 bytes
that the plan fixes: with tag REFERENCE of protocols.expansion, the first N residues per prime are
the transform of block 0's a (protocols.ntt), the next N those of block 1, and so on. Bodies are
the integers c of all blocks in `wire_bits` bits each, packed as in protocols.residues.

A sum of bodies opens with the same sum of keys, and with nothing else.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from protocols.errors import ProtocolError
from protocols.expansion import REFERENCE, keystream, uniform
from protocols.gaussian_errors import gaussian_errors
from protocols.mechanisms import Released
from protocols.messages import IntVector
from protocols.multikey import MultiKeyPreset
from protocols.ntt import combine, transform
from protocols.presets import check_width
from protocols.residues import Residues, pack, unpack
from protocols.sharing import split

_BLOCKS_AT_ONCE: Final = 4  # what fits the second-level cache, several times over


@dataclass(frozen=True)
class Protected:
    """A client's contribution: the encrypted integers, and a key share for each holder.

    `shares` are 32 bytes or `share_bytes` each, in the order of the holders; they travel sealed.
    """

    body: bytes = field(repr=False)
    shares: tuple[bytes, ...] = field(repr=False)


def protect(
    preset: MultiKeyPreset,
    released: Released,
    span: tuple[int, int],
    *,
    reference: bytes,
    heaviest: int,
    holders: int,
    threshold: int,
) -> Protected:
    """Encrypt released integers `span` = [start, stop) under a fresh key, and share the key.

    The client runs it once per group and attempt; the key does not outlive the call. `heaviest`
    is the largest weight of the group in the plan. `released` comes from a mechanism and nothing
    else is taken: TypeError. PrivacyError if an integer is beyond the preset's limit.
    """
    if type(released) is not Released:
        raise TypeError("protect takes a Released, which only a mechanism's release() makes")
    values = released.values[slice(*span)]
    check_width(values, preset)
    secret = np.stack([uniform(prime, preset.degree, os.urandom) for prime in preset.primes])
    shares = split(preset, secret, holders, threshold)
    places = preset.blocks(len(values)) * preset.degree
    errors = gaussian_errors(places, preset.error_width(heaviest), os.urandom)
    return Protected(_ciphertext(preset, secret, errors, values, reference), shares)


class MultiKeySum:
    """Σα·c over contributions, one after the other, and its opening. The server runs it."""

    def __init__(self, preset: MultiKeyPreset, size: int) -> None:
        self._preset, self._size, self._weight = preset, size, 0
        self._bytes = preset.ciphertext_bytes(size)
        self._sum = np.zeros(preset.blocks(size) * preset.degree, np.uint64)

    def add(self, body: bytes, alpha: int) -> None:
        """Add α times one body; α ≥ 1 is from the plan, and all together at most largest_total.

        ProtocolError for another weight or length, or an integer that is no part of a body.
        """
        allowed = self._preset.largest_total(1) - self._weight
        if len(body) != self._bytes or not 1 <= alpha <= allowed:
            raise ProtocolError("ciphertext length or weight is not the plan's", where="sum")
        integers = unpack(body, self._preset.wire_bits, (self._preset.wire_limit,))[0]
        # Σα·c·2^k stays below 2^63, which the preset proves.
        integers *= np.uint64(alpha)
        self._sum += integers
        self._weight += alpha

    def open(
        self,
        key_sum: Residues,
        *,
        reference: bytes,
        alphas: Sequence[int],
        heaviest: int | None = None,
    ) -> IntVector:
        """Σα·x, int64[size], with `key_sum` = Σα·s, residues [primes, N] of the transform.

        `alphas` are the weights of what was added, `heaviest` the group's largest weight in the
        plan where it is not among them. Raises ProtocolError, without figures, if an error or a
        value is beyond its proved bound or the unused coefficients are not zero.
        """
        values = self._values(key_sum, reference, alphas, heaviest, self._preset.blocks(self._size))
        if values is None:
            raise ProtocolError("sum is not one of honest contributions", where="opening")
        return values[: self._size]

    def opens(
        self,
        key_sum: Residues,
        *,
        reference: bytes,
        alphas: Sequence[int],
        heaviest: int | None = None,
    ) -> bool:
        """Whether the first block opens: what the server tries sets of shares with."""
        return self._values(key_sum, reference, alphas, heaviest, 1) is not None

    def _values(
        self,
        key_sum: Residues,
        reference: bytes,
        alphas: Sequence[int],
        heaviest: int | None,
        blocks: int,
    ) -> IntVector | None:
        """The integers of the first `blocks` blocks, None if they are not of an honest sum."""
        preset, total = self._preset, sum(alphas)
        noise = preset.noise_bound(heaviest or max(alphas)) * total
        sums = self._sum[: blocks * preset.degree] << np.uint64(preset.dropped)
        phases = ((sums + _masks(preset, key_sum, reference, blocks)) % np.uint64(preset.q)).astype(
            np.int64
        )
        phases -= preset.q * (phases > preset.q // 2)
        values = (phases + preset.scale // 2) // preset.scale
        inside = np.abs(phases - values * preset.scale).max() <= noise
        bounded = np.abs(values).max() <= preset.value_limit * total
        return values if inside and bounded and not values[self._size :].any() else None


def _ciphertext(
    preset: MultiKeyPreset,
    secret: Residues,
    errors: IntVector,
    values: IntVector,
    reference: bytes,
) -> bytes:
    """The body for a key [primes, N], errors of all places and the integers of the first ones."""
    blocks = len(errors) // preset.degree
    noisy = errors.copy()
    noisy[: len(values)] += values * preset.scale
    # |noisy| < q/2, so this lies between −3q/2 and q/2.
    noisy -= _masks(preset, secret, reference, blocks).view(np.int64)
    for _ in range(2):
        noisy += (noisy >> 63) & preset.q
    noisy += 1 << preset.dropped >> 1
    return pack((noisy >> preset.dropped).view(np.uint64), preset.wire_bits)


def _masks(preset: MultiKeyPreset, secret: Residues, reference: bytes, blocks: int) -> Residues:
    """a·s mod q of the first `blocks` blocks, coefficients in order."""
    rings = [transform(preset.degree, prime) for prime in preset.primes]
    streams = [keystream(REFERENCE, reference, prime) for prime in preset.primes]
    masks = np.empty((blocks, preset.degree), np.uint64)
    for start in range(0, blocks, _BLOCKS_AT_ONCE):
        part = masks[start : start + _BLOCKS_AT_ONCE]
        rows = []
        for ring, stream, row in zip(rings, streams, secret, strict=True):
            public = uniform(ring.prime, part.size, stream).reshape(part.shape)
            rows.append(ring.product(public, row))
        part[:] = combine(preset.primes, rows)
    return masks.ravel()

"""Shamir's secret sharing of a one-time key, residue by residue, with seeds for most shares.

A key ŝ is residues [primes, N]. For each prime and place there is one polynomial f of degree
t − 1 over Z_p with f(0) = ŝ (Shamir 1979); holder h = 1 .. n has f(h), and any t holders have f.
The shares of the first t − 1 holders are expanded from fresh seeds (protocols.expansion, tag
SHARE), so each travels as 32 bytes; with ŝ they fix f, and the other shares are its values.

On the wire a share is its seed or the packed residues, prime by prime, each residue in the bits
of its prime: two lengths, and nothing else is taken. Shares of Σα·ŝ are the same Σα of shares.
"""

import os
from collections.abc import Iterable, Mapping

import numpy as np

from protocols.chain import RandomBytes
from protocols.errors import ConfigError, ProtocolError
from protocols.expansion import SEED_BYTES, SHARE, keystream, uniform
from protocols.multikey import MultiKeyPreset
from protocols.residues import Residues, pack, unpack


def split(
    preset: MultiKeyPreset,
    secret: Residues,
    holders: int,
    threshold: int,
    random: RandomBytes = os.urandom,
) -> tuple[bytes, ...]:
    """The shares of holders 1 .. `holders`, of which any `threshold` give `secret` [primes, N].

    The client runs it once per key. ConfigError unless 1 ≤ threshold ≤ holders < every prime.
    """
    if not 1 <= threshold <= holders < min(preset.primes):
        raise ConfigError(f"no {threshold} of {holders} key holders", where="key shares")
    seeds = [random(SEED_BYTES) for _ in range(threshold - 1)]
    points = {0: secret} | {at: expand(seed, preset) for at, seed in enumerate(seeds, 1)}
    rest = [_evaluate(preset, points, at) for at in range(threshold, holders + 1)]
    return (*seeds, *_pack(preset, np.stack(rest)))


def expand(share: bytes, preset: MultiKeyPreset) -> Residues:
    """The residues [primes, N] of a share as it travels; ProtocolError for any other length."""
    if len(share) != SEED_BYTES:
        return unpack_share(preset, share)
    return np.stack(
        [uniform(prime, preset.degree, keystream(SHARE, share, prime)) for prime in preset.primes]
    )


def weighted_share(preset: MultiKeyPreset, shares: Iterable[bytes], alphas: Iterable[int]) -> bytes:
    """A holder's share of Σα·s, packed, from its shares of each client's key.

    It is all that a holder ever answers. ProtocolError for a share of another length or weights
    that the preset cannot prove.
    """
    total, weight = np.zeros((len(preset.primes), preset.degree), np.uint64), 0
    for share, alpha in zip(shares, alphas, strict=True):
        weight += alpha
        # α·residue < 2^43 and Σα·residue < 2^63, for Σα·C < 2^63 is proved.
        if alpha < 1 or weight > preset.largest_total(1):
            raise ProtocolError("weights are not the plan's", where="key shares")
        total += np.uint64(alpha) * expand(share, preset)
    return _pack(preset, total[None] % _moduli(preset))[0]


def unpack_share(preset: MultiKeyPreset, body: bytes) -> Residues:
    """Residues [primes, N] of packed ones; ProtocolError for another length or one not reduced."""
    if len(body) != preset.share_bytes:
        raise ProtocolError("key share has another length", where="key shares")
    rows, start = [], 0
    for prime in preset.primes:
        stop = start + _row_bytes(preset, prime)
        rows.append(unpack(body[start:stop], prime.bit_length(), (prime,))[0])
        start = stop
    return np.stack(rows)


def interpolate(preset: MultiKeyPreset, shares: Mapping[int, Residues]) -> Residues:
    """The shared residues [primes, N] from the shares of t holders, by holder number.

    The server runs it on shares of Σα·s. Fewer than t, or a wrong one, give unrelated residues.
    """
    return _evaluate(preset, shares, 0)


def consistent(
    preset: MultiKeyPreset, shares: Mapping[int, Residues], index: int, residues: Residues
) -> bool:
    """Whether the share of holder `index` is on the polynomial through `shares` of t others."""
    return bool((_evaluate(preset, shares, index) == residues).all())


def _evaluate(preset: MultiKeyPreset, points: Mapping[int, Residues], at: int) -> Residues:
    """The polynomial through `points` at another place (Lagrange)."""
    total = np.zeros((len(preset.primes), preset.degree), np.uint64)
    for place, residues in points.items():
        others = [other for other in points if other != place]
        weights = [_basis(place, others, at, prime) for prime in preset.primes]
        # Fewer than 2^14 points, each product below 2^40.
        total += np.array(weights, np.uint64)[:, None] * residues
    return total % _moduli(preset)


def _basis(place: int, others: Iterable[int], at: int, prime: int) -> int:
    above = below = 1
    for other in others:
        above = above * (at - other) % prime
        below = below * (place - other) % prime
    return above * pow(below, -1, prime) % prime


def _pack(preset: MultiKeyPreset, shares: Residues) -> list[bytes]:
    """The bytes of several shares, residues [shares, primes, N]: one pass a prime."""
    rows = []
    for at, prime in enumerate(preset.primes):
        whole, size = pack(shares[:, at], prime.bit_length()), _row_bytes(preset, prime)
        rows.append([whole[start : start + size] for start in range(0, len(whole), size)])
    return [b"".join(parts) for parts in zip(*rows, strict=True)]


def _row_bytes(preset: MultiKeyPreset, prime: int) -> int:
    return preset.degree * prime.bit_length() // 8


def _moduli(preset: MultiKeyPreset) -> Residues:
    return np.array(preset.primes, np.uint64)[:, None]

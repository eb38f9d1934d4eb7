"""Reading the decryptor's key from one exact sum, as a client that tampers with its own c₁.

The client adds Δ·B to the constant coefficient of c₁ in block 0 of its upload, masked or not. The
phase c₀ + c₁·s of the sum then carries α·Δ·B·s, and the exact integers that are opened carry

    Σα·x + α·B·s   in the N coefficients of block 0.

The upload is signed, its residues are reduced, and the decryptor's own sum over the uploads is the
same: recomputation shows nothing. The error is as before, and the values stay below their bound as
long as α·B does, for honest integers leave headroom. One opening so gives all N ternary
coefficients of s, wherever the others' part |Σα·x| < α·B/2: the client subtracts its own, and
rounds. Block 0 must be filled by the group, since unused coefficients are checked to be zero.

What that key is good for: it opens every sum and every bare upload under the same key. An upload
with pairwise masks (protocols.masks) stays uniform to it, so for a coalition of clients that leaves
two honest ones in the group, no single contribution opens. Each group has a key of its own: with
one for all groups of an attempt, a client of the group that opens first and an active server would
read the unopened sum of a later group, feign a dropout, and take the difference to the sum of the
next attempt. The multi-key mode has no decryptor's key and no c₁ of a client.

The residues are multiplied by the key in floating point, exactly: c₁ in two halves of 22 bits.
"""

import numpy as np
from numpy.typing import NDArray

from attacks.cryptanalysis import KeyGuess
from attacks.threat import ThreatError
from protocols.residues import pack, unpack
from protocols.rlwe import Preset

_HALF_BITS = 22


def largest_offset(preset: Preset, alpha: int, total: int, reach: int) -> int:
    """The largest B that passes the bound check while |Σα·x| ≤ reach, for a client of weight α.

    `total` is Σα of the group. ThreatError if there is none that reads the whole key.
    """
    offset = (preset.value_limit * total - reach) // alpha
    if alpha * offset <= 2 * reach:
        raise ThreatError(
            "the bound check leaves no room",
            where="tampered c₁",
            why=f"honest integers reach {reach} of {preset.value_limit * total}",
            fix="tamper where the weight of the client is larger, or the integers are smaller",
        )
    return offset


def tampered(preset: Preset, body: bytes, offset: int) -> bytes:
    """An upload's body with Δ·B added to the constant coefficient of c₁ in block 0."""
    blocks = _blocks(preset, body)
    added = int(blocks[0, 1, 0]) + preset.scale * offset
    blocks[0, 1, 0] = added % preset.prime
    return pack(blocks, preset.residue_bits)


def read_key(
    opened: NDArray[np.int64], own: NDArray[np.int64], alpha: int, offset: int, degree: int
) -> KeyGuess:
    """The key from one opening, int64[≥N], of a sum with an upload that was `tampered`.

    own: the client's integers, int64[≥N]; alpha: its weight; offset: its B. Where a coefficient
    is no nearer to −1, 0 or 1 than 1/2, it is not counted in `checked`.
    """
    if min(len(opened), len(own)) < degree:
        raise ThreatError(
            "block 0 is not filled",
            where="tampered c₁",
            why="coefficients that no integer uses are checked to be zero",
            fix="attack a group that sums at least one block",
        )
    ratios = (opened[:degree] - alpha * own[:degree]) / (alpha * offset)
    coefficients = np.clip(np.rint(ratios), -1, 1)
    near = np.abs(ratios - coefficients) < 1 / 2
    return KeyGuess(coefficients.astype(np.int8), float(near.mean()))


def open_body(preset: Preset, body: bytes, key: KeyGuess, size: int) -> NDArray[np.int64]:
    """What the key reads in a body, an upload or a sum: int64[size], without any check."""
    prime, blocks = preset.prime, _blocks(preset, body)
    phases = np.stack([c0 + _times(c1, key, prime) for c0, c1 in blocks]) % np.uint64(prime)
    centred = phases.astype(np.int64) - prime * (phases > prime // 2)
    integers: NDArray[np.int64] = (centred + preset.scale // 2) // preset.scale
    return integers.ravel()[:size]


def _times(residues: NDArray[np.uint64], key: KeyGuess, prime: int) -> NDArray[np.uint64]:
    """Residues [N] times the key modulo the prime and X^N + 1."""
    low, high = residues & np.uint64((1 << _HALF_BITS) - 1), residues >> np.uint64(_HALF_BITS)
    # Products of a half stay within ±2^34, and 2^22 times as much within ±2^56.
    total = (_convolved(high, key) << _HALF_BITS) + _convolved(low, key)
    product: NDArray[np.uint64] = (total % prime).astype(np.uint64)
    return product


def _convolved(halves: NDArray[np.uint64], key: KeyGuess) -> NDArray[np.int64]:
    degree = len(halves)
    spectrum = np.fft.rfft(halves, 2 * degree) * np.fft.rfft(key.coefficients, 2 * degree)
    product: NDArray[np.int64] = np.rint(np.fft.irfft(spectrum)).astype(np.int64)
    return product[:degree] - product[degree:]


def _blocks(preset: Preset, body: bytes) -> NDArray[np.uint64]:
    """Residues [blocks, 2, N] of a body."""
    residues = unpack(body, preset.residue_bits, (preset.prime,))
    blocks: NDArray[np.uint64] = residues.reshape(-1, 2, preset.degree)
    return blocks

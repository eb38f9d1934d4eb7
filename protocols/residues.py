"""Residues modulo q on the wire, and their weighted sum: all that the server ever computes.

A ciphertext body is, block by block, the coefficients of c₀ and then of c₁, each residue in
`residue_bits` bits, little-endian, without gaps. Nothing but residues below q is accepted.
"""

from collections.abc import Iterable, Sequence
from math import gcd

import numpy as np
from numpy.typing import NDArray

from protocols.errors import ProtocolError
from protocols.rlwe import Preset

Residues = NDArray[np.uint64]


def pack(values: Residues, bits: int) -> bytes:
    """Bit-pack residues below 2^bits, bits ≤ 64; their number times `bits` is a multiple of 8."""
    count = values.size
    flat = np.zeros(-(-count // 64) * 64, np.uint64)
    flat[:count] = values.ravel()
    wide = bits
    while 2 * wide <= 64:
        flat = flat[0::2] | flat[1::2] << np.uint64(wide)
        wide *= 2
    width, places = _places(wide)
    columns = np.ascontiguousarray(flat.reshape(-1, len(places)).T)
    words = np.zeros((width, columns.shape[1]), np.uint64)
    for column, (word, shift) in zip(columns, places, strict=True):
        words[word] |= column << np.uint64(shift)
        if shift + wide > 64:
            words[word + 1] |= column >> np.uint64(64 - shift)
    return words.T.astype("<u8").tobytes()[: count * bits // 8]


def unpack(body: bytes, bits: int, moduli: Sequence[int]) -> Residues:
    """Residues [len(moduli), n] of a body whose rows are residues below each modulus.

    Raises ProtocolError for a residue that is not reduced; the caller has checked the length.
    """
    count = len(body) * 8 // bits
    wide = bits << (64 // bits).bit_length() - 1
    width, places = _places(wide)
    groups = -(-count * bits // (width * 64))
    words = np.frombuffer(body.ljust(groups * width * 8, b"\0"), "<u8").reshape(groups, width)
    words = words.T.astype(np.uint64, order="C")
    columns = np.empty((len(places), groups), np.uint64)
    for place, (word, shift) in enumerate(places):
        np.right_shift(words[word], np.uint64(shift), out=columns[place])
        if shift + wide > 64:
            columns[place] |= words[word + 1] << np.uint64(64 - shift)
    flat = columns.T.reshape(-1, 1) >> np.arange(0, wide, bits, dtype=np.uint64)
    flat &= np.uint64((1 << bits) - 1)
    values = flat.reshape(-1)[:count].reshape(len(moduli), -1)
    if (values >= np.array(moduli, np.uint64)[:, None]).any():
        raise ProtocolError("residue is not below its modulus", where="ciphertext")
    return values


def _places(bits: int) -> tuple[int, list[tuple[int, int]]]:
    """The fewest words that integers of `bits` fill exactly; word and shift where each starts."""
    shared = gcd(bits, 64)
    return bits // shared, [divmod(place * bits, 64) for place in range(64 // shared)]


class WeightedSum:
    """Σα·c over contributions, one after the other, in the memory of one contribution.

    Server and key holder both run it: the result depends on the multiset of inputs only, so
    equal inputs give equal bytes.
    """

    def __init__(self, preset: Preset, size: int) -> None:
        self._preset, self._bytes = preset, preset.ciphertext_bytes(size)
        self._sum = np.zeros(self._bytes * 8 // preset.residue_bits, np.uint64)

    def add(self, body: bytes, alpha: int) -> None:
        """Add α times one ciphertext body; α is from the signed plan, 1 ≤ α ≤ largest_total."""
        if len(body) != self._bytes or not 1 <= alpha <= self._preset.largest_total:
            raise ProtocolError("ciphertext length or weight is not the plan's", where="sum")
        prime = self._preset.prime
        residues = unpack(body, self._preset.residue_bits, (prime,))[0]
        # α·residue + sum < 2^(6 + 44) + 2^44: far from 2^64.
        self._sum = (self._sum + residues * np.uint64(alpha)) % np.uint64(prime)

    def body(self) -> bytes:
        """The sum so far, packed as a ciphertext body."""
        return pack(self._sum, self._preset.residue_bits)


def weighted_sum(
    preset: Preset, size: int, bodies: Iterable[bytes], alphas: Iterable[int]
) -> bytes:
    """Σα·c of whole ciphertext bodies of `size` integers, without any key."""
    total = WeightedSum(preset, size)
    for body, alpha in zip(bodies, alphas, strict=True):
        total.add(body, alpha)
    return total.body()

"""Residues modulo q on the wire, and their weighted sum: all that the server ever computes.

A ciphertext body is, block by block, the coefficients of c₀ and then of c₁, each residue in
`residue_bits` bits, little-endian, without gaps. Nothing but residues below q is accepted.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from protocols.errors import ProtocolError
from protocols.rlwe import Preset

Residues = NDArray[np.uint64]


def pack(values: Residues, bits: int) -> bytes:
    """Bit-pack residues below 2^bits; their number times `bits` is a multiple of 8."""
    octets = np.ascontiguousarray(values, dtype="<u8").view(np.uint8).reshape(-1, 8)
    lowest = octets[:, : -(-bits // 8)]
    return np.packbits(
        np.unpackbits(lowest, axis=1, count=bits, bitorder="little"), bitorder="little"
    ).tobytes()


def unpack(body: bytes, bits: int, moduli: Sequence[int]) -> Residues:
    """Residues [len(moduli), n] of a body whose rows are residues below each modulus.

    Raises ProtocolError for a residue that is not reduced; the caller has checked the length.
    """
    octets = np.zeros((len(body) * 8 // bits, 64), np.uint8)
    octets[:, :bits] = np.unpackbits(np.frombuffer(body, np.uint8), bitorder="little").reshape(
        -1, bits
    )
    values = np.packbits(octets, axis=1, bitorder="little").view("<u8").astype(np.uint64)
    values = values.reshape(len(moduli), -1)
    if (values >= np.array(moduli, np.uint64)[:, None]).any():
        raise ProtocolError("residue is not below its modulus", where="ciphertext")
    return values


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

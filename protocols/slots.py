"""Parameters and bodies of the `slots` mode: real numbers in slots, as CKKS is commonly used.

Nothing is proved here, in contrast to `protocols.rlwe`: what is read from a sum is approximate,
and its errors give the secret key away. `protocols.tenseal_slots` has the arithmetic.

A body is, prime by prime, the residues of all blocks, c₀ and c₁ of each, in coefficient form and
bit-packed. No other bytes cross between parties, and SEAL parses only what is built from them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from protocols.errors import ConfigError, ProtocolError
from protocols.residues import Residues, pack, unpack

LARGEST_TOTAL: Final = 32
"""Σα in any slot, up to which rounding a sum of integers is tested to give the right ones."""


@dataclass(frozen=True)
class SlotsPreset:
    """Degree N, the primes with the special one last, the scale Δ and bits b of an integer."""

    name: str
    degree: int
    primes: tuple[int, ...]
    scale: int
    bits: int

    def prove(self, alphas: Sequence[int]) -> None:
        """Return if Σα is within what was tested, else ConfigError. Nothing is proved here.

        All parties run it on a plan, as they run the proofs of the other presets.
        """
        if min(alphas, default=0) < 1 or sum(alphas) > LARGEST_TOTAL:
            raise ConfigError(
                f"weights that add up to {sum(alphas)}",
                where=f"preset {self.name}",
                why=f"rounding was tested for weights from 1 on and up to {LARGEST_TOTAL} in all",
                fix="lower the weights",
            )

    @property
    def slots(self) -> int:
        """Real numbers in one ciphertext block, N/2."""
        return self.degree // 2

    @property
    def value_limit(self) -> int:
        """Largest magnitude of one contributed number, 2^(b−1) − 1."""
        return (1 << (self.bits - 1)) - 1

    @property
    def slot_scale(self) -> float:
        """Δ/2^(b−1): what a contributed number is multiplied by."""
        return self.scale / (1 << (self.bits - 1))

    @property
    def upload_primes(self) -> tuple[int, ...]:
        """The primes of an upload: all but the special one."""
        return self.primes[:-1]

    @property
    def sum_primes(self) -> tuple[int, ...]:
        """The prime of a sum: rescaling and modulus switching leave the first."""
        return self.primes[:1]

    def blocks(self, size: int) -> int:
        """Ciphertext blocks for `size` numbers."""
        return -(-size // self.slots)

    def upload_bytes(self, size: int) -> int:
        """Bytes of an upload, of values or of weights."""
        return self._bytes(self.blocks(size), self.upload_primes)

    def sum_bytes(self, size: int) -> int:
        """Bytes of a weighted sum."""
        return self._bytes(self.blocks(size), self.sum_primes)

    @property
    def relin_bytes(self) -> int:
        """Bytes of the relinearisation key: one block per prime of an upload, over all primes."""
        return self._bytes(len(self.upload_primes), self.primes)

    def pack(self, residues: Residues) -> bytes:
        """The body of residues [blocks, 2, primes, N], of the first primes of the preset."""
        used = self.primes[: residues.shape[2]]
        return b"".join(
            pack(residues[:, :, at].reshape(-1), prime.bit_length())
            for at, prime in enumerate(used)
        )

    def unpack(self, body: bytes, blocks: int, primes: tuple[int, ...]) -> Residues:
        """Residues [blocks, 2, primes, N]; ProtocolError for another length or one not reduced."""
        if len(body) != self._bytes(blocks, primes):
            raise ProtocolError("body has another length", where=f"preset {self.name}")
        polynomials, start = [], 0
        for prime in primes:
            stop = start + self._bytes(blocks, (prime,))
            polynomials.append(unpack(body[start:stop], prime.bit_length(), (prime,)))
            start = stop
        return np.stack([one.reshape(blocks, 2, self.degree) for one in polynomials], axis=2)

    def _bytes(self, blocks: int, primes: tuple[int, ...]) -> int:
        return blocks * 2 * self.degree * sum(prime.bit_length() for prime in primes) // 8


SLOTS18_140: Final = SlotsPreset(
    name="slots18-140",
    degree=8192,
    primes=(1152921504606830593, 1099510890497, 1099511480321),
    scale=1 << 40,
    bits=18,
)
"""NVFlare's parameters, for weights in the clear: 204,800 B a block up, 122,880 B down."""

SLOTS18_200: Final = SlotsPreset(
    name="slots18-200",
    degree=8192,
    primes=(1152921504606748673, 1099510890497, 1099511480321, 1152921504606830593),
    scale=1 << 40,
    bits=18,
)
"""Room for a product of ciphertexts: 286,720 B a block up, 122,880 B down, a 1.2 MB key."""

SLOTS_PRESETS: Final[Mapping[str, SlotsPreset]] = {
    known.name: known for known in (SLOTS18_140, SLOTS18_200)
}

"""Parameters of exact sums under one-time keys, each proved by worst-case arithmetic.

A client's block holds `degree` integers m as coefficients in Z_q[X]/(X^N + 1):

    b = −a·s + e + Δ·m mod q,    c = ⌊(b + 2^(k−1)) / 2^k⌋

a is public and s uniform, used once; e is a discrete Gaussian cut at 14 standard deviations σ;
c, without the k = `dropped` lowest bits, travels. Whoever has Σα·s sees Σα·(Δ·m + error), each
error at most B = ⌈14σ⌉ + 2^(k−1). A sum of b-bit integers with A = Σα is exact if

    Δ > 2·A·B    and    2·(2^(b−1)·A·Δ + A·B) < q

for every choice of randomness, so an opening is a function of the sum alone and the key recovery
from approximate decryptions (Li and Micciancio, EUROCRYPT 2021) has no foothold.

Why σ = 8.25·max α. Openers learn Σα·m and with it E = Σα·e over the honest clients. The errors of
two of them with weights α and α′ can move along v = (α′, −α)/gcd without a trace in E, and
|v| ≤ √2·max α. Errors of width σ are a background plus v·z, z of width σ₀ = 3.2 and independent of
it, but for a distance below 2^-200, if σ² − σ₀²|v|² leaves the background wide enough (Peikert,
CRYPTO 2010). E depends on the background only, so each contribution but one is an RLWE sample with
error of width 3.2 even to those who know E. docs/protocol.md has the proof.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from protocols.errors import ConfigError
from protocols.gaussian_errors import TAIL
from protocols.rlwe import MARGIN_BITS, TABLE_128

ERROR_WIDTH: Final = 8.25
"""Standard deviation of the errors, per unit of the heaviest weight."""

_PRIME_BITS: Final = 20


@dataclass(frozen=True)
class MultiKeyPreset:
    """Ring degree N, the primes of q, the scale Δ, bits b of an integer, bits k dropped.

    Construction raises ConfigError unless the ring is sound and at least A = 1 is proved.
    """

    name: str
    degree: int
    primes: tuple[int, ...]
    scale: int
    bits: int
    dropped: int

    def __post_init__(self) -> None:
        allowed = TABLE_128.get(self.degree, 0) - MARGIN_BITS
        if self.q.bit_length() > allowed:
            raise ConfigError(
                f"{self.q.bit_length()} modulus bits at degree {self.degree}",
                where=f"preset {self.name}",
                why=f"128-bit security with {MARGIN_BITS} bits to spare allows {allowed}",
                fix="take smaller primes or a larger degree",
            )
        if len(set(self.primes)) < len(self.primes) or not all(map(self._fits, self.primes)):
            raise ConfigError(
                "moduli are not distinct primes of the ring",
                where=f"preset {self.name}",
                fix=f"take primes below 2^{_PRIME_BITS} that are 1 modulo twice the degree",
            )
        self.prove((1,))
        if (self.largest_total(1) * self.wire_limit << self.dropped) + self.q >= 2**63:
            raise ConfigError(
                "a weighted sum does not fit a machine word",
                where=f"preset {self.name}",
                fix="take smaller primes or a larger scale",
            )

    @property
    def q(self) -> int:
        """The modulus, a product of the primes."""
        return math.prod(self.primes)

    @property
    def value_limit(self) -> int:
        """Largest magnitude of one contributed integer, 2^(b−1) − 1."""
        return (1 << (self.bits - 1)) - 1

    @property
    def wire_limit(self) -> int:
        """C: the integers of a contribution's body are below it."""
        return (self.q - 1 + self._half_dropped >> self.dropped) + 1

    @property
    def wire_bits(self) -> int:
        """Bits of one integer of a contribution's body."""
        return (self.wire_limit - 1).bit_length()

    @property
    def share_bytes(self) -> int:
        """Bytes of a key share, or of a sum of them: N residues per prime, bit-packed."""
        return self.degree * sum(prime.bit_length() for prime in self.primes) // 8

    def blocks(self, size: int) -> int:
        """Blocks for `size` integers."""
        return -(-size // self.degree)

    def ciphertext_bytes(self, size: int) -> int:
        """Bytes of one contribution's body: one polynomial per block, bit-packed."""
        return self.blocks(size) * self.degree * self.wire_bits // 8

    def error_width(self, heaviest: int) -> float:
        """σ: standard deviation of the errors if no weight of the group is above `heaviest`."""
        return ERROR_WIDTH * heaviest

    def noise_bound(self, heaviest: int) -> int:
        """B: what encryption and dropped bits add to Δ·m is at most this, always."""
        return math.ceil(TAIL * self.error_width(heaviest)) + self._half_dropped

    def largest_total(self, heaviest: int) -> int:
        """The largest A = Σα for which exactness is proved, with no α above `heaviest`."""
        noise = self.noise_bound(heaviest)
        step = (1 << (self.bits - 1)) * self.scale + noise
        return min((self.scale - 1) // (2 * noise), (self.q - 1) // (2 * step))

    def prove(self, alphas: Sequence[int]) -> None:
        """Return if every sum with these weights is exact, else ConfigError saying what would be.

        Clients and holders run it on each group of a plan, before a key or a share is made.
        """
        total, heaviest = sum(alphas), max(alphas, default=0)
        noise = self.noise_bound(heaviest)
        exact = self.scale > 2 * noise * total
        peak = (1 << (self.bits - 1)) * total * self.scale + noise * total
        if min(alphas, default=0) >= 1 and exact and 2 * peak < self.q:
            return
        raise ConfigError(
            f"no exact sum of {self.bits}-bit integers with weights adding up to {total}, "
            f"the heaviest {heaviest}",
            where=f"preset {self.name}",
            why=f"Δ = {self.scale}, worst error {noise * total}, "
            f"worst coefficient {peak}, q = {self.q}",
            fix=self._what_would_do(max(heaviest, 1)),
        )

    @property
    def _half_dropped(self) -> int:
        return 1 << self.dropped >> 1

    def _fits(self, prime: int) -> bool:
        small = 1 < prime < 1 << _PRIME_BITS and prime % (2 * self.degree) == 1
        return small and all(prime % divisor for divisor in range(2, math.isqrt(prime) + 1))

    def _what_would_do(self, heaviest: int) -> str:
        largest = self.largest_total(heaviest)
        if largest < heaviest:
            return "lower the heaviest weight, or take a preset of a larger modulus"
        return f"give weights from 1 on with Σα ≤ {largest} and none above {heaviest}"


MK18_39: Final = MultiKeyPreset(
    name="mk18-39",
    degree=2048,
    primes=(1032193, 520193),
    scale=64_000,
    bits=18,
    dropped=10,
)
"""18-bit integers in 29 bits on the wire; Σα ≤ 32 with weights up to 4."""

MK18_49: Final = MultiKeyPreset(
    name="mk18-49",
    degree=2048,
    primes=(737281, 61441, 12289),
    scale=2_048_000,
    bits=18,
    dropped=10,
)
"""18-bit integers in 39 bits on the wire; Σα ≤ 1,036 with weights up to 4."""

MULTIKEY_PRESETS: Final[Mapping[str, MultiKeyPreset]] = {
    known.name: known for known in (MK18_39, MK18_49)
}


def multikey_preset(name: str) -> MultiKeyPreset:
    """Look up a preset by the name in a plan; ConfigError where there is none."""
    if name not in MULTIKEY_PRESETS:
        raise ConfigError(
            f"unknown preset {name!r}",
            where="plan",
            fix=f"choose one of {', '.join(MULTIKEY_PRESETS)}",
        )
    return MULTIKEY_PRESETS[name]

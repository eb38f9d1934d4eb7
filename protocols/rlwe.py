"""Parameters of exact integer sums in CKKS form, each proved by worst-case arithmetic.

One ciphertext block holds `degree` integers as polynomial coefficients scaled by Δ. Public-key
encryption in SEAL samples under q·p (p the special prime) and divides by p with rounding:

    phase − Δ·m = (u·e + e₀ + e₁·s)/p + τ₀ + τ₁·s

with u, s ternary, errors centred binomial of at most 21, and rounding errors |τ| ≤ 1/2. The
rounding of c₁ meets the N ternary coefficients of s, so the last two terms are at most
N/2 + 1/2 and the first at most 21·(2N + 1)/p < 1. Hence |error| < B = N/2 + 2, with certainty.

The server multiplies by integers α ≥ 1 and adds; A = Σα. A sum is exact if the error cannot
reach half a step, Δ/2 > B·A, and cannot wrap, 2^(b−1)·A·Δ + B·A < q/2, for b-bit integers.
Both hold for every choice of randomness, so decryption is a function of the sum alone and the
key recovery from approximate decryptions (Li and Micciancio, EUROCRYPT 2021) has no foothold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from protocols.errors import ConfigError

MARGIN_BITS: Final = 5
_ERROR_LIMIT: Final = 21  # SEAL's centred binomial: 21 bits minus 21 bits
_WORD_BITS: Final = 62
TABLE_128: Final[Mapping[int, int]] = {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438}
"""Largest log2(q·p) for 128 bits and ternary keys (HomomorphicEncryption.org, 2018)."""


@dataclass(frozen=True)
class Preset:
    """Ring degree N, the primes q and p, the scale Δ and the bits b of one clamped integer.

    Construction raises ConfigError unless the ring is sound and at least A = 1 is proved.
    """

    name: str
    degree: int
    prime: int
    special: int
    scale: int
    bits: int

    def __post_init__(self) -> None:
        allowed = TABLE_128.get(self.degree, 0) - MARGIN_BITS
        used = self.prime.bit_length() + self.special.bit_length()
        if used > allowed:
            raise ConfigError(
                f"{used} modulus bits at degree {self.degree}",
                where=f"preset {self.name}",
                why=f"128-bit security with {MARGIN_BITS} bits to spare allows {allowed}",
                fix="take smaller primes or a larger degree",
            )
        if any(modulus % (2 * self.degree) != 1 for modulus in (self.prime, self.special)):
            raise ConfigError(
                "prime is not 1 modulo twice the degree",
                where=f"preset {self.name}",
                fix="take primes that SEAL's CoeffModulus.Create gives for this degree",
            )
        if _ERROR_LIMIT * (2 * self.degree + 1) >= self.special:
            raise ConfigError(
                "special prime is too small for the error bound",
                where=f"preset {self.name}",
                fix=f"take a special prime above {_ERROR_LIMIT * (2 * self.degree + 1)}",
            )
        self.prove((1,))
        if self.prime.bit_length() + self.largest_total.bit_length() > _WORD_BITS:
            raise ConfigError(
                "α times a residue does not fit a machine word",
                where=f"preset {self.name}",
                fix="take a smaller prime or scale",
            )

    @property
    def noise_bound(self) -> int:
        """B: the error of one fresh ciphertext is below it, always."""
        return self.degree // 2 + 2

    @property
    def value_limit(self) -> int:
        """Largest magnitude of one contributed integer, 2^(b−1) − 1."""
        return (1 << (self.bits - 1)) - 1

    @property
    def residue_bits(self) -> int:
        """Bits of one residue on the wire."""
        return self.prime.bit_length()

    @property
    def largest_total(self) -> int:
        """The largest A = Σα for which exactness is proved."""
        by_noise = (self.scale - 1) // (2 * self.noise_bound)
        step = (1 << (self.bits - 1)) * self.scale + self.noise_bound
        return min(by_noise, (self.prime - 1) // (2 * step))

    def prove(self, alphas: Sequence[int]) -> None:
        """Return if every sum with these weights is exact, else ConfigError saying what would be.

        Key holder and clients run it on the plan, before a key or a contribution is made.
        """
        total = sum(alphas)
        exact = self.scale > 2 * self.noise_bound * total
        peak = (1 << (self.bits - 1)) * total * self.scale + self.noise_bound * total
        if total >= 1 and exact and 2 * peak < self.prime:
            return
        raise ConfigError(
            f"no exact sum of {self.bits}-bit integers with weights adding up to {total}",
            where=f"preset {self.name}",
            why=f"Δ = {self.scale}, worst error {self.noise_bound * total}, "
            f"worst coefficient {peak}, q = {self.prime}",
            fix=self._what_would_do(total),
        )

    def blocks(self, size: int) -> int:
        """Ciphertext blocks for `size` integers."""
        return -(-size // self.degree)

    def ciphertext_bytes(self, size: int) -> int:
        """Bytes of one contribution, or of a sum: two polynomials per block, bit-packed."""
        return self.blocks(size) * 2 * self.degree * self.residue_bits // 8

    @property
    def public_key_bytes(self) -> int:
        """Bytes of a public key: two polynomials modulo q and p."""
        return 4 * self.degree * self.special.bit_length() // 8

    def _what_would_do(self, total: int) -> str:
        low = 2 * self.noise_bound * max(total, 1) + 1
        room = (self.prime - 1) // 2 - self.noise_bound * max(total, 1)
        bits = (room // (max(total, 1) * low)).bit_length() if room > 0 else 0
        text = f"lower the weights to Σα ≤ {self.largest_total}"
        return text + (f", or take {bits} bits with Δ ≥ {low}" if bits >= 2 else "")


PK18_44: Final = Preset(
    name="pk18-44",
    degree=4096,
    prime=17592185659393,
    special=17592186028033,
    scale=1 << 19,
    bits=18,
)
"""Public-key encryption of 18-bit integers, Σα ≤ 127: 88 of at most 104 modulus bits."""

PRESETS: Final[Mapping[str, Preset]] = {PK18_44.name: PK18_44}


def preset(name: str) -> Preset:
    """Look up a preset for public-key encryption by its name; ConfigError where there is none."""
    if name not in PRESETS:
        raise ConfigError(
            f"unknown preset {name!r}", where="plan", fix=f"choose one of {', '.join(PRESETS)}"
        )
    return PRESETS[name]

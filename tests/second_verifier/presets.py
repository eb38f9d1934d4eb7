"""The presets' numbers and the proof that a weighted sum is exact, written a second time."""

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, prod


@dataclass(frozen=True)
class OneTime:
    """A preset of one-time keys: degree, primes, scale, bits of an integer, bits dropped."""

    degree: int
    primes: tuple[int, ...]
    scale: int
    bits: int
    dropped: int

    @property
    def q(self) -> int:
        return prod(self.primes)

    @property
    def limit(self) -> int:
        return (1 << self.bits - 1) - 1

    @property
    def below(self) -> int:
        """Integers of a body are below it."""
        return ((self.q - 1 + (1 << self.dropped - 1)) >> self.dropped) + 1

    @property
    def wire_bits(self) -> int:
        return (self.below - 1).bit_length()

    @property
    def share_bytes(self) -> int:
        return self.degree * sum(prime.bit_length() for prime in self.primes) // 8

    def noise(self, heaviest: int) -> int:
        """14 deviations of 8.25 per unit of the heaviest weight, and half of what is dropped."""
        return ceil(14 * Fraction(33, 4) * heaviest) + (1 << self.dropped - 1)

    def exact(self, total: int, heaviest: int) -> bool:
        error = total * self.noise(heaviest)
        fits = 2 * (2 ** (self.bits - 1) * total * self.scale + error) < self.q
        return self.scale > 2 * error and fits

    def most(self) -> int:
        """The largest sum of weights that is proved for weights of 1."""
        total = 1
        while self.exact(total + 1, 1):
            total += 1
        return total


ONE_TIME = {
    "mk18-39": OneTime(2048, (1032193, 520193), 64000, 18, 10),
    "mk18-49": OneTime(2048, (737281, 61441, 12289), 2048000, 18, 10),
}
PUBLIC = {"pk18-44": (4096, 17592185659393, 2**19, 18)}
"""Degree, prime, scale and bits of an integer."""


def proved(preset: str, alphas: list[int]) -> bool:
    """Whether every sum with these weights is exact."""
    total = sum(alphas)
    if preset in ONE_TIME:
        return ONE_TIME[preset].exact(total, max(alphas))
    degree, prime, scale, bits = PUBLIC[preset]
    error = total * (degree // 2 + 2)
    return scale > 2 * error and 2 * (2 ** (bits - 1) * total * scale + error) < prime

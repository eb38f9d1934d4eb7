"""Products in Z_p[X]/(X^N + 1) by a number-theoretic transform in exact float64 arithmetic.

The transform of x is its values at the odd powers of ψ, in natural order: x̂[i] = x(ψ^(2i+1)) for
i = 0 .. N−1, where ψ is the primitive 2N-th root of unity modulo p that is smallest as an
integer. Products of polynomials are products of their transforms, entry by entry.

With N = R·C, n = C·n₁ + n₂ and i = i₁ + R·i₂ the transform is two matrix products around one
product by entries (Bailey's four steps; the powers of ψ that make it negacyclic fold into the
first two):

    x̂[i] = Σ_n₂ ψ^(2R·i₂·n₂) · ψ^((2i₁+1)·n₂) · Σ_n₁ ψ^((2i₁+1)·C·n₁) · x[n]

Residues are whole numbers in float64 between products, of magnitude below p; a sum of 64 products
is below 64·(p−1)² < 2^53, hence exact in whatever order BLAS adds.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocols.errors import ConfigError
from protocols.residues import Residues

Floats = NDArray[np.float64]

_LONGEST_DOT: Final = 64
_SHAPES: Final = {2048: (32, 64), 4096: (64, 64)}


class Transform:
    """The transform for one prime p ≡ 1 mod 2N and N = 2048 or 4096; use `transform` below.

    Arrays are residues below p with N last; any axes before it are a batch. ConfigError if the
    degree is another or 64·(p−1)² does not stay below 2^53.
    """

    def __init__(self, degree: int, prime: int) -> None:
        if degree not in _SHAPES or prime % (2 * degree) != 1:
            raise ConfigError(f"no transform of degree {degree} modulo {prime}", where="ring")
        if _LONGEST_DOT * (prime - 1) ** 2 >= 2**53:
            raise ConfigError(f"prime {prime} is too large for exact sums", where="ring")
        self.degree, self.prime, self._shape = degree, prime, _SHAPES[degree]
        rows, columns = self._shape
        root = smallest_root(degree, prime)
        powers = [1]
        for _ in range(2 * degree - 1):
            powers.append(powers[-1] * root % prime)
        table = np.array(powers, np.float64)
        odd, n1, n2 = 2 * np.arange(rows) + 1, np.arange(rows), np.arange(columns)
        first = np.outer(odd, columns * n1)
        middle = np.outer(odd, n2)
        last = np.outer(n2, 2 * rows * n2)
        self._first, self._middle, self._last = (
            table[power % (2 * degree)] for power in (first, middle, last)
        )
        share = pow(degree, -1, prime)
        undone = table[-first.T % (2 * degree)] * share
        self._unfirst = undone % prime
        self._unmiddle, self._unlast = (table[-power % (2 * degree)] for power in (middle.T, last))

    def forward(self, values: Residues) -> Residues:
        """Coefficients [..., N] to values at the odd powers of ψ."""
        rows, columns = self._shape
        x = values.astype(np.float64).reshape(-1, rows, columns)
        x = self._reduced(self._first @ x)
        x *= self._middle
        x = self._reduced(self._reduced(x) @ self._last)
        return self._residues(x.swapaxes(1, 2)).reshape(values.shape)

    def inverse(self, values: Residues) -> Residues:
        """Values at the odd powers of ψ [..., N] to coefficients."""
        return self._inverse(values.astype(np.float64)).reshape(values.shape)

    def product(self, one: Residues, other: Residues) -> Residues:
        """Coefficients of a product of polynomials that are given by their transforms."""
        entries = one.astype(np.float64)
        entries *= other
        return self._inverse(self._reduced(entries)).reshape(entries.shape)

    def _inverse(self, values: Floats) -> Residues:
        rows, columns = self._shape
        x = self._reduced(self._unlast @ values.reshape(-1, columns, rows))
        x *= self._unmiddle
        x = self._reduced(self._unfirst @ self._reduced(x).swapaxes(1, 2))
        return self._residues(x)

    def _reduced(self, values: Floats) -> Floats:
        """The same modulo p in place, of magnitude at most p/2 + 1; |values| < 2^53."""
        multiples = values * (1 / self.prime)
        np.rint(multiples, out=multiples)
        multiples *= self.prime
        values -= multiples
        return values

    def _residues(self, values: Floats) -> Residues:
        words = values.astype(np.int64, order="C")
        words += (words >> 63) & self.prime
        return words.view(np.uint64)


@lru_cache(maxsize=16)
def transform(degree: int, prime: int) -> Transform:
    """The transform of a ring, made once per process."""
    return Transform(degree, prime)


def smallest_root(degree: int, prime: int) -> int:
    """The smallest integer ψ with ψ^N = −1 modulo p, N = `degree` a power of two."""
    found = next(
        root
        for base in range(2, prime)
        if pow(root := pow(base, (prime - 1) // (2 * degree), prime), degree, prime) == prime - 1
    )
    square, power, smallest = found * found % prime, found, found
    for _ in range(degree - 1):
        power = power * square % prime
        smallest = min(smallest, power)
    return smallest


def combine(primes: Sequence[int], residues: Sequence[Residues]) -> Residues:
    """The integers below Π primes with these residues, one array a prime (Garner).

    Π primes is below 2^53; the primes below 2^26.
    """
    total, modulus = residues[0].astype(np.float64), primes[0]
    for prime, residue in zip(primes[1:], residues[1:], strict=True):
        digit = residue - total
        digit -= np.floor(digit / prime) * prime
        digit *= pow(modulus, -1, prime)
        digit -= np.floor(digit / prime) * prime
        digit *= modulus
        total += digit
        modulus *= prime
    return total.astype(np.uint64)

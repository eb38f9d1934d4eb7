"""Key recovery from ciphertexts and what was read from them (Li and Micciancio, EUROCRYPT 2021).

A curious server holds weighted sums (c₀, c₁) and their published numbers. If the numbers give away
the phase c₀ + c₁·s, errors included, the key s follows by linear algebra modulo one prime of the
ciphertext, for s is ternary. Approximate CKKS publishes just that; exact integers do not.

Arithmetic modulo primes of up to 60 bits is done in Python's integers, in arrays of objects.
Ciphertexts are residues in coefficient form, so the attacker's own order of evaluations will do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, repeat

import numpy as np
from numpy.typing import ArrayLike, NDArray

from attacks.threat import ThreatError

Floats = NDArray[np.float64]
Numbers = NDArray[np.object_]  # Python integers
_inverses = np.frompyfunc(lambda value, prime: pow(value, -1, prime), 2, 1)


@dataclass(frozen=True)
class Published:
    """Whole ciphertext blocks under one key and what is known of their phases.

    ciphertexts: uint64[blocks, 2, N], coefficients modulo `prime`. phases: int64[blocks, N], the
    phase φ itself, or if `folded` the coefficients of φ(X) + φ(1/X): real parts of slots tell no
    more. `from_slots`, `from_integers` and `from_phases` make it.
    """

    prime: int
    ciphertexts: NDArray[np.uint64]
    phases: NDArray[np.int64]
    folded: bool


@dataclass(frozen=True)
class KeyGuess:
    """A guess of the key: int8[N], each −1, 0 or 1.

    checked: share of the coefficients that came out ternary modulo the prime, which tells the
    attacker how far to believe them: 1 for the key, about 3/prime for a failure. Where one did
    not, the guess is the third of [0, prime) it fell into, so that chance is 1/3.
    """

    coefficients: NDArray[np.int8]
    checked: float


def from_slots(
    ciphertexts: NDArray[np.uint64], prime: int, values: ArrayLike, scale: float
) -> Published:
    """What a sum read as real numbers in slots publishes.

    ciphertexts: uint64[≥blocks, 2, N] modulo `prime`. values: the published float64[size], of
    which whole blocks of N/2 are used. scale: what one such number is multiplied by.
    """
    numbers, degree = np.asarray(values, np.float64), ciphertexts.shape[-1]
    half = degree // 2
    blocks = numbers.size // half
    slots = numbers[: blocks * half].reshape(blocks, half)
    return Published(prime, ciphertexts[:blocks], _folded_phases(slots, scale), folded=True)


def from_integers(
    ciphertexts: NDArray[np.uint64], prime: int, values: ArrayLike, scale: int
) -> Published:
    """What exact integers in coefficients publish: the phases but for their errors, Δ·integers.

    ciphertexts: uint64[blocks, 2, N] modulo `prime`. values: int64[size]; the coefficients after
    them are known to be 0.
    """
    phases = np.zeros((len(ciphertexts), ciphertexts.shape[-1]), np.int64)
    numbers = np.asarray(values, np.int64)
    phases.flat[: numbers.size] = numbers * scale
    return from_phases(ciphertexts, prime, phases)


def from_phases(
    ciphertexts: NDArray[np.uint64], prime: int, phases: NDArray[np.int64]
) -> Published:
    """Phases int64[blocks, N] that were published whole, before any rounding."""
    return Published(prime, ciphertexts, phases, folded=False)


def recover_key(published: Sequence[Published]) -> KeyGuess:
    """Solve for the key from all blocks of one or several sums of one kind under one key.

    Whole phases need one block, real parts of slots two; more are not looked at. Raises
    ThreatError if there are fewer.
    """
    first = published[0]
    ciphertexts = np.concatenate([one.ciphertexts for one in published])
    phases = np.concatenate([one.phases for one in published])
    needed = 2 if first.folded else 1
    if len(phases) < needed:
        raise ThreatError(
            f"{needed} whole blocks are needed, {len(phases)} are there",
            where="key recovery",
            fix="publish more or longer sums under one key",
        )
    ring = _Ring(ciphertexts.shape[-1], first.prime)
    c0, c1 = (ring.evaluate(ciphertexts[:needed, which]) for which in (0, 1))
    known = ring.evaluate(phases[:needed])
    above, below = _by_pairs(c0, c1, known) if first.folded else ((known - c0)[0], c1[0])
    coefficients = ring.interpolate(above * _inverses(below % ring.prime, ring.prime))
    ternary = np.abs(coefficients) <= 1
    thirds = np.sign(coefficients) * (np.abs(coefficients) > ring.prime // 6)
    guess = np.where(ternary, coefficients, thirds).astype(np.int8)
    return KeyGuess(guess, float(ternary.mean()))


def read_slots(key: KeyGuess, ciphertexts: NDArray[np.uint64], prime: int, scale: float) -> Floats:
    """Numbers float64[blocks·N/2] in any ciphertext under the key, such as one client's upload.

    ciphertexts: uint64[blocks, 2, N] modulo `prime`, its first if it has several.
    """
    degree = ciphertexts.shape[-1]
    ring = _Ring(degree, prime)
    c0, c1 = (ring.evaluate(ciphertexts[:, which]) for which in (0, 1))
    phases = ring.interpolate(c0 + c1 * ring.evaluate(key.coefficients))
    turned = phases * _half_turns(degree)
    return (np.fft.ifft(turned, norm="forward")[:, _places(degree)].real / scale).ravel()


def _by_pairs(c0: Numbers, c1: Numbers, known: Numbers) -> tuple[Numbers, Numbers]:
    """Numerators and denominators of s at every root.

    At a root x and at 1/x, the last position but as many, each block says
    c₁(x)·s(x) + c₁(1/x)·s(1/x) = known(x) − c₀(x) − c₀(1/x): two blocks, two unknowns.
    """
    (one, other), (mirrored, other_mirrored) = c1, c1[:, ::-1]
    left, right = known - c0 - c0[:, ::-1]
    return left * other_mirrored - right * mirrored, one * other_mirrored - other * mirrored


def _folded_phases(slots: Floats, scale: float) -> NDArray[np.int64]:
    """φ(X) + φ(1/X), int64[blocks, N], of the real parts of the slots [blocks, N/2]."""
    blocks, half = slots.shape
    places, values = _places(2 * half), np.empty((blocks, 2 * half))
    values[:, places], values[:, 2 * half - 1 - places] = slots, slots
    turned = np.fft.fft(values, norm="forward") * _half_turns(2 * half).conj()
    return np.rint(2 * scale * turned.real).astype(np.int64)


def _half_turns(degree: int) -> NDArray[np.complex128]:
    """ζ^n, n < N, of ζ = exp(iπ/N): turns a cyclic transform into one at odd powers of ζ."""
    turns: NDArray[np.complex128] = np.exp(1j * np.pi / degree * np.arange(degree))
    return turns


def _places(degree: int) -> NDArray[np.int64]:
    """Where slot j is among the values at ζ^(2i+1), i < N: SEAL puts it at ζ^(3^j)."""
    powers = [pow(3, slot, 2 * degree) for slot in range(degree // 2)]
    return (np.array(powers) - 1) // 2


class _Ring:
    """Polynomials modulo a prime and X^N + 1, and their values at ψ^(2i+1), ψ of order 2N."""

    def __init__(self, degree: int, prime: int) -> None:
        self.degree, self.prime = degree, prime
        roots = (pow(base, (prime - 1) // (2 * degree), prime) for base in range(2, prime))
        self._psi = next(root for root in roots if pow(root, degree, prime) == prime - 1)

    def evaluate(self, coefficients: NDArray[np.generic]) -> Numbers:
        """Values [..., N] of coefficients [..., N]."""
        turned = coefficients.astype(object) * self._powers(self._psi, self.degree)
        return self._dft(turned, self._psi**2 % self.prime)

    def interpolate(self, values: Numbers) -> NDArray[np.int64]:
        """Coefficients [..., N] between −prime/2 and prime/2 of values [..., N]."""
        inverse = pow(self._psi, -1, self.prime)
        turned = self._dft(values, inverse**2 % self.prime) * self._powers(inverse, self.degree)
        reduced, half = turned * pow(self.degree, -1, self.prime), self.prime // 2
        centred: NDArray[np.int64] = np.array((reduced + half) % self.prime - half, np.int64)
        return centred

    def _dft(self, vector: Numbers, root: int) -> Numbers:
        """Values at the powers of `root`: both halves of every level in one call (Cooley–Tukey)."""
        length = vector.shape[-1]
        if length > 1:
            halves = np.stack([vector[..., 0::2], vector[..., 1::2]])
            even, odd = self._dft(halves, root * root % self.prime)
            turned = odd * self._powers(root, length // 2)
            vector = np.concatenate([even + turned, even - turned], axis=-1)
        values: Numbers = vector % self.prime
        return values

    def _powers(self, base: int, count: int) -> Numbers:
        """base^n modulo the prime, n < count."""
        steps = accumulate(repeat(base, count - 1), lambda a, b: a * b % self.prime, initial=1)
        return np.array(list(steps), object)

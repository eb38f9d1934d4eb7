"""Discrete Gaussian noise from random bytes, vectorised.

Method. To draw from N_Z(0, σ²), whose mass at x is proportional to exp(-x²/2σ²), draw |x| and a
sign. |x| falls in a block of w integers [k·w, k·w + w), w the power of two near σ/16. The block is
drawn by inversion of a table of its largest weights exp(-(k·w)²/2σ²), the place within the block
uniformly, and x is kept with probability exp(-(x² - (k·w)²)/2σ²), nine times of ten. Negative zero
is rejected, for zero would count twice. Below σ = 32 a block is one integer: plain inversion.

Exactness. The table is fixed point with 128 bits from 60-digit decimals. Comparisons use 64 random
bits and floats; where these cannot decide with certainty, more random bits are drawn and the
comparison is repeated with integers. No output depends on float rounding. The laws differ from
N_Z(0, σ²) by the table's rounding, the 128 bits, and the cut at 14σ: below 2^-110 in all.

Sources: Canonne, Kamath and Steinke 2020 (arXiv 2004.00010) for the distribution and its tails;
inversion with lazy bits and rejection from a staircase are textbook (Devroye 1986, ch. II and XV).
The time taken depends on the values drawn; whoever can time a single draw is not defended against.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from bisect import bisect_right
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from protocols.chain import RandomBytes
from protocols.errors import PrivacyError
from protocols.quantize import Integers

DISTANCE = 2.0**-110
"""Bound on the total variation between one draw and the exact law."""

Words = NDArray[np.uint64]

_TAIL = 14
_BLOCKS_PER_SIGMA = 16
# Float evaluation of the acceptance probability is right to 2^-49; closer calls go to integers.
_GUARD = 2.0**-45


@dataclass(frozen=True)
class _Table:
    """Blocks for one σ: `width` integers each, cumulative `thresholds` of 128 bits (exact)."""

    variance: Fraction
    width: int
    thresholds: tuple[int, ...]
    high: Words


def discrete_gaussian(size: int, sigma: float, random: RandomBytes) -> Integers:
    """Draw `size` independent integers from N_Z(0, sigma²).

    sigma: 0.1 to 2^40, in integer units; from 1 on it is the standard deviation to many digits.
    random: in production `os.urandom`. Raises PrivacyError for another sigma.
    """
    if not 0.1 <= sigma <= 2.0**40:
        raise PrivacyError(f"noise of σ = {sigma}", fix="choose σ between 0.1 and 2^40 grid steps")
    table = _table(sigma)
    parts: list[Integers] = []
    missing = size
    while missing > 0:
        parts.append(_accepted(table, missing + missing // 8 + 16, random)[:missing])
        missing -= parts[-1].size
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _accepted(table: _Table, tries: int, random: RandomBytes) -> Integers:
    """What remains of `tries` proposals, in order."""
    start = _blocks(table, _words(tries, random), random) * table.width
    place = _words(tries, random)
    offset = (place & np.uint64(table.width - 1)).astype(np.int64)
    negative = place >> np.uint64(63) == 1
    keep = _kept(table, start, offset, _words(tries, random), random)
    keep &= ~(negative & (start + offset == 0))
    value = start + offset
    return np.where(negative, -value, value)[keep]


def _blocks(table: _Table, draws: Words, random: RandomBytes) -> Integers:
    """Block number of each draw: how many thresholds are at most the 128-bit number."""
    found = np.searchsorted(table.high, draws).astype(np.int64)
    ties = np.flatnonzero(table.high[np.minimum(found, table.high.size - 1)] == draws)
    for i in ties:
        number = int(draws[i]) << 64 | _word(random)
        found[i] = bisect_right(table.thresholds, number)
    return found


def _kept(
    table: _Table, start: Integers, offset: Integers, draws: Words, random: RandomBytes
) -> NDArray[np.bool_]:
    """Whether each proposal is kept, with probability exp(-(x² - start²)/2σ²)."""
    # x² - start² = offset·(2·start + offset); each factor is exact as a float.
    gain = offset.astype(np.float64) * (2 * start + offset)
    chance = np.exp(-gain / float(2 * table.variance))
    lot = draws * 2.0**-64
    keep = lot < chance
    for i in np.flatnonzero(np.abs(lot - chance) < _GUARD):
        exponent = Fraction(int(offset[i]) * (2 * int(start[i]) + int(offset[i])))
        exact = _exp(-exponent / (2 * table.variance))
        keep[i] = int(draws[i]) << 64 | _word(random) < int(exact * 2**128)
    return keep


@lru_cache(maxsize=64)
def _table(sigma: float) -> _Table:
    """The table for `sigma`, taken as the exact rational that the float is."""
    width = 2 ** max(0, math.floor(math.log2(sigma / _BLOCKS_PER_SIGMA)))
    variance = Fraction(sigma) ** 2
    starts = range(0, math.ceil(_TAIL * sigma) + width, width)
    weights = [int(_exp(-Fraction(x * x) / (2 * variance)) * 2**160) for x in starts]
    cumulative = list(itertools.accumulate(w for w in weights if w))
    thresholds = tuple((c << 128) // cumulative[-1] for c in cumulative[:-1])
    high = np.array([t >> 64 for t in thresholds], dtype=np.uint64)
    return _Table(variance, width, thresholds, high)


def _exp(exponent: Fraction) -> Fraction:
    """exp of a rational of at most 0, to 60 digits."""
    with localcontext() as context:
        context.prec = 60
        value = (Decimal(exponent.numerator) / Decimal(exponent.denominator)).exp()
        return Fraction(value)


def _words(count: int, random: RandomBytes) -> Words:
    return np.frombuffer(random(8 * count), dtype="<u8").astype(np.uint64, copy=False)


def _word(random: RandomBytes) -> int:
    return int.from_bytes(random(8), "little")


def seeded_random(seed: bytes) -> RandomBytes:
    """A reproducible stream of bytes, SHAKE-256 of `seed` and a counter: for studies and tests.

    Whoever knows the seed knows the noise; nothing that protects real patients may use it.
    """
    counter = itertools.count()
    prefix = len(seed).to_bytes(8, "little") + seed

    def read(count: int) -> bytes:
        block = prefix + next(counter).to_bytes(8, "little")
        return hashlib.shake_256(block).digest(count)

    return read

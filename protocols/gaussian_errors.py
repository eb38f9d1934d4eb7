"""Discrete Gaussian errors for encryption: one 64-bit word a draw, by the alias method.

Method. The law N_Z(0, σ²), cut at |x| ≤ 14σ, is laid out in 2^c columns of equal probability,
each holding at most two integers: the column's own below a threshold, its alias from there on
(Walker 1974; Vose 1991 for the table). The c lowest bits of a word choose the column, the other
64 − c bits are compared with the threshold.

Exactness. Probabilities are multiples of 2^-128 that add up to 1 exactly, from 60-digit decimals,
and the table is made in integers. A threshold has 128 − c bits: where the word's bits equal its
first 64 − c, another 64 are drawn and decide. No output depends on float rounding. Rounding down
to units of 2^-128 and the cut move each probability, and the law in total, by less than 2^-110.

`protocols.sampler` draws noise for privacy, of any σ; this one draws errors of small σ, many per
contribution. Its time varies with the places it reads in a table of some kilobytes, and with
ties, rarer than one draw in 2^40; whoever can time a single draw is not defended against.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocols.chain import RandomBytes
from protocols.errors import ConfigError
from protocols.quantize import Integers

Words = NDArray[np.uint64]

TAIL: Final = 14
"""No error is beyond this many standard deviations."""

_LARGEST_SIGMA: Final = 1 << 10


@dataclass(frozen=True)
class _Table:
    """2^c columns: their own integers and aliases, thresholds of 128 − c bits and their heads."""

    column_bits: int
    own: Integers
    alias: Integers
    thresholds: tuple[int, ...]
    high: Words


def gaussian_errors(size: int, sigma: float, random: RandomBytes) -> Integers:
    """Draw `size` independent integers, int64, from N_Z(0, sigma²) cut at 14·sigma.

    The client runs it per contribution with `os.urandom`. sigma: 1 to 1024, else ConfigError.
    """
    if not 1 <= sigma <= _LARGEST_SIGMA:
        raise ConfigError(f"errors of σ = {sigma}", fix=f"lower weights to σ ≤ {_LARGEST_SIGMA}")
    table = _table(sigma)
    words = np.frombuffer(random(8 * size), "<u8")
    column = (words & np.uint64((1 << table.column_bits) - 1)).astype(np.intp)
    lot = words >> np.uint64(table.column_bits)
    high = table.high[column]
    own = lot < high
    for i in np.flatnonzero(lot == high):
        own[i] = _tie(table.thresholds[column[i]], random)
    return np.where(own, table.own[column], table.alias[column])


def _tie(threshold: int, random: RandomBytes) -> bool:
    """Whether a draw that agrees with the head of the threshold is below the whole of it."""
    return int.from_bytes(random(8), "little") < threshold & (1 << 64) - 1


@lru_cache(maxsize=64)
def _table(sigma: float) -> _Table:
    """The table for `sigma`, taken as the exact rational that the float is."""
    units = _probabilities(sigma)
    bits = (len(units) - 1).bit_length()
    thresholds, alias = _columns(units + [0] * ((1 << bits) - len(units)))
    reach = len(units) // 2
    return _Table(
        column_bits=bits,
        own=np.arange(1 << bits) - reach,
        alias=np.array(alias) - reach,
        thresholds=tuple(thresholds),
        high=np.array([threshold >> 64 for threshold in thresholds], np.uint64),
    )


def _probabilities(sigma: float) -> list[int]:
    """Probabilities of −⌊14σ⌋ .. ⌊14σ⌋ in units of 2^-128; they add up to 2^128."""
    variance = Fraction(sigma) ** 2
    with localcontext() as context:
        context.prec = 60
        double = 2 * Decimal(variance.numerator) / Decimal(variance.denominator)
        half = [(-Decimal(x * x) / double).exp() for x in range(math.floor(TAIL * sigma) + 1)]
        scale = 2**128 / (2 * sum(half) - half[0])
        units = [int(weight * scale) for weight in half]
    # What rounding down left over goes to zero: at most as many units as there are integers.
    units[0] = 2**128 - 2 * sum(units[1:])
    return units[:0:-1] + units


def _columns(units: Sequence[int]) -> tuple[list[int], list[int]]:
    """Thresholds and aliases of 2^c columns for probabilities that add up to 2^128."""
    full = 2**128 // len(units)
    left, alias = list(units), list(range(len(units)))
    poor = [i for i, unit in enumerate(units) if unit < full]
    rich = [i for i, unit in enumerate(units) if unit >= full]
    while poor:
        column, donor = poor.pop(), rich[-1]
        alias[column] = donor
        left[donor] -= full - left[column]
        if left[donor] < full:
            poor.append(rich.pop())
    return left, alias

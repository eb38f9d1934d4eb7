"""One unit's gradient to integers of exactly bounded norm, in chunks, without copies of it all."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from protocols.errors import PrivacyError
from protocols.quantize import Integers

_CHUNK = 2**16
_HALF = 20


def clipped(gradient: ArrayLike, size: int, clip_norm: float, clip_int: int) -> Integers:
    """`gradient` [size] on the grid of clip_norm / clip_int, with L2 norm at most clip_int.

    clip_norm: in the gradient's units, finite, above 0. clip_int: 1 to 2^37. A gradient with NaN
    or infinity becomes zero. The bound holds exactly: it is checked in integers, and floats only
    propose. A step of `protocols.dp_sgd` calls it for each unit of its sample. PrivacyError for
    another shape, or no floats.
    """
    values = np.asarray(gradient)
    if values.shape != (size,) or values.dtype.kind != "f":
        raise PrivacyError(
            f"a gradient of shape {values.shape} and type {values.dtype}",
            why=f"the plan has {size} parameters",
            fix="give each unit's gradient as one flat array of floats",
        )
    # A sum of magnitudes is finite only if all are, but may overflow; the peak does not.
    peak = float(np.max(np.abs(values), initial=0))
    integers = np.zeros(size, np.int64)
    if not math.isfinite(peak) or peak == 0:
        return integers
    # Beyond the clip only the direction counts, and scaled so nothing can overflow.
    unit = max(peak, clip_norm)
    for start in range(0, size, _CHUNK):
        part = values[start : start + _CHUNK].astype(np.float64)
        integers[start : start + _CHUNK] = np.rint(part / unit * clip_int)
    while (square := _square(integers)) > clip_int * clip_int:
        _shrink(integers, clip_int / (1 + math.isqrt(square - 1)))
    return integers


def _square(integers: Integers) -> int:
    """Sum of squares, exactly: each value is split in two, so that 64 bits hold every sum."""
    total = 0
    for start in range(0, integers.size, _CHUNK):
        part = integers[start : start + _CHUNK]
        high, low = part >> _HALF, part & ((1 << _HALF) - 1)
        total += _dot(high, high) << 2 * _HALF
        total += (_dot(high, low) << _HALF + 1) + _dot(low, low)
    return total


def _dot(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    return int(np.dot(one, other))


def _shrink(integers: Integers, factor: float) -> None:
    """Multiply by `factor` below 1 and round towards zero, in place."""
    for start in range(0, integers.size, _CHUNK):
        part = integers[start : start + _CHUNK]
        part[:] = np.trunc(part * factor)

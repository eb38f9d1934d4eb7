"""One unit's gradient to integers of exactly bounded norm, in chunks, without copies of it all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from protocols.errors import PrivacyError
from protocols.quantize import Floats, Integers

# Values at once: sums of so many products of 20-bit integers are exact in a float.
_CHUNK = 2**13
_HALF = 2.0**20


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
    integers = np.zeros(size, np.int64)
    # A sum of squares may overflow where all values are finite; the peak does not.
    peak = float(max(np.max(values, initial=0), -np.min(values, initial=0)))
    if not math.isfinite(peak) or peak == 0:
        return integers
    # Beyond the clip only the direction counts, and scaled so nothing can overflow.
    unit = max(peak, clip_norm)
    norm = math.sqrt(math.fsum(_square(part / unit) for part in _chunks(values)))
    # Rounding moves a long vector's norm by a third of a step, on average.
    aim = clip_int - min(1.0, size / 2**20)
    scale = clip_int if norm <= clip_norm / unit else aim / norm
    square = _write((np.rint(part / unit * scale) for part in _chunks(values)), integers)
    while square > clip_int**2:
        factor = clip_int / (1 + math.isqrt(square - 1))
        square = _write((np.trunc(part * factor) for part in _chunks(integers)), integers)
    return integers


def _chunks(values: NDArray[Any]) -> Iterator[Floats]:
    for start in range(0, values.size, _CHUNK):
        yield values[start : start + _CHUNK].astype(np.float64)


def _square(part: Floats) -> float:
    """Sum of squares; exact for whole numbers if it is below 2^53, for so is every sum within."""
    return float(np.dot(part, part))


def _write(parts: Iterable[Floats], integers: Integers) -> int:
    """Fill `integers` with chunks of whole numbers; returns the exact sum of their squares."""
    square = 0
    for i, part in enumerate(parts):
        integers[i * _CHUNK : (i + 1) * _CHUNK] = part
        whole = _square(part)
        square += int(whole) if whole < 2**53 else _large_square(part)
    return square


def _large_square(part: Floats) -> int:
    """Each number is split in two, so that a float holds every sum over the chunk."""
    high = np.floor(part / _HALF)
    low = part - high * _HALF
    cross = int(np.dot(high, low))
    return (int(_square(high)) << 40) + (cross << 21) + int(_square(low))

"""Fixed point and layout: named matrices of floats to one vector of integers, and back.

A release is one flat vector. Its order is class-major: each segment is flattened column by column,
so that the values of one class stand together and a weight per client and class can be applied to
whole blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols.errors import PrivacyError, ProtocolError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Beyond this a float64 no longer tells neighbouring integers apart.
_LARGEST = 2.0**53


@dataclass(frozen=True)
class Segment:
    """A named matrix of `rows` (proxy images) × `columns` (classes, or one denominator)."""

    name: str
    rows: int
    columns: int

    def __post_init__(self) -> None:
        if not self.name or self.rows < 1 or self.columns < 1:
            raise ProtocolError(
                f"segment of {self.rows} × {self.columns} values",
                where=self.name or "segment without a name",
                fix="give a name, at least one row and at least one column",
            )

    @property
    def size(self) -> int:
        """Number of values."""
        return self.rows * self.columns


@dataclass(frozen=True)
class Layout:
    """The order in which named segments lie in one vector; part of the signed plan.

    Every client, the server and the key holders must use the same layout.
    """

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        names = [segment.name for segment in self.segments]
        if not names or len(set(names)) != len(names):
            raise ProtocolError(
                f"layout with segments {names}", fix="name at least one segment, each name once"
            )

    @property
    def size(self) -> int:
        """Length of the vector."""
        return sum(segment.size for segment in self.segments)

    def pack(self, matrices: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Lay one matrix (rows × columns) per segment, of one number type, into one vector [size].

        Raises ProtocolError when a segment is missing, unknown or of another shape.
        """
        expected = {segment.name: (segment.rows, segment.columns) for segment in self.segments}
        found = {name: matrix.shape for name, matrix in matrices.items()}
        if expected != found:
            raise ProtocolError(
                f"matrices {found} do not fit the layout {expected}",
                fix="give one matrix (rows, columns) for each segment, and no other",
            )
        return np.concatenate([matrices[s.name].ravel(order="F") for s in self.segments])

    def unpack(self, vector: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Undo `pack`: a vector [size] to one matrix (rows × columns) per segment."""
        if vector.shape != (self.size,):
            raise ProtocolError(
                f"vector of shape {vector.shape} for a layout of {self.size} values",
                fix="unpack only what was packed with the same layout",
            )
        ends = np.cumsum([segment.size for segment in self.segments])[:-1]
        parts = np.split(vector, ends)
        return {
            s.name: part.reshape((s.rows, s.columns), order="F")
            for s, part in zip(self.segments, parts, strict=True)
        }


@dataclass(frozen=True)
class Grid:
    """Fixed point: the integer n stands for the real number n · `step`.

    Clipping happens after this step and in integers, so the rounding here costs no privacy
    (Canonne, Kamath and Steinke 2020, §1; Mironov 2012 for why floats would).
    """

    step: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.step) and self.step > 0):
            raise PrivacyError(f"grid step {self.step}", fix="use a finite step above 0")

    def quantise(self, values: Floats) -> Integers:
        """Nearest grid points of `values` (any shape), ties to even.

        Raises PrivacyError on NaN, infinity, or a value of 2^53 steps and more: such logits come
        from a model that diverged, and nothing may be released from it.
        """
        scaled = np.asarray(values, dtype=np.float64) / self.step
        if not np.isfinite(scaled).all():
            raise PrivacyError(
                "logits contain NaN or infinity",
                why="a value that is not finite has no place on the grid",
                fix="lower the learning rate or look for damaged images at this site",
            )
        if scaled.size and np.abs(scaled).max() >= _LARGEST:
            raise PrivacyError(
                "logits are too large for the grid",
                why=f"a value reaches 2^53 steps of {self.step:g}",
                fix="lower the learning rate, or raise the clip norm",
            )
        return np.rint(scaled).astype(np.int64)

    def dequantise(self, values: Integers) -> Floats:
        """The real numbers (any shape) that `values` stand for."""
        return np.asarray(values, dtype=np.float64) * self.step


def clip_rows(values: Integers, norm: int) -> Integers:
    """Scale each row of `values` [M, size] down to L2 norm at most `norm`, exactly.

    A row beyond the norm is multiplied by norm/⌈‖row‖⌉ and rounded towards zero, in integers
    throughout, so the squared norm of the result is at most norm² without rounding error.
    """
    peak = max(int(np.abs(values).max(initial=0)), 1)
    # Where 64 bits could overflow, the same arithmetic runs on Python integers.
    wide = peak * max(peak * values.shape[1], norm) >= 2**63
    rows = values.astype(object) if wide else values
    squares = [int(total) for total in (rows * rows).sum(axis=1)]
    ceilings = [1 + math.isqrt(s - 1) if s > norm * norm else norm for s in squares]
    divisors = np.array(ceilings, dtype=rows.dtype)[:, None]
    shrunk = np.abs(rows) * norm // divisors
    clipped: Integers = (np.sign(rows) * shrunk).astype(np.int64)
    return clipped

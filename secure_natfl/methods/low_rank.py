"""Updates as products of thin matrices: the published form, and one whose sums add up.

A kernel [O, I, k, k] is one matrix O × (I·k·k), never a batch of k × k matrices, of which nothing
could be saved. Small tensors and vectors travel as they are.

The published form (FedKD, Wu et al. 2022, Nature Communications 13:2032; FedMIC, arXiv
2407.02261) cuts each client's singular values where they hold a share of the energy that grows
from round to round. Such factors of different clients cannot be added. In the summable form (after
PowerSGD, Vogels et al. 2019, arXiv 1905.13727) all clients answer the same two linear questions:
first M·Q for a public basis Q, then Mᵀ·P̂ for the orthonormal basis P̂ of the first sum. Both sums
depend on Σα·M alone. What a client could not say it adds to its next update (error feedback).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols.errors import ConfigError
from protocols.quantize import Layout, Segment

Matrix = NDArray[np.float64]
Matrices = Mapping[str, Matrix]
RankRule = Callable[[Matrix, int, int], int]
"""(singular values, rows, columns) → rank ≥ 1."""


@dataclass(frozen=True, eq=False)
class Factors:
    """M̂ = left · diag(values) · right: left [m, r], values [r], right [r, n]."""

    left: Matrix
    values: Matrix
    right: Matrix

    @property
    def matrix(self) -> Matrix:
        """The product [m, n]."""
        return (self.left * self.values) @ self.right

    @property
    def numbers(self) -> int:
        """Numbers to send: r·(m + n + 1)."""
        return self.left.size + self.values.size + self.right.size


def flattened(tensor: NDArray[Any]) -> Matrix:
    """A weight as the matrix that is factored: [O, …] → [O, …·…], and a vector [n] → [n, 1]."""
    return np.asarray(tensor, dtype=np.float64).reshape(tensor.shape[0] if tensor.ndim else 1, -1)


def energy_at(round_number: int, rounds: int, start: float, end: float) -> float:
    """E(t) = E₀ + (t + 1)/R · (E₁ − E₀): the share of Σs² that is kept in round t of R."""
    return start + (round_number + 1) / rounds * (end - start)


def rank_by_energy(share: float) -> RankRule:
    """The smallest rank that keeps `share` (0 to 1) of the squared singular values, at least 1."""
    if not 0 < share <= 1:
        raise ConfigError(f"a share of {share} of the energy", fix="take one above 0, at most 1")

    def rank(values: Matrix, rows: int, columns: int) -> int:
        del rows, columns
        kept = np.cumsum(values**2)
        return min(int(np.searchsorted(kept, share * kept[-1])) + 1, len(values))

    return rank


def rank_by_aic(values: Matrix, rows: int, columns: int) -> int:
    """The first rank from which on 2·r·(m + n − r) + m·n·ln(RSS_r / (m·n)) no longer falls.

    Akaike's criterion for a matrix of rank r under Gaussian errors. Its first minimum is meant:
    towards full rank RSS goes to 0 and the criterion to −∞, whatever the matrix holds. A direction
    of noise takes (√m + √n)² and costs 2·(m + n): of a nearly square matrix much noise is kept.
    """
    whole = float((values**2).sum())
    rest = np.append(np.cumsum(values[::-1] ** 2)[::-1][1:], 0.0)
    rest[rest <= np.finfo(np.float64).eps * whole] = 0.0
    ranks = np.arange(1, len(values) + 1)
    size = rows * columns
    with np.errstate(divide="ignore"):
        fits = 2.0 * ranks * (rows + columns - ranks) + size * np.log(rest / size)
    better = fits[1:] < fits[:-1]
    return 1 + int(np.argmin(np.append(better, False)))


def decomposed(matrix: Matrix, rule: RankRule) -> Factors | None:
    """The factors of `matrix` [m, n] at the rank that `rule` chooses; None where they save nothing.

    Factors save where r·(m + n + 1) < m·n; else the matrix itself is sent.
    """
    rows, columns = matrix.shape
    if rows + columns + 1 >= rows * columns:
        return None
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    rank = rule(values, rows, columns)
    factors = Factors(left[:, :rank], values[:rank], right[:rank])
    return factors if factors.numbers < matrix.size else None


def reduced(matrices: Matrices, rule: RankRule) -> tuple[dict[str, Matrix], int]:
    """Every matrix as its receiver rebuilds it, and the numbers that travel for all of them."""
    found, numbers = {}, 0
    for name, matrix in matrices.items():
        factors = decomposed(matrix, rule)
        found[name] = matrix if factors is None else factors.matrix
        numbers += matrix.size if factors is None else factors.numbers
    return found, numbers


@dataclass(frozen=True)
class Shape:
    """One weight of an update as a matrix, and the rank at which it is sent; 0: as it is."""

    name: str
    rows: int
    columns: int
    rank: int

    @property
    def numbers(self) -> int:
        """Numbers that a site sends for it in a round, over both phases."""
        if not self.rank:
            return self.rows * self.columns
        return self.rank * (self.rows + self.columns)


@dataclass(frozen=True)
class SharedBasis:
    """The summable form: the same ranks at all sites and in every round, declared in advance.

    A site sends `left_sums` first and, once the sum of those is opened and orthonormalised by the
    server, `right_sums`; each is linear in its update.
    """

    shapes: tuple[Shape, ...]

    @classmethod
    def of(cls, shapes: Mapping[str, Sequence[int]], rank: int) -> SharedBasis:
        """Rank `rank` or less for each weight (name → shape) where that saves, the others raw."""
        if rank < 1:
            raise ConfigError(f"rank {rank}", fix="send at least one direction of each matrix")
        return cls(tuple(_shape(name, shape, rank) for name, shape in shapes.items()))

    @property
    def factored(self) -> tuple[Shape, ...]:
        """The weights that are sent as two thin matrices."""
        return tuple(shape for shape in self.shapes if shape.rank)

    @property
    def numbers(self) -> int:
        """Numbers that a site sends in a round, over both phases."""
        return sum(shape.numbers for shape in self.shapes)

    @property
    def left_layout(self) -> Layout:
        """The first phase: M·Q [m, r] of every factored weight, and the others whole."""
        return Layout(
            tuple(Segment(s.name, s.rows, s.rank if s.rank else s.columns) for s in self.shapes)
        )

    @property
    def right_layout(self) -> Layout | None:
        """The second phase: Mᵀ·P̂ [n, r] of every factored weight; None where there is none."""
        segments = tuple(Segment(s.name, s.columns, s.rank) for s in self.factored)
        return Layout(segments) if segments else None

    def drawn(self, generator: np.random.Generator) -> dict[str, Matrix]:
        """Q [n, r] of every factored weight with orthonormal columns; public, from the seed."""
        return {
            s.name: orthonormal(generator.standard_normal((s.columns, s.rank)))
            for s in self.factored
        }

    def left_sums(self, update: Matrices, right: Matrices) -> dict[str, Matrix]:
        """What a site says first: M·Q, or M itself where it is not factored."""
        return {
            s.name: update[s.name] @ right[s.name] if s.rank else update[s.name]
            for s in self.shapes
        }

    def right_sums(self, update: Matrices, left: Matrices) -> dict[str, Matrix]:
        """What a site says then: Mᵀ·P̂."""
        return {s.name: update[s.name].T @ left[s.name] for s in self.factored}

    def unsaid(self, update: Matrices, left: Matrices) -> dict[str, Matrix]:
        """What P̂ could not carry of a site's own update, (1 − P̂P̂ᵀ)·M: its error feedback."""
        return {
            s.name: update[s.name] - left[s.name] @ (left[s.name].T @ update[s.name])
            for s in self.factored
        }

    @staticmethod
    def rebuilt(left: Matrices, right: Matrices) -> dict[str, Matrix]:
        """M̂ = P̂ · (second sum)ᵀ of every factored weight."""
        return {name: basis @ right[name].T for name, basis in left.items()}


def orthonormal(columns: Matrix) -> Matrix:
    """Orthonormal columns [m, r] that span what `columns` [m, r] span, r ≤ m, by QR.

    Where these do not span r dimensions, columns of zeros among them, others fill up.
    """
    basis: Matrix = np.linalg.qr(columns)[0]
    return basis


def _shape(name: str, shape: Sequence[int], rank: int) -> Shape:
    rows = shape[0] if shape else 1
    columns = math.prod(shape[1:])
    usable = min(rank, rows, columns)
    saves = usable * (rows + columns) < rows * columns
    return Shape(name, rows, columns, usable if saves else 0)

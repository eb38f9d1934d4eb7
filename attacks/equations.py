"""What follows from linear equations over a prime field whose right sides are vectors."""

from collections.abc import Hashable, Mapping
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Equations:
    """Linear equations over the integers modulo a prime, each with a vector as its right side."""

    def __init__(self, prime: int) -> None:
        self._prime = prime
        self._type = np.int64 if prime < 1 << 31 else object
        self._terms: list[Mapping[Hashable, int]] = []
        self._rights: list[NDArray[Any]] = []

    def add(self, terms: Mapping[Any, int], right: NDArray[Any]) -> None:
        """Σ coefficient·unknown = right, modulo the prime."""
        self._terms.append(terms)
        self._rights.append(right)

    def find(self, unknown: Hashable) -> NDArray[Any] | None:
        """The value of an unknown if the equations determine it, else None."""
        weights = self._solved.get(unknown)
        if weights is None:
            return None
        total: NDArray[Any] = np.zeros(len(self._rights[0]), self._type)
        for weight, right in zip(weights, self._rights, strict=True):
            if weight:
                total = (total + int(weight) * right.astype(self._type)) % self._prime
        return total

    @cached_property
    def _solved(self) -> dict[Hashable, NDArray[Any]]:
        """Unknown → the combination of equations that gives it (Gauss and Jordan)."""
        unknowns = list(dict.fromkeys(chain.from_iterable(self._terms)))
        width, prime = len(unknowns), self._prime
        table = np.array(
            [[terms.get(name, 0) % prime for name in unknowns] for terms in self._terms],
            self._type,
        ).reshape(len(self._terms), width)
        table = np.hstack([table, np.eye(len(table), dtype=np.int64).astype(self._type)])
        pivots: list[int] = []
        for column in range(width):
            row = next((at for at in range(len(pivots), len(table)) if table[at, column]), None)
            if row is None:
                continue
            table[[len(pivots), row]] = table[[row, len(pivots)]]
            pivot = table[len(pivots)] * pow(int(table[len(pivots), column]), -1, prime) % prime
            table = (table - np.outer(table[:, column], pivot) % prime) % prime
            table[len(pivots)] = pivot
            pivots.append(column)
        return {
            unknowns[column]: table[at, width:]
            for at, column in enumerate(pivots)
            if np.count_nonzero(table[at, :width]) == 1
        }

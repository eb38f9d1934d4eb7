"""A12: chosen answers of a malicious client that read another's weights from an aggregate.

Where clients' weights depend on their data and only the weighted mean Z = (N + n)/(D + d) is
published, N and D of the others are hidden behind each other. Probes (n, d) undo that: each says
N − Z·D = Z·d − n, two equations for two unknowns per row, as long as the others repeat themselves.
Where a protocol publishes both sums there is nothing to undo, and where it refuses to ask the same
images twice a probe meets other answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from attacks.answers.laboratory import Floats

_SIZES: Final = (0.0, 1.0, 4.0, 16.0)
"""Weights d of the probes, in units of one honest weight; n is d times an answer of one sign."""


def probed_weights(
    ask: Callable[[Floats, Floats], Floats], passive: Floats, columns: int, noise: float
) -> Floats:
    """The others' denominator [rows], by least squares over all probes and columns.

    ask: numerators [rows, columns] and denominators [rows, 1] → the published quotient. passive
    [rows]: what is known without probing, and the guess where the two equations leave more than
    half of what was seen unexplained. noise: standard deviation on the published numbers.
    """
    rows = len(passive)
    signs = np.resize([1.0, -1.0], columns)
    lefts, rights = [], []
    for size in _SIZES:
        denominators = np.full((rows, 1), size)
        numerators = size * 4 * np.tile(signs, (rows, 1))
        quotient = ask(numerators, denominators)
        lefts.append(quotient)
        rights.append(quotient * denominators - numerators)
    # Per row and column the numerator is free: both sides less their means over probes.
    left, right = np.stack(lefts), np.stack(rights)
    left, right = left - left.mean(0), right - right.mean(0)
    # Noise on the quotient biases the square by its own variance.
    square = (left**2).sum((0, 2)) - noise**2 * (len(_SIZES) - 1) * columns
    usable = square > 1e-12
    found = np.where(usable, -(left * right).sum((0, 2)) / np.where(usable, square, 1.0), 0.0)
    unexplained = (right + found[:, None] * left) ** 2
    if not usable.all() or unexplained.sum() > (right**2).sum() / 2:
        return passive.copy()
    return found


def correlation(guess: Floats, truth: Floats) -> float:
    """Pearson's correlation of [rows], −1 to 1 in millionths; 0 where either does not vary."""
    guess, truth = guess - guess.mean(), truth - truth.mean()
    sizes = float(np.linalg.norm(guess) * np.linalg.norm(truth))
    return round(float(guess @ truth) / sizes, 6) if sizes > 1e-12 else 0.0

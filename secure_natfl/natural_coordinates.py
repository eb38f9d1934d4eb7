"""Coordinates of features in which natural images are white: equal weights are equal answers.

Features are ill-conditioned: a few directions carry most of the natural images' variance, and
descent under noise spends its steps, and so its noise, on crossing the flat ones. Whitened by
public images alone, the coordinates cost no privacy (docs/results/privacy-utility.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

_FLOOR = 0.1
_CONSTANT = 0.1  # as an input; so small that the bias takes little of a clipped gradient


@dataclass(frozen=True, eq=False)
class NaturalCoordinates:
    """Features [n, d] to inputs [n, d + 1] and back for the weights of a linear head; float64.

    mean, scale [d]: of the natural images' features; the d together have a mean square of 1.
    turn [d + 1, d + 1]: symmetric, whitens these with a constant beside them.
    """

    mean: Tensor
    scale: Tensor
    turn: Tensor

    @classmethod
    def of(cls, features: Tensor) -> NaturalCoordinates:
        """Of natural images' features [P, d]: their inputs have a root mean square norm of 1.

        A direction with less than a tenth of the mean variance is not enlarged further.
        """
        features = features.double()
        mean = features.mean(0)
        scale = features.std(0).clamp_min(1e-6) * features.shape[1] ** 0.5
        plain = cls(mean, scale, torch.eye(features.shape[1] + 1, dtype=torch.float64))
        inputs = plain.inputs(features)
        values, vectors = torch.linalg.eigh(inputs.T @ inputs / len(inputs))
        turn = vectors / (values.clamp_min(0) + _FLOOR * values.mean()).sqrt() @ vectors.T
        return cls(mean, scale, turn / (inputs @ turn).square().sum(1).mean().sqrt())

    def inputs(self, features: Tensor) -> Tensor:
        """Any features [n, d] in these coordinates [n, d + 1]."""
        scaled = (features.double() - self.mean) / self.scale
        constant = scaled.new_full((len(scaled), 1), _CONSTANT)
        return torch.cat([scaled, constant], 1) @ self.turn

    def inward(self, weight: Tensor, bias: Tensor) -> Tensor:
        """A head on features, weight [C, d] and bias [C], as weights [C, d + 1] on inputs."""
        weight, bias = weight.double(), bias.double()
        scaled = torch.cat(
            [weight * self.scale, (bias + weight @ self.mean)[:, None] / _CONSTANT], 1
        )
        inward: Tensor = torch.linalg.solve(self.turn, scaled.T)
        return inward.T

    def outward(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Undo `inward`: weight [C, d] and bias [C] of a head on features."""
        scaled = weights.double() @ self.turn
        weight = scaled[:, :-1] / self.scale
        return weight, scaled[:, -1] * _CONSTANT - weight @ self.mean


@lru_cache(maxsize=4)
def natural_coordinates(features: Tensor) -> NaturalCoordinates:
    """`NaturalCoordinates.of`, worked out once for a tensor that does not change."""
    return NaturalCoordinates.of(features)

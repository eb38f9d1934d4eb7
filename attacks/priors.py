"""What an attacker expects of an image before it looks: the mean and covariance of its own images.

Guesses that noise has reached are drawn back to it, direction by direction: where the attacker's
images hardly vary, a deviation is noise; where they vary much, it is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from protocols.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Prior:
    """A Gaussian prior. mean: [1, *shape]; directions: orthonormal rows [k, pixels]; variances:
    [k] along them, 0 along all others; pixel: the mean variance of a pixel."""

    mean: Tensor
    directions: Tensor
    variances: Tensor
    pixel: float

    @classmethod
    def of(cls, images: Tensor) -> Prior:
        """From the attacker's own images [P, *shape] in [0, 1], at least two."""
        if len(images) < 2:
            raise ConfigError(f"{len(images)} images", where="prior", fix="give at least two")
        mean = images.mean(0, keepdim=True)
        away = (images - mean).flatten(1)
        _, values, directions = torch.linalg.svd(away, full_matrices=False)
        variances = values.square() / (len(images) - 1)
        return cls(mean, directions, variances, float(away.square().mean()))

    def guess(self, count: int) -> Tensor:
        """The mean image, `count` times [count, *shape]: all that can be said without looking."""
        return self.mean.expand(count, *self.mean.shape[1:])

    def posterior(self, guess: Tensor, noise: float) -> Tensor:
        """The mean of the posterior of images [n, *shape], each seen with Gaussian noise (Wiener).

        noise: its variance per pixel, in units of the prior's mean variance of a pixel; at 0 the
        guess itself, for a large one the mean image.
        """
        if noise == 0:
            return guess
        weights = self.variances / (self.variances + noise * self.pixel + 1e-12)
        along = (guess - self.mean).flatten(1) @ self.directions.T
        found = (along * weights) @ self.directions
        return (self.mean + found.view_as(guess)).clamp(0, 1)

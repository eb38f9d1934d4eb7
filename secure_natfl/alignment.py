"""Alignment of private records to public statistics, one record at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_FOURIER = 128


class Alignment:
    """A(x) = −2⟨ψ(φ(x)), μ⟩ per record: pulls embeddings to the public natural statistics.

    ψ: random Fourier features (Rahimi & Recht 2007) of a Gaussian kernel; μ: their mean over
    natural images when training starts. It is the cross term of a squared maximum mean
    discrepancy; the term in which two private records meet is left out, so that the loss is a
    sum over records and its sensitivity that of one record.
    """

    def __init__(self, natural_embeddings: Tensor, generator: torch.Generator) -> None:
        """`natural_embeddings` [n, h] of public images."""
        width = natural_embeddings.shape[-1]
        scale = natural_embeddings.std().clamp_min(1e-3) * math.sqrt(width)
        self._directions = torch.randn(width, _FOURIER, generator=generator) / scale
        self._phases = torch.rand(_FOURIER, generator=generator) * 2 * math.pi
        self._mean = self._waves(natural_embeddings).mean(0)

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Embeddings [..., h] → one loss per record [...]."""
        return -2 * (self._waves(embeddings) @ self._mean)

    def _waves(self, embeddings: Tensor) -> Tensor:
        waves = torch.cos(embeddings @ self._directions + self._phases)
        return waves * math.sqrt(2 / _FOURIER)

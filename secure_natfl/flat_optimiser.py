"""Gradient descent on one flat vector of weights, in float64, for noisy gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

OptimiserName = Literal["sgd", "adam"]

_BETAS, _TINY = (0.9, 0.999), 1e-8


class FlatOptimiser:
    """SGD with momentum, or Adam (Kingma and Ba 2015), on one flat gradient in float64."""

    def __init__(self, name: OptimiserName, rate: float, momentum: float, size: int) -> None:
        self._name, self._rate, self._momentum, self._step = name, rate, momentum, 0
        self._first = torch.zeros(size, dtype=torch.float64)
        self._second = torch.zeros(size if name == "adam" else 0, dtype=torch.float64)

    def move(self, gradient: Tensor) -> Tensor:
        """What to subtract from the weights."""
        self._step += 1
        if self._name == "sgd":
            self._first.mul_(self._momentum).add_(gradient)
            return self._rate * self._first
        first, second = _BETAS
        self._first.mul_(first).add_(gradient, alpha=1 - first)
        self._second.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        mean = self._first / (1 - first**self._step)
        spread = (self._second / (1 - second**self._step)).sqrt()
        return self._rate * mean / (spread + _TINY)


def weights_of(parameters: Sequence[nn.Parameter]) -> Tensor:
    """All values as one vector in float64."""
    return torch.cat([p.detach().reshape(-1) for p in parameters]).cpu().double()


def place(weights: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    """Undo `weights_of`, in place, rounded to the parameters' type."""
    parts = torch.split(weights, [p.numel() for p in parameters])
    with torch.no_grad():
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.copy_(part.view(parameter.shape))

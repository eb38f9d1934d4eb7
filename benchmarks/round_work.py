"""The work of a round that all frameworks of `benchmarks.round` do: one model, data, epochs."""

from __future__ import annotations

import os
from typing import Final

import torch
from torch import Tensor, nn

SITES: Final = 4
ROUNDS: Final = int(os.environ.get("ROUND_BENCH_ROUNDS", "11"))
"""The first is left out of all figures: it starts processes and fills caches."""

IMAGES, SIDE, CLASSES, BATCH = 256, 32, 14, 32


class Network(nn.Sequential):
    """A small convolutional network: 32×32 grey images to logits, the same in every call."""

    def __init__(self, classes: int = CLASSES) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * (SIDE // 4) ** 2, 64),
            nn.ReLU(),
            nn.Linear(64, classes),
        )


def backbone() -> nn.Module:
    """The same without its last layer, as a site's architecture: [B, 1, 32, 32] → [B, 64]."""
    return nn.Sequential(*list(Network())[:-1])


def data(site: int) -> tuple[Tensor, Tensor]:
    """A site's images [256, 1, 32, 32] and labels [256], drawn from its number."""
    draw = torch.Generator().manual_seed(site)
    images = torch.randn(IMAGES, 1, SIDE, SIDE, generator=draw)
    return images, torch.randint(0, CLASSES, (IMAGES,), generator=draw)


def train(model: nn.Module, site: int) -> None:
    """One epoch of SGD on a site's data."""
    torch.set_num_threads(1)
    images, labels = data(site)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    for start in range(0, IMAGES, BATCH):
        optimiser.zero_grad()
        batch = slice(start, start + BATCH)
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimiser.step()

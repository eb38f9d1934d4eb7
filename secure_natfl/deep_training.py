"""More than a head under differential privacy: the last block of a public network, or all of it.

The network keeps its public normalisation statistics and its start; the head is trained in natural
coordinates, as `train_head` does. A thawed weight counts in units of a share of its own tensor's
size (as layer-wise rates do, You et al. 2017): noise then moves every layer by about the same
share of itself, and the head keeps most of a gradient's clip. Everything here but the units'
gradients is public.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from protocols.chain import RandomBytes
from protocols.dp_sgd import Descent
from protocols.errors import ModelError
from secure_natfl.checked_gradients import UnitGradients
from secure_natfl.dp_training import Cohort, Recipe, calm, probe, thaw, train
from secure_natfl.models import Network, build_backbone
from secure_natfl.natural_coordinates import NaturalCoordinates
from secure_natfl.surgery import frozen, trainable
from secure_natfl.unit_gradients import RecordLoss

Layers = Literal["head", "last", "network"]

_BLOCKS: Final[Mapping[Layers, int | None]] = {"head": 0, "last": 1, "network": None}
_SHARE = 0.1
_SMALLEST = 0.02  # of a tensor that starts at zero, as shifts do


def train_layers(
    network: Network,
    layers: Layers,
    naturals: Tensor,
    open_features: Tensor,
    cohort: Cohort,
    begin: Callable[[int], Descent],
    recipe: Recipe,
    *,
    multi_label: bool,
    random: RandomBytes = os.urandom,
) -> None:
    """The X-ray head of `network` and the `layers` below it, trained from what they are, in place.

    naturals: natural images [P, 1, H, W], and open_features [P, d] under the network's backbone.
    `begin` and the recipe's rate are as of `train_head`. Called once per round at a site.
    """
    if network.groups != 1:
        raise ModelError(f"has {network.groups} X-ray heads", fix="train one head under DP")
    space = NaturalCoordinates.of(open_features)
    network.backbone = frozen(network.backbone)
    thaw(network, _BLOCKS[layers])
    lifted = _Lifted(network, space)
    gradients = UnitGradients(lifted, RecordLoss(multi_label), probe(naturals, network.classes))
    scale = _scale(lifted)
    descent = begin(gradients.size)
    paced = replace(recipe, rate=calm(recipe.rate, descent.plan))
    train(gradients, cohort, descent, paced, scale=scale, random=random)
    with torch.no_grad():
        weight, bias = space.outward(lifted.head.weight)
        network.xray.weight.copy_(weight)
        network.xray.bias.copy_(bias)
    network.eval()


@lru_cache
def trained_parameters(architecture: str, size: int, classes: int, layers: Layers) -> int:
    """How many parameters a site trains: the size of its gradients, known before anything runs.

    size: side of the images. Who plans the noise asks for it.
    """
    backbone, features = build_backbone(architecture, size)
    head = (features + 1) * classes
    if layers == "head":
        return head
    network = Network(frozen(backbone), features, classes, natural=1)
    thaw(network, _BLOCKS[layers])
    network.xray.requires_grad_(False)
    return head + sum(p.numel() for p in network.parameters() if p.requires_grad)


def trained_names(network: Network, layers: Layers) -> tuple[str, ...]:
    """The parameters of `network` that train_layers, or train_head for "head", moves."""
    copied = copy.deepcopy(network)
    copied.backbone = frozen(copied.backbone)
    thaw(copied, _BLOCKS[layers])
    return tuple(name for name, p in copied.named_parameters() if p.requires_grad)


class _Lifted(nn.Module):
    """Images → features → natural coordinates → logits [n, C]; shares the backbone of a network."""

    def __init__(self, network: Network, space: NaturalCoordinates) -> None:
        super().__init__()
        width = network.features
        self.backbone = network.backbone
        self.coordinates: nn.Linear = skip_init(nn.Linear, width, width + 1)  # type: ignore[no-untyped-call]
        self.head: nn.Linear = skip_init(  # type: ignore[no-untyped-call]
            nn.Linear, width + 1, network.classes, bias=False
        )
        with torch.no_grad():
            origin = space.inputs(torch.zeros(1, width))
            self.coordinates.weight.copy_((space.inputs(torch.eye(width)) - origin).T)
            self.coordinates.bias.copy_(origin[0])
            self.head.weight.copy_(space.inward(network.xray.weight, network.xray.bias))
        self.coordinates.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Images [n, 1, H, W] → logits [n, C]."""
        logits: Tensor = self.head(self.coordinates(self.backbone(images)))
        return logits


def _scale(lifted: _Lifted) -> Tensor:
    """The unit of every weight [size]: 1 in the head, a share of the tensor's size below."""

    def unit(name: str, parameter: Tensor) -> float:
        if name.startswith("head."):
            return 1.0
        return _SHARE * max(float(parameter.detach().square().mean().sqrt()), _SMALLEST)

    return torch.cat([p.new_full((p.numel(),), unit(n, p)) for n, p in trainable(lifted).items()])

"""The networks under attack that a laboratory may use: small ones, and two that a server crafted.

All take inputs [B, *shape] and answer with logits [B, classes].
"""

from __future__ import annotations

import copy
import math

import timm
import torch
from torch import Tensor, nn

from protocols.errors import ConfigError

_FAR = 1000.0  # a logit that no other comes near


def fully_connected(shape: tuple[int, int, int], classes: int, width: int = 64) -> nn.Sequential:
    """One hidden layer on all pixels, with biases: the scene "linear"."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(math.prod(shape), width), nn.ReLU(), nn.Linear(width, classes)
    )


def lenet(
    shape: tuple[int, int, int], classes: int, generator: torch.Generator | None = None
) -> nn.Sequential:
    """The LeNet with sigmoids of Zhu et al. 2019, weights uniform in ±0.5 as there: "image"."""
    channels, side = shape[0], shape[1]
    if shape[1] != shape[2] or side % 4:
        raise ConfigError(f"images of {shape}", where="LeNet", fix="make the side a multiple of 4")
    network = nn.Sequential(
        nn.Conv2d(channels, 12, 5, padding=2, stride=2),
        nn.Sigmoid(),
        nn.Conv2d(12, 12, 5, padding=2, stride=2),
        nn.Sigmoid(),
        nn.Conv2d(12, 12, 5, padding=2),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(12 * (side // 4) ** 2, classes),
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.uniform_(-0.5, 0.5, generator=generator)
    return network


def convolutional(shape: tuple[int, int, int], classes: int, width: int = 16) -> nn.Sequential:
    """Three ReLU convolutions and a mean over places: the scenes "batch" and "fishing"."""
    return nn.Sequential(
        nn.Conv2d(shape[0], width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(2 * width, 4 * width, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(64 * width, classes),
    )


def transformer(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """timm's ViT-Tiny of two blocks on 8×8 patches, with position embeddings: "transformer"."""
    network: nn.Module = timm.create_model(
        "vit_tiny_patch16_224",
        in_chans=shape[0],
        img_size=shape[1:],
        num_classes=classes,
        patch_size=8,
        depth=2,
    )
    return network


class Imprint(nn.Module):
    """A network behind a crafted first layer (Robbing the Fed, Fowl et al. 2022): "imprint".

    Bin k of the layer lights up for images brighter than the k-th quantile of `prior` inputs
    [P, *shape], and every bin acts alike on what follows, so that the gradients of neighbouring
    bins differ by those images alone that fall between the two.
    """

    def __init__(self, behind: nn.Module, prior: Tensor, bins: int) -> None:
        super().__init__()
        pixels = prior[0].numel()
        brightness = prior.flatten(1).mean(1)
        cuts = brightness.quantile(torch.linspace(0, 1, bins + 1)[:-1])
        cuts[0] = brightness.min() - 10 * brightness.std()
        self.measure = nn.Linear(pixels, bins)
        self.spread = nn.Linear(bins, pixels)
        self.behind = behind
        with torch.no_grad():
            self.measure.weight.fill_(1 / pixels)
            self.measure.bias.copy_(-cuts)
            self.spread.weight.copy_(torch.randn(pixels, 1) / math.sqrt(pixels * bins))
            self.spread.bias.zero_()

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs → logits, through the imprint."""
        lit = torch.relu(self.measure(inputs.flatten(1)))
        return self.behind(self.spread(lit).view_as(inputs))  # type: ignore[no-any-return]


def fishing(network: nn.Module, target: int) -> nn.Module:
    """A copy whose last layer hides all classes but `target` (Wen et al. 2022): "fishing".

    The other logits are equal, far above, and depend on no feature: only images of the target
    class leave a gradient in the layers below.
    """
    crafted = copy.deepcopy(network)
    last = [m for m in crafted.modules() if isinstance(m, nn.Linear)][-1]
    if last.bias is None:
        raise ConfigError("the last layer has no bias", where="fishing", fix="use another network")
    with torch.no_grad():
        others = torch.arange(last.out_features) != target
        last.weight[others] = 0.0
        last.bias[others] = _FAR
    return crafted

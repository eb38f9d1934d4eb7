"""Inputs that a gradient gives away in closed form: no optimisation, no restarts.

All of them read how a layer's weight gradient is put together, δ·inputᵀ summed over images, next
to a gradient that is δ alone: the layer's bias, or the position embedding behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.gradients.laboratory import Observation
from protocols.errors import ConfigError

_LEAST = 1e-9  # of a gradient's largest entry: below it a row says nothing


@dataclass(frozen=True, eq=False)
class Layer:
    """The observed gradients of one linear layer: weight [out, in], bias [out] or None."""

    name: str
    weight: Tensor
    bias: Tensor | None


def linear_layers(observation: Observation) -> list[Layer]:
    """The linear layers of the network in the order of their parameters, with their gradients."""
    seen = named(observation)
    return [
        Layer(name, seen[f"{name}.weight"], seen.get(f"{name}.bias"))
        for name, module in observation.knowledge.network.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.weight" in seen
    ]


def named(observation: Observation) -> dict[str, Tensor]:
    """Parameter → observed gradient. ConfigError where nothing is shown."""
    if observation.gradient is None:
        raise ConfigError("no gradient is shown", where="analytic attack", fix="guess the prior")
    names = [name for name, _ in observation.knowledge.network.named_parameters()]
    return dict(zip(names, observation.gradient, strict=True))


def input_of(layer: Layer, noise: float = 0.0) -> Tensor:
    """The one input [in] of a layer with a bias (Phong et al. 2017): Σ b·W/Σ b² over its rows.

    Every row of W is the input times that row of the bias gradient b; this weighs them as least
    squares does. Σ b² is freed of `noise`, the deviation of each coordinate, as far as it goes.
    Of several images it is a mean, weighted by how much they matter to the layer.
    """
    if layer.bias is None:
        raise ConfigError("the layer has no bias", where=layer.name, fix="attack another layer")
    weight, bias = layer.weight.double(), layer.bias.double()
    energy = bias.square().sum()
    energy = torch.maximum(energy - len(bias) * noise**2, 0.1 * energy)
    return ((bias @ weight) / energy.clamp_min(1e-300)).float()


def image_of_linear(observation: Observation) -> Tensor:
    """The image [1, *shape] behind the gradient of a network that begins with a linear layer."""
    known = observation.knowledge
    first = linear_layers(observation)[0]
    if first.weight.shape[1] != known.shape[0] * known.shape[1] * known.shape[2]:
        raise ConfigError(
            f"takes {first.weight.shape[1]} values, an image has {known.shape}",
            where=first.name,
            fix="attack a network whose first layer is linear",
        )
    return known.shown(input_of(first, known.noise).view(1, *known.shape))


def features_of(observation: Observation) -> Tensor:
    """The input [d] of the last linear layer, of one image: the start of feature matching."""
    return input_of(linear_layers(observation)[-1], observation.knowledge.noise)


def image_of_transformer(observation: Observation) -> Tensor:
    """The image [1, *shape] behind the gradient of a timm vision transformer, for one image.

    The gradient of the position embedding is δ, one row per patch, and that of the patch
    projection is δᵀ·patches: a linear system, solved by least squares. It is exact where the
    embedding is at least as wide as there are patches. That position embeddings give δ away was
    seen by Lu et al. 2022 (APRIL), who solved for it at the attention of a modified network.
    """
    known = observation.knowledge
    seen, network = named(observation), known.network
    try:
        size: tuple[int, int] = network.get_submodule("patch_embed").patch_size  # type: ignore[assignment]
        places, weight = seen["pos_embed"], seen["patch_embed.proj.weight"]
    except (AttributeError, KeyError):
        raise ConfigError(
            "no position embedding or no patch projection",
            where=type(network).__name__,
            fix="attack a timm vision transformer",
        ) from None
    channels, height, width = known.shape
    rows, columns = height // size[0], width // size[1]
    delta = places[0, -rows * columns :].double()
    flat = weight.flatten(1).double()
    patches = torch.linalg.lstsq(delta.T, flat, driver="gelsd").solution
    grid = patches.float().view(rows, columns, channels, *size)
    return known.shown(grid.permute(2, 0, 3, 1, 4).reshape(1, channels, height, width))


def images_of_imprint(observation: Observation) -> Tensor:
    """Candidate images [bins, *shape] from a crafted first layer (Fowl et al. 2022).

    Neighbouring bins' gradients differ by the images between them; a bin of one image gives it
    exactly. Candidates are ordered by how much they matter, empty bins last as the image of
    zeros; there are `bins` of them, and the attacker does not know which are single images.
    """
    known = observation.knowledge
    first = linear_layers(observation)[0]
    if first.bias is None:
        raise ConfigError("the imprint has no bias", where=first.name, fix="craft it with one")
    weight = torch.cat([first.weight, torch.zeros_like(first.weight[:1])]).double()
    bias = torch.cat([first.bias, torch.zeros_like(first.bias[:1])]).double()
    between, share = -weight.diff(dim=0), -bias.diff()
    strength = share.abs()
    order = strength.argsort(descending=True)
    found = between / torch.where(strength > 0, share, 1.0)[:, None]
    found = torch.where((strength > _LEAST * strength.max())[:, None], found, 0.0)
    return known.shown(found[order].float().view(-1, *known.shape))

"""A shared ViT encoder under one site's own head: for a class, several findings, or a mask.

Sites of different tasks share the encoder alone. A head is never sent; a new one is fitted to the
frozen encoder first (a linear probe), so that fine-tuning does not begin by spoiling features
(Kumar et al., "Fine-Tuning can Distort Pretrained Features", ICLR 2022).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from secure_natfl.data.records import Form
from secure_natfl.training import Examples, Schedule, augment, fit, record_losses

_SHRINK = 1e-3
_PROBE_STEPS = 60
_BATCH = 256


class TaskNetwork(nn.Module):
    """Images [n, ch, S, S] → logits [n, C]; of a mask task [n, C, S, S], patch by patch."""

    def __init__(self, encoder: VisionTransformer, classes: int, form: Form) -> None:
        super().__init__()
        self.encoder, self.form = encoder, form
        self.patch = int(encoder.patch_embed.patch_size[0])
        each = self.patch**2 if form == "mask" else 1
        self.head = nn.Linear(encoder.embed_dim, classes * each)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the site's own task."""
        return self.read(self.inputs(images), images.shape[-1])

    def inputs(self, images: Tensor) -> Tensor:
        """What the head sees: pooled features [n, d], or the tokens [n, L, d] of a mask task."""
        if self.form != "mask":
            pooled: Tensor = self.encoder(images)
            return pooled
        tokens: Tensor = self.encoder.forward_features(images)
        return tokens[:, self.encoder.num_prefix_tokens :]

    def read(self, inputs: Tensor, side: int) -> Tensor:
        """The head's answer to `inputs` of images of `side` pixels."""
        answer: Tensor = self.head(inputs)
        if self.form != "mask":
            return answer
        rows = side // self.patch
        tiles = answer.transpose(1, 2).reshape(len(answer), -1, rows, rows)
        return functional.pixel_shuffle(tiles, self.patch)


def over(encoder: VisionTransformer, examples: Examples) -> TaskNetwork:
    """A copy of the encoder with a head of zeros for the task of `examples`."""
    copied = copy.deepcopy(encoder).requires_grad_(True)
    return TaskNetwork(copied, examples.targets.shape[1], examples.form)


def losses(logits: Tensor, examples: Examples) -> Tensor:
    """Loss of each image [n]; of a mask the mean over its known pixels."""
    targets, known = examples.targets, examples.known
    if examples.form == "mask":
        logits, targets, known = (x.movedim(1, -1) for x in (logits, targets, known))
        each = record_losses(logits, targets, known, multi_label=False).flatten(1)
        return each.sum(1) / known.amax(-1).flatten(1).sum(1).clamp_min(1)
    return record_losses(logits, targets, known, multi_label=examples.multi_label)


def moved(examples: Examples, generator: torch.Generator) -> Examples:
    """The examples mirrored and shifted at random, a mask together with its image."""
    if examples.form != "mask":
        images = augment(examples.images, generator)
        return Examples(images, examples.targets, examples.known, examples.multi_label)
    parts = (examples.images, examples.targets, examples.known)
    widths = [part.shape[1] for part in parts]
    images, targets, known = torch.split(augment(torch.cat(parts, 1), generator), widths, 1)
    return Examples(images, targets, known, examples.multi_label)


def probe_head(network: TaskNetwork, examples: Examples) -> float:
    """Fit the head alone, from zero, in place: a linear probe. Returns its loss.

    The mean loss plus a small square of the weights, on standardised inputs: convex, so L-BFGS
    ends at the same head from anywhere.
    """
    network.eval()
    with torch.no_grad():
        pieces = [network.inputs(batch) for batch in torch.split(examples.images, _BATCH)]
    inputs, side = torch.cat(pieces), examples.images.shape[-1]
    flat = inputs.flatten(0, -2)
    mean, deviation = flat.mean(0), flat.std(0, correction=0).clamp_min(1e-3)
    head = network.head
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
    optimiser = torch.optim.LBFGS(
        head.parameters(), max_iter=_PROBE_STEPS, line_search_fn="strong_wolfe"
    )
    standard = (inputs - mean) / deviation

    def value() -> Tensor:
        found = losses(network.read(standard, side), examples).mean()
        return found + _SHRINK * head.weight.square().sum() / 2

    def closure() -> Tensor:
        optimiser.zero_grad()
        found = value()
        found.backward()  # type: ignore[no-untyped-call]
        return found.detach()

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        reached = float(value())
        head.weight.div_(deviation)
        head.bias.sub_(head.weight @ mean)
    return reached


def tune(
    network: TaskNetwork,
    examples: Examples,
    schedule: Schedule,
    generator: torch.Generator,
    *,
    anchor: float = 0.0,
) -> float:
    """Train encoder and head on a site's images, in place; loss of the last epoch.

    anchor: weight of half the squared distance of the encoder from where it begins.
    """
    before = [parameter.detach().clone() for parameter in network.encoder.parameters()]

    def loss(rows: Tensor) -> Tensor:
        some = moved(examples.at(rows), generator)
        value = losses(network(some.images), some).mean()
        return value + distance(network.encoder, before, anchor) if anchor else value

    return fit(network, loss, len(examples), schedule, generator)


def distance(network: nn.Module, before: list[Tensor], weight: float) -> Tensor:
    """weight/2 · ‖network − before‖²."""
    pairs = zip(network.parameters(), before, strict=True)
    return weight / 2 * torch.stack([(now - then).square().sum() for now, then in pairs]).sum()


def weights_by_name(network: nn.Module) -> dict[str, Tensor]:
    """The trained weights, without gradients; they share the network's memory."""
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


def below(state: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `start`, under the rest of their names."""
    return {name[len(start) :]: value for name, value in state.items() if name.startswith(start)}

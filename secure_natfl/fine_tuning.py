"""Training a whole network at a site, and distilling one at the server: the two loops of the floor.

Personal models, the speaking network of runs without noise, and the local and pooled baselines are
all `fine_tune` with other weights; the central model and its controls are `distil`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from secure_natfl.alignment import Alignment
from secure_natfl.models import Network
from secure_natfl.training import (
    Examples,
    Naturals,
    Progress,
    Schedule,
    augment,
    distillation_losses,
    features_of,
    fit,
    record_losses,
)

_ALIGNMENT_IMAGES = 512
_LARGEST_RATIO = 1e3


@dataclass(frozen=True)
class LocalLoss:
    """Weights of the parts beside supervision on private records (0 switches a part off)."""

    natural: float = 0.0
    alignment: float = 0.0
    distillation: float = 0.0
    temperature: float = 2.0


@dataclass(frozen=True)
class Teacher:
    """Answers to learn from: public images by row, logits [n, C], weight [n] of each (w↓)."""

    rows: Tensor
    logits: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Target:
    """What a central model is to answer: images [n, …], logits and trust [n, heads, C or 1].

    `labels` [n] are the images' natural classes, or None for images that show nothing.
    `signal_to_noise` [heads]: root mean square of signal over that of noise in the logits, a
    public figure; infinite where there is no noise. `linear`: every head of the answers is linear
    in the central network's own features, as of sites that train a head on its public start.
    `features` [n, d]: these of `images`, where they are known.
    """

    images: Tensor
    logits: Tensor
    trust: Tensor
    labels: Tensor | None
    signal_to_noise: Tensor
    linear: bool = False
    features: Tensor | None = None


def fresh(public: Network, classes: int, generator: torch.Generator, groups: int = 1) -> Network:
    """A copy of a public network with an X-ray head of its own, drawn from `generator`."""
    network = copy.deepcopy(public)
    network.groups, network.classes = groups, classes
    network.xray = nn.Linear(network.features, groups * classes)
    _draw_heads(network, generator)
    return network


def fine_tune(
    network: Network,
    examples: Examples,
    naturals: Naturals,
    weights: LocalLoss,
    teacher: Teacher | None,
    schedule: Schedule,
    generator: torch.Generator,
    progress: Progress | None = None,
) -> float:
    """Private records, aligned to public statistics, beside labelled and answered natural images.

    Every private term is a sum over records. Returns the mean loss of the last epoch.
    """
    align = _alignment(network, naturals, generator) if weights.alignment else None
    learns = teacher is not None and weights.distillation > 0

    def loss(rows: Tensor) -> Tensor:
        value = _supervision(network, examples.at(rows), align, weights, generator)
        if not (weights.natural or learns):
            return value
        asked = teacher.rows if teacher is not None else torch.arange(len(naturals.labels))
        some = torch.randint(len(asked), (len(rows),), generator=generator)
        xray, natural = network(augment(naturals.images[asked[some]], generator))
        if weights.natural:
            labels = naturals.labels[asked[some]]
            value = value + weights.natural * functional.cross_entropy(natural, labels)
        if teacher is not None and learns:
            each = distillation_losses(
                xray[:, 0],
                teacher.logits[some],
                weights.temperature,
                multi_label=examples.multi_label,
            )
            value = value + weights.distillation * (teacher.weight[some] * each).mean()
        return value

    return fit(network, loss, len(examples), schedule, generator, progress)


def distil(
    central: Network,
    target: Target,
    natural_weight: float,
    schedule: Schedule,
    generator: torch.Generator,
    progress: Progress | None = None,
    *,
    multi_label: bool,
) -> float:
    """Match logits in the square (Ba & Caruana 2014), weighted by trust, beside natural labels.

    Under additive noise the mean of a target stays right, which a softmax of noisy logits would
    spoil. The whole network learns where every head's signal is above its noise. Else it would
    learn the noise by heart, and the X-ray heads alone are solved for on the network's features
    as they are, shrunk by the known noise: few weights average thousands of noisy answers. So are
    heads for linear answers, which they match to the grid.

    The loss is in units of the trusted targets' mean square. Returns that of the last epoch.
    """
    scale = (target.trust * target.logits.square()).mean().clamp_min(1e-6)
    if target.linear or float(target.signal_to_noise.min()) < 1:
        off = (_solve_heads(central, target) - target.logits).square()
        return float((target.trust * off).mean() / scale)

    # Heads solved for noisy answers in an earlier round are steep: training would start far off.
    _draw_heads(central, generator)

    def loss(rows: Tensor) -> Tensor:
        xray, natural = central(augment(target.images[rows], generator))
        if not multi_label:
            xray = xray - xray.mean(-1, keepdim=True)
        off = (xray - target.logits[rows]).square()
        value: Tensor = (target.trust[rows] * off).mean() / scale
        if natural_weight and target.labels is not None:
            value = value + natural_weight * functional.cross_entropy(natural, target.labels[rows])
        return value

    return fit(central, loss, len(target.images), schedule, generator, progress)


def _draw_heads(network: Network, generator: torch.Generator) -> None:
    std = float(network.features) ** -0.5
    nn.init.trunc_normal_(network.xray.weight, std=std, generator=generator)
    nn.init.zeros_(network.xray.bias)


def solved(features: Tensor, logits: Tensor, trust: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """A linear head, weight [C, d] and bias [C], that answers `logits` [n, C] on `features` [n, d].

    Ridge regression on standardised features with λ = d/SNR², weighted by `trust` [n, C or 1]:
    the Bayes choice for weights that share the signal's variance evenly among d features.
    """
    features, logits, trust = features.double(), logits.double(), trust.double()
    mean, deviation = features.mean(0), features.std(0).clamp_min(1e-6)
    inputs = (features - mean) / deviation
    middle = (trust * logits).sum(0) / trust.sum().clamp_min(1e-6)
    gram = inputs.T @ (trust * inputs)
    size = features.shape[1]
    gram += size / min(max(ratio, 1e-2), _LARGEST_RATIO) ** 2 * torch.eye(size).double()
    weight = torch.linalg.solve(gram, inputs.T @ (trust * (logits - middle)))
    weight = (weight / deviation.unsqueeze(1)).T
    return weight, middle - weight @ mean


@torch.no_grad()
def _solve_heads(central: Network, target: Target) -> Tensor:
    """Solve for every head; what they answer then: logits [n, heads, C]."""
    features = target.features
    if features is None:
        features = features_of(central.backbone, target.images)
    for head in range(central.groups):
        ratio = float(target.signal_to_noise[head])
        rows = slice(head * central.classes, (head + 1) * central.classes)
        central.xray.weight[rows], central.xray.bias[rows] = (
            part.float()
            for part in solved(features, target.logits[:, head], target.trust[:, head], ratio)
        )
    return central.answers(features)[0]


def _supervision(
    network: Network,
    examples: Examples,
    align: Alignment | None,
    weights: LocalLoss,
    generator: torch.Generator,
) -> Tensor:
    features = network.backbone(augment(examples.images, generator))
    each = record_losses(
        network.xray(features), examples.targets, examples.known, multi_label=examples.multi_label
    )
    if align is not None:
        each = each + weights.alignment * align(features)
    return each.mean()


def _alignment(network: Network, naturals: Naturals, generator: torch.Generator) -> Alignment:
    some = torch.randint(len(naturals.labels), (_ALIGNMENT_IMAGES,), generator=generator)
    return Alignment(features_of(network.backbone, naturals.images[some]), generator)

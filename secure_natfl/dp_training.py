"""Training under differential privacy at one site: the units of every step through a `Descent`.

Abadi et al. 2016 with whole units: of each sampled patient at most K images are drawn, each in
several augmented views (De et al. 2022, arXiv 2204.13650), and the gradient of their mean loss is
clipped and noised once by `protocols.dp_sgd`. What follows is post-processing: the optimiser, the
moving average, and the gradient of a loss on public images, which is added after the noise. Losses
on private images are neither returned nor printed.

From cheap to dear: `train_head` on frozen features, `train` after `thaw` of some last blocks, or
of the whole network (`deep_training`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from protocols.chain import RandomBytes
from protocols.dp_sgd import Descent, DpSgd
from protocols.errors import ConfigError, DataError, ModelError
from secure_natfl.checked_gradients import UnitGradients
from secure_natfl.flat_optimiser import FlatOptimiser, OptimiserName, place, weights_of
from secure_natfl.models import Network
from secure_natfl.natural_coordinates import natural_coordinates
from secure_natfl.training import Examples, Naturals, Progress, augment, features_of
from secure_natfl.unit_gradients import RecordLoss, Unit

Public = Callable[[nn.Module], Tensor]
"""A scalar loss of the network on public images alone."""

_FARTHEST = 1.6  # found on phantoms and on tuning splits; docs/results/natimg-fl.md


@dataclass(frozen=True)
class Cohort:
    """A site's units. `tensors`: inputs, targets, known, a row per image; `units`: rows of each.

    DataError when two units share an image: it would count under two clips.
    """

    tensors: Unit
    units: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        rows = torch.cat(self.units) if self.units else torch.zeros(0)
        if len(torch.unique(rows)) != len(rows):
            raise DataError(
                "an image belongs to two units, or twice to one",
                why="it would be clipped as if it were two people's",
                fix="list each image once, under one patient",
            )

    @classmethod
    def of_patients(cls, examples: Examples, patients: Sequence[str]) -> Cohort:
        """One unit per patient; `patients` names the patient of each image."""
        rows: dict[str, list[int]] = {}
        for row, patient in enumerate(patients):
            rows.setdefault(patient, []).append(row)
        tensors = (examples.images, examples.targets, examples.known)
        return cls(tensors, tuple(torch.tensor(found) for found in rows.values()))

    def __len__(self) -> int:
        return len(self.units)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the noisy gradients are used. All figures are public choices.

    rate: learning rate. momentum: of SGD, 0 to below 1; Adam has its usual ones. images: K, most
    images of a unit in one step. views: augmented views of each image, 0 for the image as it is.
    average: decay of the moving average of weights, warmed up, 0 for the last weights. ahead: with
    a rate above 0, first-order meta-learning for later fine-tuning (PerFedAvg, Fallah et al.
    2020): a step of that rate first, then the update with the gradient found there; it takes two
    of the paid steps.
    """

    rate: float
    optimiser: OptimiserName = "sgd"
    momentum: float = 0.9
    images: int = 4
    views: int = 0
    average: float = 0.999
    ahead: float = 0.0

    def __post_init__(self) -> None:
        fits = self.rate > 0 and self.images >= 1 and self.views >= 0 and self.ahead >= 0
        if not fits or not 0 <= self.momentum < 1 or not 0 <= self.average < 1:
            raise ConfigError(
                f"no such recipe: {self}",
                fix="give a rate above 0, at least 1 image, momentum and average in [0, 1)",
            )


def train(
    gradients: UnitGradients,
    cohort: Cohort,
    descent: Descent,
    recipe: Recipe,
    *,
    scale: Tensor | None = None,
    public: Public | None = None,
    random: RandomBytes = os.urandom,
    progress: Progress | None = None,
) -> None:
    """Use up `descent` on the trainable weights of `gradients.network`, in place.

    The plan's size must be `gradients.size`; `random` draws a unit's images and their views.
    `scale` [size], public, is the unit in which each weight is counted while gradients are taken,
    clipped and noised; 1 by default. After an error the network is half-trained: it may neither be
    kept nor sent.
    """
    parameters = gradients.parameters
    steps, queries = descent.left, 2 if recipe.ahead else 1
    if descent.plan.size != gradients.size or steps % queries:
        raise ModelError(
            f"{steps} steps on {descent.plan.size} parameters were paid for",
            why=f"{gradients.size} parameters train, in steps of {queries} queries",
            fix="calibrate the mechanism after the network was thawed",
        )
    optimiser = FlatOptimiser(recipe.optimiser, recipe.rate, recipe.momentum, gradients.size)
    scale = torch.ones(gradients.size) if scale is None else scale
    average = weights = weights_of(parameters) / scale
    for step in range(0, steps, queries):
        if recipe.ahead:
            first = _direction(gradients, cohort, descent, recipe, scale, random, public)
            place((weights - recipe.ahead * first) * scale, parameters)
        noisy = _direction(gradients, cohort, descent, recipe, scale, random, public)
        weights = weights - optimiser.move(noisy)
        place(weights * scale, parameters)
        decay = min(recipe.average, (1 + step) / (10 + step)) if recipe.average else 0.0
        average = decay * average + (1 - decay) * weights
        if progress is not None:
            progress(step + queries, steps)
    place(average * scale, parameters)
    gradients.network.eval()


def train_head(
    network: Network,
    open_features: Tensor,
    cohort: Cohort,
    begin: Callable[[int], Descent],
    recipe: Recipe,
    *,
    multi_label: bool,
    random: RandomBytes = os.urandom,
    progress: Progress | None = None,
    features: Tensor | None = None,
) -> None:
    """A linear X-ray head on frozen features, trained from what it is, in place: almost free.

    open_features: the natural images' features [P, d] under the same backbone; features: those of
    the cohort's images, [n, d], where they are known. `begin(size)`
    charges and hands out the Descent for that many parameters; it is called after every check has
    passed. Training runs in `NaturalCoordinates`, so that one clip fits every backbone.
    `recipe.rate` is in clips: the learning rate is `recipe.rate` / clip norm, or lower where the
    noise of all steps would move a weight by a deviation of more than 1.6: a public choice that
    follows from ε and the declared number of units. `recipe.views` is not heeded.
    """
    if network.groups != 1:
        raise ModelError(f"has {network.groups} X-ray heads", fix="train one head under DP")
    space = natural_coordinates(open_features)
    if features is None:
        features = features_of(network.backbone, cohort.tensors[0])
    inputs = space.inputs(features).float()
    shape = network.features + 1, network.classes
    head = skip_init(nn.Linear, *shape, bias=False)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        head.weight.copy_(space.inward(network.xray.weight, network.xray.bias))
    shown = probe(space.inputs(open_features[:4]).float(), network.classes)
    gradients = UnitGradients(head, RecordLoss(multi_label), shown)
    lifted = Cohort((inputs, *cohort.tensors[1:]), cohort.units)
    descent = begin(gradients.size)
    paced = replace(recipe, rate=calm(recipe.rate, descent.plan), views=0)
    train(gradients, lifted, descent, paced, random=random, progress=progress)
    with torch.no_grad():
        weight, bias = space.outward(head.weight)
        network.xray.weight.copy_(weight)
        network.xray.bias.copy_(bias)


def calm(most: float, plan: DpSgd) -> float:
    """The learning rate: `most` in clips, or less where noise would carry the weights too far."""
    walk = plan.noise_multiplier / plan.expected * math.sqrt(plan.steps)
    return min(most, _FARTHEST / walk) / plan.clip_norm


def thaw(network: Network, blocks: int | None) -> None:
    """Make the X-ray head trainable with the last `blocks` blocks; None: the whole backbone.

    A block is a child of the backbone, or of a sequence in it, that has a matrix or a kernel;
    normalisation after it goes with it. The natural head stays as it is: it learns from public
    images only, before. Call before `UnitGradients`.
    """
    network.requires_grad_(False)
    network.xray.requires_grad_(True)
    if blocks is None:
        network.backbone.requires_grad_(True)
    elif blocks:
        pieces = list(_pieces(network.backbone))
        heavy = [i for i, p in enumerate(pieces) if any(w.dim() > 1 for w in p.parameters())]
        for piece in pieces[heavy[-blocks:][0] if heavy else 0 :]:
            piece.requires_grad_(True)


def natural_loss(
    naturals: Naturals, weight: float, batch: int, generator: torch.Generator
) -> Public:
    """`weight` times the cross-entropy of a `Network` on `batch` natural images, drawn each time.

    Public images need no protection: `generator` may be a stream of the run.
    """

    def loss(network: nn.Module) -> Tensor:
        some = torch.randint(len(naturals.labels), (batch,), generator=generator)
        answers = network(augment(naturals.images[some], generator))[1]
        return weight * functional.cross_entropy(answers, naturals.labels[some])

    return loss


def _direction(
    gradients: UnitGradients,
    cohort: Cohort,
    descent: Descent,
    recipe: Recipe,
    scale: Tensor,
    random: RandomBytes,
    public: Public | None,
) -> Tensor:
    """One paid step, then the public part on top: float64 [size]."""
    chosen = descent.sample(len(cohort))
    units = (_drawn(cohort, int(unit), recipe, random) for unit in chosen)
    found = (gradient.cpu().mul_(scale).numpy() for gradient in gradients(units))
    noisy = torch.from_numpy(descent.step(found))
    if public is None:
        return noisy
    parts = torch.autograd.grad(
        public(gradients.network),
        gradients.parameters,
        materialize_grads=True,
        allow_unused=True,
    )
    return noisy + torch.cat([part.reshape(-1) for part in parts]).cpu() * scale


def _drawn(cohort: Cohort, unit: int, recipe: Recipe, random: RandomBytes) -> Unit:
    """At most K images of a unit, in their views; a stream of its own, so that units stay apart."""
    rows = cohort.units[unit]
    if len(rows) <= recipe.images and not recipe.views:
        return tuple(tensor[rows] for tensor in cohort.tensors)
    generator = torch.Generator().manual_seed(int.from_bytes(random(8), "little") >> 1)
    rows = rows[torch.randperm(len(rows), generator=generator)[: recipe.images]]
    inputs, *others = (tensor[rows] for tensor in cohort.tensors)
    if not recipe.views:
        return (inputs, *others)
    views = [augment(inputs, generator) for _ in range(recipe.views)]
    return (torch.cat(views), *(torch.cat([tensor] * recipe.views) for tensor in others))


def _pieces(backbone: nn.Module) -> Iterator[nn.Module]:
    """Children in order, sequences opened."""
    sequences = (nn.Sequential, nn.ModuleList)
    return chain.from_iterable(
        child.children() if isinstance(child, sequences) else (child,)
        for child in backbone.children()
    )


def probe(inputs: Tensor, classes: int) -> list[Unit]:
    """The first of public `inputs` as units of 1, 2, 0, 1 and 1 rows, with labels in turn.

    The last is the first with another label: no network is right, and sure, about both.
    """
    targets = torch.eye(classes).repeat(4, 1)[:4]
    known = torch.ones(4, classes)
    rows = ((0, 1), (1, 3), (3, 3), (3, 4))
    units: list[Unit] = [(inputs[a:b], targets[a:b], known[a:b]) for a, b in rows]
    other = torch.eye(classes)[-1:] if classes > 1 else torch.zeros(1, 1)
    return [*units, (inputs[:1], other, known[:1])]

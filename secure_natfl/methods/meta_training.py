"""What a site does in Per-FedAvg: train the shared start, with or without noise, and adapt it.

A site's training images are cut by patient into those that train and those that choose among its
own steps; test images are read by neither.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from protocols.chain import RandomBytes
from protocols.dp_sgd import Descent
from secure_natfl.checked_gradients import UnitGradients
from secure_natfl.data.splits import folds
from secure_natfl.dp_training import Cohort, Recipe, calm, train
from secure_natfl.federation import Site
from secure_natfl.methods.per_fedavg import Loss, Meta, adapt, batches, meta_gradient, pairs
from secure_natfl.methods.segmentation import mask_losses
from secure_natfl.surgery import trainable
from secure_natfl.training import Examples, augment, record_losses
from secure_natfl.unit_gradients import Unit


@dataclass(frozen=True, eq=False)
class Parts:
    """A site's training images: those that train, with their patients, and those that choose."""

    fit: Examples
    patients: tuple[str, ...]
    chooses: Examples | None


def cut(site: Site, count: int, seed: int) -> Parts:
    """One part in `count` of the patients chooses; nobody does where 0, or where too few are."""
    if not count or site.records.patient_count < count:
        return Parts(site.train, site.train_patients, None)
    chosen = folds(site.records, count, seed)[0]
    kept = np.setdiff1d(np.arange(len(site.train)), chosen)
    if len(kept) < 2:
        return Parts(site.train, site.train_patients, None)
    patients = tuple(site.train_patients[row] for row in kept)
    fit, chooses = (site.train.at(torch.from_numpy(rows)) for rows in (kept, chosen))
    return Parts(fit, patients, chooses)


@dataclass(frozen=True)
class LocalPlan:
    """How a site trains the shared start in a round; an epoch reads about every image once."""

    meta: Meta
    epochs: int
    batch: int
    rate: float
    optimiser: Literal["sgd", "adam"]

    def steps(self, images: int) -> int:
        """Steps of a round; each takes two batches without an image in common."""
        return self.epochs * max(1, images // (2 * min(self.batch, images // 2)))

    def train(self, network: nn.Module, examples: Examples, draw: torch.Generator) -> None:
        """One round, in place."""
        loss = batch_loss(network, examples, draw)
        kind = torch.optim.Adam if self.optimiser == "adam" else torch.optim.SGD
        optimiser = kind(network.parameters(), lr=self.rate)
        draws = pairs(len(examples), self.batch, draw)
        for some in islice(draws, self.steps(len(examples))):
            meta_gradient(network, loss, some, self.meta)
            optimiser.step()


def own_network(
    network: nn.Module, parts: Parts, steps: int, rate: float, batch: int, draw: torch.Generator
) -> tuple[int, float | None]:
    """Take up to `steps` own steps, in place, and go back to the best; how many, and its loss.

    The best by the part that chooses; without one all steps are taken, and the loss is None.
    """
    rows = batches(len(parts.fit), batch, draw)
    loss = batch_loss(network, parts.fit, draw)
    best, taken, least = weights_of(network), 0, None
    for done in adapt(network, loss, rows, steps, rate):
        value = None if parts.chooses is None else _mean_loss(network, parts.chooses)
        if value is None or least is None or value < least:
            best, taken, least = weights_of(network), done, value
    place(best, network)
    return taken, least


class NoisyTraining:
    """The same step under DP-SGD: both its gradients are noisy and paid for (`Recipe.ahead`).

    Made once for a network and the shape of its examples; every site's weights pass through it.
    """

    def __init__(self, network: nn.Module, shape: Examples, draw: torch.Generator) -> None:
        def unit_losses(network: nn.Module, unit: Unit) -> Tensor:
            images, targets, known = unit
            return losses(network, replace(shape, images=images, targets=targets, known=known))

        probe = public_probe(shape, draw)
        self._gradients = UnitGradients(copy.deepcopy(network), unit_losses, probe)

    @property
    def size(self) -> int:
        """What the mechanism is asked for: all parameters."""
        return self._gradients.size

    def train(
        self,
        network: nn.Module,
        parts: Parts,
        descent: Descent,
        *,
        clips: float,
        ahead: float,
        images: int,
        random: RandomBytes,
    ) -> None:
        """Use up `descent`, in place. clips: the rate in clips; ahead: α/β; images: of a unit."""
        place(weights_of(network), self._gradients.network)
        rate = calm(clips, descent.plan)
        recipe = Recipe(rate=rate, momentum=0.0, images=images, average=0.0, ahead=rate * ahead)
        cohort = Cohort.of_patients(parts.fit, parts.patients)
        train(self._gradients, cohort, descent, recipe, random=random)
        place(weights_of(self._gradients.network), network)


def weights_of(network: nn.Module) -> Tensor:
    """All trainable parameters as one vector [parameters], in order, detached."""
    return torch.cat([p.detach().reshape(-1) for p in trainable(network).values()])


def place(weights: Tensor, network: nn.Module) -> None:
    """Undo `weights_of`, in place."""
    parameters = list(trainable(network).values())
    with torch.no_grad():
        pieces = torch.split(weights, [p.numel() for p in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.copy_(piece.view_as(parameter))


def losses(network: nn.Module, examples: Examples) -> Tensor:
    """The loss of each image [n], from its own pixels alone: Dice with cross-entropy of masks."""
    logits, targets, known = network(examples.images), examples.targets, examples.known
    if examples.form == "mask":
        return mask_losses(logits, targets, known)
    return record_losses(logits, targets, known, multi_label=examples.multi_label)


def batch_loss(network: nn.Module, examples: Examples, draw: torch.Generator) -> Loss:
    """Mean loss of rows; images with classes are mirrored and shifted, as `train_plain` does."""
    still = examples.form == "mask" or examples.images.ndim == 5

    def loss(rows: Tensor) -> Tensor:
        some = examples.at(rows)
        shown = some if still else replace(some, images=augment(some.images, draw))
        return losses(network, shown).mean()

    return loss


def public_probe(shape: Examples, draw: torch.Generator) -> list[Unit]:
    """Units of 1, 2, 0 and 1 images of noise, as large as those of `shape`, with random classes."""
    images = torch.rand(4, *shape.images.shape[1:], generator=draw)
    classes = shape.targets.shape[1]
    drawn = torch.randint(classes, (4, *shape.targets.shape[2:]), generator=draw)
    targets = nn.functional.one_hot(drawn, classes).movedim(-1, 1).float()
    known = torch.ones_like(targets)
    return [(images[a:b], targets[a:b], known[a:b]) for a, b in ((0, 1), (1, 3), (3, 3), (3, 4))]


@torch.no_grad()
def _mean_loss(network: nn.Module, examples: Examples) -> float:
    return float(losses(network, examples).mean())

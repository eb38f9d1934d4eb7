"""A site's encoder and head under differential privacy: what it sends is post-processing.

The head is trained from zero or from where the last stage left it, under the same noise, and the
public images fix the layers' independence of one another's records. Places of patches stay public.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from protocols.chain import RandomBytes
from protocols.errors import PrivacyError
from secure_natfl.checked_gradients import UnitGradients
from secure_natfl.config import DpSgd
from secure_natfl.dp_training import Cohort, Recipe, calm, train
from secure_natfl.federation import Site
from secure_natfl.methods.task_network import TaskNetwork, losses
from secure_natfl.surgery import trainable
from secure_natfl.systems.private_head import Begin
from secure_natfl.training import Examples
from secure_natfl.unit_gradients import Unit

_SHARE: Final = 0.1
_SMALLEST: Final = 0.02  # of a tensor that starts at zero, as shifts do


@dataclass(frozen=True)
class TaskLoss:
    """The loss of each image under a task's network; it reads nothing of other images."""

    multi_label: bool

    def __call__(self, network: nn.Module, unit: Unit) -> Tensor:
        """Rows of images, targets and known → one loss per row."""
        images, targets, known = unit
        return losses(network(images), Examples(images, targets, known, self.multi_label))


def thaw_task(network: TaskNetwork, layers: str) -> None:
    """Make the head trainable with the encoder's last block ("last") or with all of it."""
    vit = network.encoder
    network.requires_grad_(False)
    for part in (network.head, vit.blocks[-1], vit.norm) if layers == "last" else (network,):
        part.requires_grad_(True)
    for name in ("pos_embed", "cls_token", "reg_token"):
        if (parameter := getattr(vit, name, None)) is not None:
            parameter.requires_grad_(False)


def private_size(network: TaskNetwork, layers: str) -> int:
    """How many parameters `tune_privately` trains: known before anything runs."""
    thaw_task(network, layers)
    return sum(parameter.numel() for parameter in trainable(network).values())


def tune_privately(
    network: TaskNetwork,
    site: Site,
    table: DpSgd,
    public: Tensor,
    begin: Begin | None,
    random: RandomBytes,
) -> None:
    """Train encoder and head on a site's units under noise, in place.

    public: public images [P, ch, S, S], on which the gradients' path is checked. `begin` charges.
    """
    if begin is None:
        raise PrivacyError(
            "an encoder that is to be trained under noise, and no charge for it",
            fix="hand in what begins the mechanism's training",
        )
    thaw_task(network, table.layers)
    loss = TaskLoss(site.train.multi_label)
    gradients = UnitGradients(network, loss, _probe(public, site.train))
    cohort = Cohort.of_patients(site.train, site.train_patients)
    descent = begin(gradients.size)
    recipe = Recipe(
        rate=calm(table.learning_rate, descent.plan),
        momentum=0.0,
        images=table.max_images_per_patient,
        average=0.0,
    )
    train(gradients, cohort, descent, recipe, scale=_scale(network), random=random)
    network.requires_grad_(True)
    network.eval()


def _scale(network: TaskNetwork) -> Tensor:
    """The unit of every weight [size]: of the encoder's a share of the tensor's size."""

    def unit(name: str, parameter: nn.Parameter) -> float:
        if name.startswith("head."):
            return _SHARE
        return _SHARE * max(float(parameter.detach().square().mean().sqrt()), _SMALLEST)

    return torch.cat([p.new_full((p.numel(),), unit(n, p)) for n, p in trainable(network).items()])


def _probe(public: Tensor, examples: Examples) -> list[Unit]:
    """Public images as units of 1, 2, 0 and 1 rows, with labels of the task's form in turn."""
    classes, space = examples.targets.shape[1], examples.targets.shape[2:]
    picked = torch.eye(classes).repeat(4, 1)[:4]
    targets = picked.reshape(4, classes, *[1] * len(space)).expand(4, classes, *space).contiguous()
    known = torch.ones_like(targets)
    return [(public[a:b], targets[a:b], known[a:b]) for a, b in ((0, 1), (1, 3), (3, 3), (3, 4))]

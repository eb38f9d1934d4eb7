"""Networks for one task without a natural-image head, and how they are trained at a site.

FedAvg and its relatives, and the local and pooled baselines of every system that learns from sums,
are made of these two functions, so that they start alike and train alike.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from protocols.errors import ModelError
from secure_natfl.config import Config
from secure_natfl.federation import Federation, Task
from secure_natfl.fine_tuning import fresh
from secure_natfl.methods.segmentation import build_medical, check_medical, is_medical, mask_losses
from secure_natfl.models import Network, build_backbone, check_architecture
from secure_natfl.pretraining import pretrained
from secure_natfl.seeds import Seeds
from secure_natfl.training import (
    Examples,
    Progress,
    Schedule,
    augment,
    fit,
    record_losses,
)

_START = 20_27


class Plain(nn.Module):
    """Images [n, ch, S, S] → logits [n, C] of a `Network` with one X-ray head."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """The task's logits; the natural-image head rests."""
        logits: Tensor = self.network(images)[0][:, 0]
        return logits


def check_plain(architecture: str, images: Tensor, task: Task) -> None:
    """ModelError of an architecture that cannot answer a task on images [N, ch, (D,) S, S]."""
    if is_medical(architecture):
        check_medical(architecture, images, task.form)
        return
    check_flat(architecture, images)
    if task.form == "mask":
        raise ModelError(
            f"answers with one vector per image, and task {task.name} asks for masks",
            where=architecture,
            fix='take "unet-16", or another width',
        )
    check_architecture(architecture)


def check_flat(architecture: str, images: Tensor) -> None:
    """ModelError where a network of flat images is given volumes [N, 1, D, S, S]."""
    if images.ndim == 5:
        raise ModelError(
            "is for flat images, and here are volumes",
            where=architecture,
            fix='take "densenet3d-16" for classes, "unet3d-16" for masks, or set slices = "middle"',
        )


def started(
    config: Config, federation: Federation, architecture: str, task: Task, seeds: Seeds
) -> nn.Module:
    """The common start of all networks of an architecture and task: images → logits.

    The backbone is the public start (natural images, where `models.pretrain_epochs` asks for
    them), the head is drawn from the run's seeds, and the same call gives the same network.
    Raises ModelError where the architecture is for other images or another kind of task.
    """
    images = next(site.train.images for site in federation.sites if site.task.name == task.name)
    check_plain(architecture, images, task)
    generator = seeds.torch("start", architecture, task.name)
    if is_medical(architecture):
        classes = len(task.classes)
        return build_medical(architecture, config.data.channels, classes, generator).eval()
    return Plain(fresh(_public(config, federation, architecture), len(task.classes), generator))


def _public(config: Config, federation: Federation, architecture: str) -> Network:
    models = config.models
    if models.pretrain_epochs:
        return pretrained(
            architecture,
            federation.naturals,
            size=config.data.size,
            classes=2,
            weights=models.weights,
            epochs=models.pretrain_epochs,
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_START)
        backbone, features = build_backbone(architecture, config.data.size, models.weights)
        return Network(backbone, features, 2, natural=1)


def train_plain(
    network: nn.Module,
    examples: Examples,
    schedule: Schedule,
    generator: torch.Generator,
    beside: Callable[[], Tensor] | None = None,
    progress: Progress | None = None,
) -> float:
    """Supervised training in place; mean loss of the last epoch.

    Cross-entropy of a class, binary cross-entropy of findings, or Dice and cross-entropy of masks;
    images of the first two are mirrored and shifted at random, volumes are not. beside: a further
    loss of every step, such as FedProx' distance.
    """
    masks, volumes = examples.form == "mask", examples.images.ndim == 5

    def loss(rows: Tensor) -> Tensor:
        some = examples.at(rows)
        if masks:
            each = mask_losses(network(some.images), some.targets, some.known)
        else:
            logits = network(some.images if volumes else augment(some.images, generator))
            each = record_losses(logits, some.targets, some.known, multi_label=examples.multi_label)
        value = each.mean()
        return value if beside is None else value + beside()

    return fit(network, loss, len(examples), schedule, generator, progress)


def parameter_count(network: nn.Module) -> int:
    """Numbers that are trained; the natural-image head of a `Plain` rests and is not counted."""
    return sum(p.numel() for name, p in network.named_parameters() if not name.startswith(_RESTING))


_RESTING = "network.natural."


def taught(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and running statistics of a network by name; counters and what rests left out."""
    return {
        name: tensor
        for name, tensor in network.state_dict().items()
        if tensor.is_floating_point() and not name.startswith(_RESTING)
    }

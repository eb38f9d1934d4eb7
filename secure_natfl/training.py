"""Training loops: public pre-training, personal models, distillation. Nothing here adds noise.

Losses are means over a batch; every private part of a loss is a sum over records, so that one
record never changes the loss of another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from secure_natfl.data.records import Form
from secure_natfl.models import Network

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all) during long work."""

_EVALUATION_BATCH = 256
_WARM = 0.2


@dataclass(frozen=True)
class Examples:
    """Images [N, ch, S, S] with targets in {0, 1}: [N, C] of images, [N, C, S, S] of masks.

    `known` has the shape of `targets` and is 0 where unknown. Volumes are [N, 1, D, S, S], their
    masks [N, C, D, S, S].
    """

    images: Tensor
    targets: Tensor
    known: Tensor
    multi_label: bool

    def __len__(self) -> int:
        return len(self.images)

    @property
    def form(self) -> Form:
        """One class of an image, several, or one of each pixel."""
        if self.targets.ndim > 2:
            return "mask"
        return "multi" if self.multi_label else "single"

    def at(self, rows: Tensor) -> Examples:
        """The examples in these rows."""
        return Examples(self.images[rows], self.targets[rows], self.known[rows], self.multi_label)


@dataclass(frozen=True)
class Naturals:
    """Labelled natural images: images [P, 1, H, W], labels [P]."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: epochs over the data, batch size, peak learning rate."""

    epochs: int
    batch: int
    rate: float
    decay: float = 0.02


def record_losses(logits: Tensor, targets: Tensor, known: Tensor, *, multi_label: bool) -> Tensor:
    """Loss of each record: logits, targets, known [..., C] → [...]. Unknown labels count nothing.

    Cross-entropy for single-label tasks, mean binary cross-entropy over known classes otherwise.
    """
    if not multi_label:
        return -(targets * functional.log_softmax(logits, -1) * known).sum(-1)
    each = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (each * known).sum(-1) / known.sum(-1).clamp_min(1)


def distillation_losses(
    student: Tensor, teacher: Tensor, temperature: float, *, multi_label: bool
) -> Tensor:
    """T²·KL(σ(teacher/T) ‖ σ(student/T)) of each row [..., C] → [...]; Σ of binary KL if multi."""
    if not multi_label:
        log_teacher = functional.log_softmax(teacher / temperature, -1)
        log_student = functional.log_softmax(student / temperature, -1)
        return temperature**2 * (log_teacher.exp() * (log_teacher - log_student)).sum(-1)
    target = torch.sigmoid(teacher / temperature)
    each = functional.binary_cross_entropy_with_logits(
        student / temperature, target, reduction="none"
    ) - functional.binary_cross_entropy(target, target, reduction="none")
    return temperature**2 * each.sum(-1)


def fit(
    network: nn.Module,
    loss: Callable[[Tensor], Tensor],
    examples: int,
    schedule: Schedule,
    generator: torch.Generator,
    progress: Progress | None = None,
) -> float:
    """AdamW with one warm cycle over `examples` rows; `loss(rows)` is the batch's scalar loss.

    Returns the mean loss of the last epoch. Does nothing and returns 0 for 0 epochs.
    """
    steps_per_epoch = max(1, examples // schedule.batch)
    if schedule.epochs == 0:
        return 0.0
    # A network's own dropout draws from torch's global stream, which others move on.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        last = _steps(network, loss, examples, schedule, generator, progress)
    tail = last[-steps_per_epoch:]
    return sum(tail) / len(tail)


def _steps(
    network: nn.Module,
    loss: Callable[[Tensor], Tensor],
    examples: int,
    schedule: Schedule,
    generator: torch.Generator,
    progress: Progress | None,
) -> list[float]:
    """The loss of every step."""
    steps_per_epoch = max(1, examples // schedule.batch)
    steps = schedule.epochs * steps_per_epoch
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=schedule.rate, weight_decay=schedule.decay
    )
    # A warm-up of a fifth has no step of its own where there are fewer than five.
    shift = 0.5 if steps * _WARM < 1 else 0.0
    cycle = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: _cycle((step + shift) / steps)
    )
    network.train()
    last: list[float] = []
    for step, rows in enumerate(_batches(examples, schedule, steps_per_epoch, generator)):
        optimiser.zero_grad(set_to_none=True)
        value = loss(rows)
        value.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        cycle.step()
        last.append(float(value.detach()))
        if progress is not None:
            progress(step + 1, steps)
    network.eval()
    return last


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image mirrored with probability ½, the batch shifted by up to 1/16 of its side."""
    reach = max(1, images.shape[-1] // 16)
    side = images.shape[-1]
    padded = functional.pad(images, (reach,) * 4, mode="reflect")
    top, left = torch.randint(0, 2 * reach + 1, (2,), generator=generator).tolist()
    shifted = padded[:, :, top : top + side, left : left + side]
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored, shifted.flip(-1), shifted)


@torch.no_grad()
def features_of(backbone: nn.Module, images: Tensor) -> Tensor:
    """Features [N, d] of a frozen backbone."""
    backbone.eval()
    return torch.cat([backbone(batch) for batch in torch.split(images, _EVALUATION_BATCH)])


@torch.no_grad()
def logits_of(network: Network, images: Tensor) -> Tensor:
    """X-ray logits [N, groups, C]."""
    network.eval()
    return torch.cat([network(batch)[0] for batch in torch.split(images, _EVALUATION_BATCH)])


@torch.no_grad()
def answers_of(network: Network, images: Tensor) -> tuple[Tensor, Tensor]:
    """X-ray logits [N, groups, C] and natural-image logits [N, C_n], in one pass."""
    network.eval()
    parts = [network(batch) for batch in torch.split(images, _EVALUATION_BATCH)]
    return torch.cat([x for x, _ in parts]), torch.cat([n for _, n in parts])


def _cycle(done: float) -> float:
    """Share of the peak rate: up over the first fifth, then down along a cosine."""
    if done < _WARM:
        return max(0.05, done / _WARM)
    return 0.5 * (1 + math.cos(math.pi * (done - _WARM) / (1 - _WARM)))


def _batches(
    examples: int, schedule: Schedule, steps_per_epoch: int, generator: torch.Generator
) -> Iterator[Tensor]:
    for _ in range(schedule.epochs):
        order = torch.randperm(examples, generator=generator)
        for step in range(steps_per_epoch):
            yield order[step * schedule.batch : (step + 1) * schedule.batch]

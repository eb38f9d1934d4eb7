"""A private teacher and a shared student of one site that learn from each other, in turns.

Source: FedMIC (arXiv 2407.02261), known from its abstract; the losses are those of its lineage,
FedKD (Wu et al. 2022, Nature Communications 13:2032). Both networks learn from labels, from each
other's decisions (KL) and from each other's representations (a linear map takes the student's
features to the teacher's), the more so the better both already do. FedKD moves both in one step.
Here one rests while the other learns: the student brings what all sites know, fresh from the
server, and would have forgotten much of it by the end of a step in common; and a site needs the
memory of one network's gradients. The teacher and the map never leave the site.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from secure_natfl.methods.plain_models import Plain
from secure_natfl.training import (
    Examples,
    Schedule,
    augment,
    distillation_losses,
    fit,
    record_losses,
)

_LARGEST_WEIGHT = 10.0  # both losses near 0 would let distillation drown the labels


class Pair(nn.Module):
    """The networks of one site: `teacher` and `bridge` are private, `student` is shared."""

    def __init__(self, teacher: Plain, student: Plain, generator: torch.Generator) -> None:
        super().__init__()
        self.teacher, self.student = teacher, student
        narrow, wide = student.network.features, teacher.network.features
        self.bridge = nn.Linear(narrow, wide, bias=False)
        std = float(narrow) ** -0.5
        nn.init.normal_(self.bridge.weight, std=std, generator=generator)

    def forward(self, images: Tensor) -> tuple[Answer, Answer]:
        """The teacher's and the student's answers; the student's features as the bridge maps them.

        images: [n, channels, H, W].
        """
        teacher, student = self.teacher.network, self.student.network
        seen, hidden = teacher.backbone(images), student.backbone(images)
        return (
            Answer(teacher.xray(seen), seen),
            Answer(student.xray(hidden), self.bridge(hidden)),
        )


@dataclass(frozen=True, eq=False)
class Answer:
    """Logits [n, C] and features [n, d] on one batch; d is the teacher's."""

    logits: Tensor
    features: Tensor

    def detached(self) -> Answer:
        """The same as a target: nothing is learned through it."""
        return Answer(self.logits.detach(), self.features.detach())


@dataclass(frozen=True)
class Lessons:
    """Which distillation is on: of decisions, of representations, or of both."""

    decisions: bool = True
    representations: bool = True


def adaptive_weight(teacher: Tensor, student: Tensor) -> Tensor:
    """a = 1 / (CE_T + CE_S), at most 10; a number, through which nothing is learned."""
    return (1 / (teacher + student).detach()).clamp_max(_LARGEST_WEIGHT)


def taught(pupil: Answer, guide: Answer, lessons: Lessons, *, multi_label: bool) -> Tensor:
    """KL(p_guide ‖ p_pupil) + the squared distance of features: the mean over a batch.

    KL is summed over classes and divided by the batch alone; the distance is the mean over the
    features. The guide is a target.
    """
    target = guide.detached()
    value = pupil.logits.new_zeros(())
    if lessons.decisions:
        each = distillation_losses(pupil.logits, target.logits, 1.0, multi_label=multi_label)
        value = value + each.mean()
    if lessons.representations:
        value = value + functional.mse_loss(pupil.features, target.features)
    return value


def dual_loss(teacher: Answer, student: Answer, batch: Examples, lessons: Lessons) -> Tensor:
    """L_T + L_S of one batch, L_T = CE_T + a·(KL(p_S ‖ p_T) + ‖h_T − W·h_S‖²), L_S alike.

    Each part reaches one network alone: whose weights rest, its own part is a constant.
    """
    multi_label = batch.multi_label
    ce_teacher, ce_student = (
        record_losses(answer.logits, batch.targets, batch.known, multi_label=multi_label).mean()
        for answer in (teacher, student)
    )
    weight = adaptive_weight(ce_teacher, ce_student)
    to_teacher = taught(teacher, student, lessons, multi_label=multi_label)
    to_student = taught(student, teacher, lessons, multi_label=multi_label)
    return ce_teacher + ce_student + weight * (to_teacher + to_student)


def learn(
    pair: Pair,
    who: Literal["teacher", "student"],
    examples: Examples,
    lessons: Lessons,
    schedule: Schedule,
    generator: torch.Generator,
) -> float:
    """Train one network of a pair, and the bridge, on a site's private examples, in place.

    The other is read and stays as it is, bit by bit. Called at a site: for the student before it
    sends, for the teacher after a student came back. Returns the mean loss of the last epoch.
    """

    def loss(rows: Tensor) -> Tensor:
        batch = examples.at(rows)
        teacher, student = pair(augment(batch.images, generator))
        return dual_loss(teacher, student, batch, lessons)

    rests = pair.student if who == "teacher" else pair.teacher
    rests.requires_grad_(False)
    try:
        return fit(pair, loss, len(examples), schedule, generator)
    finally:
        rests.requires_grad_(True)

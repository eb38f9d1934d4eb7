"""β: how much a teacher's answer to one natural image counts, from what the teacher itself knows.

All families lie in [0, 1]. They are private (a teacher's confidence tells of its patients), so
they travel inside the noised and encrypted answer, never beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Answer:
    """What M teachers say of n natural images.

    `xray` [M, n, C] and `natural` [M, n, C_n] are logits; `shares` [M, C] is how often each class
    occurs among a teacher's own records.
    """

    xray: Tensor
    natural: Tensor
    shares: Tensor
    multi_label: bool


Beta = Callable[[Answer, Tensor], Tensor]
"""(answer, natural labels [n]) → [M, n, 1] (per sample) or [M, n, C] (per sample × class)."""


def entropy(answer: Answer, labels: Tensor) -> Tensor:
    """1 − H/H_max of the X-ray answer: sure answers count (cf. DS-FL's entropy reduction)."""
    del labels
    if answer.multi_label:
        p = torch.sigmoid(answer.xray)
        h = -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)).mean(-1, keepdim=True) / math.log(2)
    else:
        p = functional.softmax(answer.xray, -1)
        h = -torch.xlogy(p, p).sum(-1, keepdim=True) / math.log(p.shape[-1])
    return (1 - h).clamp(0, 1)


def natural(answer: Answer, labels: Tensor) -> Tensor:
    """exp(−CE/2) of the natural head on the public label: images it knows count (cf. FedGEMS)."""
    log_p = functional.log_softmax(answer.natural, -1)
    right = log_p.gather(-1, labels.expand(len(log_p), -1).unsqueeze(-1))
    return (right / 2).exp()


def by_class(answer: Answer, labels: Tensor) -> Tensor:
    """Share of the class among the teacher's own records (FedIOD's client × class weight)."""
    del labels
    return answer.shares.unsqueeze(1).expand_as(answer.xray)


BETAS: dict[str, Beta | None] = {
    "uniform": None,
    "entropy": entropy,
    "natural": natural,
    "class": by_class,
}
"""`None`: every answer counts the same, and no denominators are sent."""

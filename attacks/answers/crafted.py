"""P1: proxies made by a malicious server so that the answers tell more of certain patients.

What is best in the space of features, the candidates' own, repeated so that noise averages out, is
`crafted_proxies`; `colliding_pictures` finds natural-looking images with such features. A protocol
whose plan carries the digest of one proxy set for all makes neither impossible, but visible: the
set must be the one that everybody signed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from torch import Tensor

from attacks.answers.laboratory import Floats, Knowledge

_FAITHFUL: Final = 0.02


def crafted_proxies(knowledge: Knowledge, targets: Floats) -> Floats:
    """Features [rounds, rows, d]: the targets' own [n, d] over and over, in the plan's number."""
    rounds, rows, width = knowledge.proxies.shape
    repeated = np.resize(np.arange(len(targets)), rounds * rows)
    return targets[repeated].reshape(rounds, rows, width)


def colliding_pictures(
    backbone: Callable[[Tensor], Tensor], natural: Tensor, wanted: Tensor, iterations: int
) -> Tensor:
    """Pictures like `natural` [n, H, W] in [0, 1] with features like `wanted` [n, d].

    By gradient descent on the distance of features, in units of the wanted ones' square, plus a
    fiftieth of the pictures' own (feature collisions, Shafahi et al. 2018, arXiv 1804.00792).
    """
    images = torch.logit(natural.clamp(0.02, 0.98)).detach().requires_grad_()
    optimiser = torch.optim.Adam([images], lr=0.05)
    unit = wanted.square().mean().clamp_min(1e-12)
    for _ in range(iterations):
        optimiser.zero_grad()
        shown = torch.sigmoid(images)
        apart = (backbone(shown) - wanted).square().mean() / unit
        unlike = (shown - natural).square().mean() / natural.var().clamp_min(1e-12)
        (apart + _FAITHFUL * unlike).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return torch.sigmoid(images).detach()

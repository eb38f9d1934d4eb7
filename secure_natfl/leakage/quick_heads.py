"""Heads under noise for a laboratory: `dp_training.train_head`, some fifty times faster.

The same steps with the same noise where every record is a unit of its own. A record's gradient is
an outer product, so that two norms tell how far it is clipped, and a step is one product of
matrices. It clips in floating point and charges nothing: no head that leaves a site is made so.
"""

from __future__ import annotations

import torch
from torch import Tensor

from protocols.chain import RandomBytes
from protocols.dp_sgd import DpSgd, poisson_sample
from protocols.sampler import discrete_gaussian
from secure_natfl.dp_training import calm
from secure_natfl.training import record_losses
from secure_natfl.unit_gradients import Unit


def quick_head(
    start: Tensor, rows: Unit, plan: DpSgd, rate: float, random: RandomBytes, *, multi_label: bool
) -> Tensor:
    """Weights float64[C, d + 1] after all steps of `plan` from `start`, likewise.

    rows: inputs [n, d + 1] in natural coordinates, targets and known [n, C]; each row is a unit.
    rate: in clips, as of a `Recipe` without momentum, average and views. random: of the samples
    and of the noise, read as `DpSgd` reads it.
    """
    inputs, targets, known = (part.double() for part in rows)
    weights, lengths = start.double(), inputs.norm(dim=1)
    stride, grid = calm(rate, plan) / plan.expected, plan.clip_norm / plan.clip_int
    for _ in range(plan.steps):
        some = torch.from_numpy(poisson_sample(len(inputs), plan.rate, random))
        logits = (inputs[some] @ weights.T).requires_grad_()
        lost = record_losses(logits, targets[some], known[some], multi_label=multi_label)
        (residual,) = torch.autograd.grad(lost.sum(), logits)
        norms = residual.norm(dim=1) * lengths[some]
        kept = (plan.clip_norm / norms).clamp_max(1.0)  # infinite where a gradient is zero
        noise = discrete_gaussian(weights.numel(), plan.sigma_int, random)
        total = (residual * kept[:, None]).T @ inputs[some]
        total += torch.from_numpy(noise).double().view_as(total) * grid
        weights = weights - stride * total
    return weights

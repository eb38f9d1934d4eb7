"""Per-FedAvg: learning a shared start from which a few steps on own images are enough.

The shared weights θ are moved to lower f(θ − α∇f(θ)), a site's loss *after* one step of its own,
in place of f(θ) (Fallah, Mokhtari and Ozdaglar 2020, "Personalized Federated Learning with
Theoretical Guarantees", Algorithm 1). Its gradient is (I − α∇²f(θ))·∇f(θ'), with θ' = θ − α∇f(θ);
the first-order form leaves the Hessian out, the Hessian-free form takes its product with ∇f(θ')
from two more gradients (there, §5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from protocols.errors import ModelError

Loss = Callable[[Tensor], Tensor]
"""Rows of a site's examples [n] → their mean loss under the network as it is."""

Order = Literal["first", "hessian-free"]

_PROBE = 1e-2  # L2 length of the step that the Hessian's product is measured over


@dataclass(frozen=True)
class Meta:
    """inner: α, the step that a site takes for itself. order: which form of the gradient."""

    inner: float
    order: Order = "first"


def meta_gradient(network: nn.Module, loss: Loss, draws: Sequence[Tensor], meta: Meta) -> float:
    """Put the gradient of the loss after one own step into `.grad`; the weights stay what they are.

    draws: rows of three independent batches: for the own step, for the gradient after it, and for
    the Hessian (which the first-order form leaves unread). Returns the loss after the own step.
    Called once per local step; an optimiser then moves the weights by `.grad`.
    """
    own, after, bend = draws
    weights = [p for p in network.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in weights]
    _, step = _gradient(weights, loss, own)
    _place(weights, start, step, -meta.inner)
    value, found = _gradient(weights, loss, after)
    if meta.order == "hessian-free":
        curved = _hessian_product(weights, start, loss, bend, found)
        found = [g - meta.inner * c for g, c in zip(found, curved, strict=True)]
    _place(weights, start)
    for parameter, gradient in zip(weights, found, strict=True):
        parameter.grad = gradient
    return value


def adapt(
    network: nn.Module, loss: Loss, draws: Iterator[Tensor], steps: int, rate: float
) -> Iterator[int]:
    """`steps` own steps of plain gradient descent, in place; yields the number done, from 0.

    Between two steps the caller may look at the network, as a validation part does.
    """
    weights = [p for p in network.parameters() if p.requires_grad]
    yield 0
    for done in range(steps):
        _, gradient = _gradient(weights, loss, next(draws))
        _place(weights, [p.detach().clone() for p in weights], gradient, -rate)
        yield done + 1


def pairs(examples: int, batch: int, generator: torch.Generator) -> Iterator[list[Tensor]]:
    """Without end: three draws of up to `batch` rows, the first two without a row in common."""
    if examples < 2:
        raise ModelError(
            "one training image is too few for Per-FedAvg",
            why="the own step and the gradient after it need an image each",
            fix="leave the site out, or join it with another",
        )
    size = min(batch, examples // 2)
    while True:
        order = torch.randperm(examples, generator=generator)
        bend = torch.randperm(examples, generator=generator)[:size]
        yield [order[:size], order[size : 2 * size], bend]


def batches(examples: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Without end: rows of one batch after the other, reshuffled after every pass."""
    while True:
        order = torch.randperm(examples, generator=generator)
        whole = order[: max(batch, examples - examples % batch)]
        yield from torch.split(whole, batch)


def _hessian_product(
    weights: Sequence[nn.Parameter],
    start: Sequence[Tensor],
    loss: Loss,
    rows: Tensor,
    direction: Sequence[Tensor],
) -> list[Tensor]:
    """∇²f(θ)·v as (∇f(θ + δv) − ∇f(θ − δv))/2δ, with δ‖v‖ of a fixed length."""
    length = torch.sqrt(sum((v.double().square().sum() for v in direction), torch.zeros(())))
    if not length > 0:
        return [torch.zeros_like(v) for v in direction]
    delta = _PROBE / float(length)
    _place(weights, start, direction, delta)
    _, ahead = _gradient(weights, loss, rows)
    _place(weights, start, direction, -delta)
    _, behind = _gradient(weights, loss, rows)
    return [(a - b) / (2 * delta) for a, b in zip(ahead, behind, strict=True)]


def _gradient(
    weights: Sequence[nn.Parameter], loss: Loss, rows: Tensor
) -> tuple[float, list[Tensor]]:
    """The loss and its gradient; a weight that the loss does not reach has gradient 0."""
    value = loss(rows)
    found = torch.autograd.grad(value, list(weights), allow_unused=True, materialize_grads=True)
    return float(value.detach()), list(found)


@torch.no_grad()
def _place(
    weights: Sequence[nn.Parameter],
    start: Sequence[Tensor],
    direction: Sequence[Tensor] | None = None,
    step: float = 0.0,
) -> None:
    """Set every weight to its start, plus `step` along a direction."""
    for i, parameter in enumerate(weights):
        parameter.copy_(start[i])
        if direction is not None:
            parameter.add_(direction[i], alpha=step)

"""What one training step asks of a site's machine: weights, activations, arithmetic.

Counted on one real step, not estimated from shapes, and the same on every machine: the figures for
whether a small hospital can take part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class StepCost:
    """Of one step: weights that train and that rest, bytes that wait for the backward pass, FLOPs.

    activation_bytes: tensors kept between forward and backward pass, each storage once, without
    the weights. flops: of matrix products and convolutions, forward and backward; a multiplication
    with its addition counts as two.
    """

    parameters: int
    resting: int
    activation_bytes: int
    flops: int

    @property
    def memory_bytes(self) -> int:
        """Weights, gradients and Adam's two moments in 32 bits, resting weights, activations."""
        return 16 * self.parameters + 4 * self.resting + self.activation_bytes


def step_cost(network: nn.Module, loss: Callable[[], Tensor]) -> StepCost:
    """Count one forward and backward pass of `loss`, which reads `network`. Gradients are cleared.

    Called by benchmarks; nothing is trained.
    """
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    waiting: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            waiting[storage.data_ptr()] = storage.nbytes()
        return tensor

    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
    network.zero_grad(set_to_none=True)
    sizes = [(p.numel(), p.requires_grad) for p in network.parameters()]
    trained = sum(size for size, trains in sizes if trains)
    rest = sum(size for size, trains in sizes if not trains)
    return StepCost(trained, rest, sum(waiting.values()), int(counter.get_total_flops()))

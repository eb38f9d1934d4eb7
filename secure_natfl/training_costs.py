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
    """Of one step: trained weights, bytes that wait for the backward pass, operations.

    activation_bytes: tensors kept between forward and backward pass, each storage once, without
    the weights. flops: of matrix products and convolutions, forward and backward; a multiplication
    with its addition counts as two.
    """

    parameters: int
    activation_bytes: int
    flops: int

    @property
    def memory_bytes(self) -> int:
        """Weights, gradients and Adam's two moments in 32 bits, and the activations."""
        return 16 * self.parameters + self.activation_bytes


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
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return StepCost(trained, sum(waiting.values()), int(counter.get_total_flops()))

"""What a training step costs, against what can be counted by hand."""

import torch
from torch import nn

from secure_natfl.methods.training_costs import step_cost


def test_a_linear_layer_costs_what_it_costs_by_hand():
    layer, images = nn.Linear(8, 3), torch.ones(5, 8)
    found = step_cost(layer, lambda: layer(images).sum())
    assert (found.parameters, found.resting) == (27, 0)
    # Forward, and backward to the weights; images need no gradient.
    assert found.flops == 2 * 2 * 5 * 8 * 3
    assert found.activation_bytes == 4 * 5 * 8
    assert found.memory_bytes == 16 * 27 + 160
    assert layer.weight.grad is None


def test_what_rests_keeps_no_activations():
    both = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])
    images = torch.ones(5, 8)

    def loss() -> torch.Tensor:
        return both[0](images).tanh().sum() + both[1](images).tanh().sum()

    whole = step_cost(both, loss)
    both[1].requires_grad_(False)
    half = step_cost(both, loss)
    assert half.resting == half.parameters == 72
    assert half.activation_bytes < whole.activation_bytes
    assert half.flops < whole.flops

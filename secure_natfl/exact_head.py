"""A linear X-ray head without noise: what `dp_training.train_head` comes to where none is added."""

from __future__ import annotations

import torch
from torch import Tensor

from secure_natfl.models import Network
from secure_natfl.natural_coordinates import natural_coordinates
from secure_natfl.training import record_losses
from secure_natfl.unit_gradients import Unit

_ITERATIONS = 200  # a hundred do


def exact_head(
    network: Network, open_features: Tensor, rows: Unit, ridge: float, *, multi_label: bool
) -> None:
    """The X-ray head that `train_head` would come to without noise or clip, in place.

    Logistic regression in the same coordinates on all `rows` (features, targets, known); `ridge`
    times the squared weights stands for a descent that ends early. For runs without noise.
    """
    space = natural_coordinates(open_features)
    inputs = space.inputs(rows[0])
    targets, known = (part.double() for part in rows[1:])
    weights = torch.zeros(network.classes, inputs.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        each = record_losses(inputs @ weights.T, targets, known, multi_label=multi_label)
        value = each.mean() + ridge * weights.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        weight, bias = space.outward(weights)
        network.xray.weight.copy_(weight)
        network.xray.bias.copy_(bias)

"""What two keys change of federated averaging: FedProx' distance, and FedBN's own layers.

FedProx: Li et al. 2020 (arXiv 1812.06127), the second term of its local objective. FedBN: Li et al.
2021 (arXiv 2102.07623), here for every kind of normalisation that has parameters or statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn


def proximal_term(network: nn.Module, names: Collection[str], mu: float) -> Callable[[], Tensor]:
    """µ/2·‖w − w_now‖² over the named parameters, w_now being what they are at this call.

    The result is asked in every step of the training that follows.
    """
    anchors = {name: p.detach().clone() for name, p in network.named_parameters()}

    def distance() -> Tensor:
        moved = [
            (p - anchors[name]).square().sum()
            for name, p in network.named_parameters()
            if name in names
        ]
        return mu / 2 * torch.stack(moved).sum()

    return distance


def norm_names(network: nn.Module) -> dict[str, str]:
    """Names of all tensors of normalisation layers, statistics among them, each with its kind."""
    found = {}
    for prefix, module in network.named_modules():
        kind = type(module).__name__
        own = next(module.parameters(recurse=False), None) is not None
        if own and "Norm" in kind and "NormFree" not in kind:
            for name, tensor in module.state_dict(prefix=f"{prefix}.").items():
                if tensor.is_floating_point():
                    found[name] = kind
    return found

"""M small heads on one frozen public backbone, each trained on its own shard: the speaking models.

A shard's head must depend on no other shard: parameters, losses and Adam moments of the M heads
stand side by side in batched tensors, the objective is a sum over heads, and every tensor shape
is public (the capacity of a shard never depends on who is in it), so that even the rounding of
one head's arithmetic is untouched by another head's patients.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class ShardBatch:
    """The private records of one site as padded shards, on frozen public features.

    `features` float32 [M, L, d]; `targets` float32 [M, L, C] in {0, 1}; `known` float32 [M, L, C],
    0 where padded or where the label is unknown. L is the public capacity of a shard.
    """

    features: Tensor
    targets: Tensor
    known: Tensor


@dataclass(frozen=True)
class PublicBatch:
    """Labelled natural images as features: `features` [P, d], `labels` [P] int64."""

    features: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Knowledge:
    """A released answer on public images: `features` [n, d], `logits` [n, C] centred."""

    features: Tensor
    logits: Tensor


@dataclass(frozen=True)
class HeadLoss:
    """Weights of the local objective (all ≥ 0; 0 switches a part off)."""

    natural: float
    alignment: float
    distillation: float
    decay: float


class ShardHeads(nn.Module):
    """M heads d → hidden → (C X-ray logits, C_n natural logits), from one public initialisation."""

    def __init__(self, shards: int, trunk: nn.Linear, natural: nn.Linear, classes: int) -> None:
        super().__init__()
        hidden = trunk.out_features

        def copies(tensor: Tensor) -> nn.Parameter:
            return nn.Parameter(tensor.detach().unsqueeze(0).repeat(shards, *[1] * tensor.dim()))

        self.trunk_weight = copies(trunk.weight.T.contiguous())
        self.trunk_bias = copies(trunk.bias.unsqueeze(0))
        self.natural_weight = copies(natural.weight.T.contiguous())
        self.natural_bias = copies(natural.bias.unsqueeze(0))
        self.xray_weight = nn.Parameter(torch.zeros(shards, hidden, classes))
        self.xray_bias = nn.Parameter(torch.zeros(shards, 1, classes))

    def embed(self, features: Tensor) -> Tensor:
        """Features [B, d] or [M, B, d] → hidden [M, B, h]."""
        if features.dim() == 2:
            features = features.unsqueeze(0).expand(self.trunk_weight.shape[0], -1, -1)
        return functional.gelu(torch.baddbmm(self.trunk_bias, features, self.trunk_weight))

    def xray(self, hidden: Tensor) -> Tensor:
        """Hidden [M, B, h] → X-ray logits [M, B, C]."""
        return torch.baddbmm(self.xray_bias, hidden, self.xray_weight)

    def natural(self, hidden: Tensor) -> Tensor:
        """Hidden [M, B, h] → natural-image logits [M, B, C_n]."""
        return torch.baddbmm(self.natural_bias, hidden, self.natural_weight)

"""A small network for small images on a CPU, with group normalisation: weights are all it has.

Named in a configuration as "secure_natfl.methods.small_network:small".
"""

from __future__ import annotations

from torch import nn

_WIDTH = 16
_GROUPS = 8


def small() -> nn.Module:
    """Grey images [n, 1, S, S] → features [n, 64], over 60,000 weights.

    Four 3 × 3 convolutions of 16, 32, 64 and 64 channels, the first three with stride 2.
    """
    return nn.Sequential(
        _block(1, _WIDTH, 2),
        _block(_WIDTH, 2 * _WIDTH, 2),
        _block(2 * _WIDTH, 4 * _WIDTH, 2),
        _block(4 * _WIDTH, 4 * _WIDTH, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def _block(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.GroupNorm(_GROUPS, outputs),
        nn.ReLU(),
    )

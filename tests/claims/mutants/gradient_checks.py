"""The checks that a network passes before it trains; True if they refuse."""

import warnings

import torch

from protocols.errors import ModelError
from secure_natfl.unit_independence import check_independent
from secure_natfl.unit_oracle import check_path


def units(*counts):
    """Units of so many images [3, 16, 16] each, with labels of three classes."""
    generator = torch.Generator().manual_seed(5)
    return [
        (
            torch.randn(count, 3, 16, 16, generator=generator),
            torch.eye(3)[torch.randint(3, (count,), generator=generator)],
            torch.ones(count, 3),
        )
        for count in counts
    ]


def is_not_the_gradient(path, network, loss):
    """The gradients of `path` are not those of the oracle, in some layout."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook")
        try:
            check_path("tried", path, network(), loss, units(1, 2))
        except ModelError:
            return True
    return False


def couples_images(network, loss):
    """An image's loss or gradient depends on the other images of its batch."""
    try:
        check_independent(network(), loss, units(1, 2))
    except ModelError:
        return True
    return False

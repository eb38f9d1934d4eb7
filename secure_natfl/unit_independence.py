"""Whether a loss and a network treat every image on its own: sensitivity rests on nothing else.

Clipping one unit's gradient bounds what the unit can do only if it appears in no other unit's
gradient. A loss that couples the images of a batch breaks that without any error, so it is looked
for in numbers, in float64, on a probe of public images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from protocols.errors import ModelError
from secure_natfl.surgery import trainable
from secure_natfl.unit_gradients import Loss, Unit
from secure_natfl.unit_oracle import in_double, unit_in_double

_COUPLED = 1e-5  # relative; alignment counts in float32


def check_independent(network: nn.Module, loss: Loss, probe: Sequence[Unit]) -> None:
    """Return if each row's loss and gradient are its own, else ModelError with the worst ratio.

    Catches what no sensitivity survives: losses scaled or weighted by a mean over the batch,
    contrast between rows, statistics in the network, random layers, changing buffers.
    """
    double, rows = in_double(network).train(), [unit_in_double(row) for row in _rows(probe)]
    before = {name: buffer.clone() for name, buffer in double.named_buffers()}
    batch = tuple(torch.cat(column) for column in zip(*rows, strict=True))
    together = loss(double, batch)
    if together.shape != (len(rows),):
        raise ModelError(
            f"a loss of shape {tuple(together.shape)} for {len(rows)} images",
            why="only a loss per image shows that it depends on one image alone",
            fix="return the losses of the images, without mean or sum",
        )
    with torch.no_grad():
        again = loss(double, batch)
        alone = torch.cat([loss(double, row) for row in rows])
    _compare(together, again, "the loss changes from one run to the next")
    _compare(together, alone, "an image's loss depends on the other images of its batch")
    parameters = list(trainable(double).values())
    for i in (0, len(rows) - 1):
        within = _gradient(together[i], parameters)
        single = _gradient(loss(double, rows[i])[0], parameters)
        _compare(within, single, "an image's gradient depends on the other images of its batch")
    for name, buffer in double.named_buffers():
        if not torch.equal(buffer, before[name]):
            raise ModelError(
                "a pass in training mode changes it",
                where=f"buffer {name}",
                why="it carries one unit's images into the gradients of others",
                fix="pass the network through surgery.fitted, or freeze the buffer",
            )


def _rows(probe: Sequence[Unit]) -> list[Unit]:
    """Single rows of the probe, two or more, or ModelError."""
    rows = [tuple(t[i : i + 1] for t in unit) for unit in probe for i in range(len(unit[0]))]
    if len(rows) < 2 or len(probe) < 2:
        raise ModelError(
            "a probe of less than two images",
            why="dependence between images would go unseen",
            fix="give three public units, one of them with several images",
        )
    return rows


def _compare(first: Tensor, second: Tensor, what: str) -> None:
    scale = float(second.detach().norm())
    off = float((first - second).detach().norm())
    if not off <= _COUPLED * scale:
        raise ModelError(
            what,
            why=f"{off / max(scale, 1e-300):.1e} of it",
            fix="let each image's loss be a function of that image and of public values alone; "
            "take batch normalisation and dropout out (surgery.fitted)",
        )


def _gradient(value: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    found = torch.autograd.grad(
        value, parameters, retain_graph=True, materialize_grads=True, allow_unused=True
    )
    return torch.cat([part.reshape(-1) for part in found])

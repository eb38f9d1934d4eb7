"""The oracle: gradients of units by torch.func in float64, against which every path is held.

It runs on a probe, a few units of public images with labels of any kind, shaped like the private
ones: in every memory layout, in float64 and in the type of training. A path that is off does not
train: in clipped and noised gradients an error leaves no other trace.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Final

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

from protocols.errors import ModelError
from secure_natfl.surgery import trainable
from secure_natfl.unit_gradients import Loss, Path, Unit

# Of the norm: median and most. In float32 a unit falls on the other side of a ReLU's kink at times.
_WRONG = (1e-4, 1e-4)
_WRONG_TRAINING = (1e-3, 5e-2)
# A unit that the network is sure of has a gradient of next to nothing, most of it rounding: it is
# held to what this share of the probe's largest gradient allows.
_SMALL = 1e-3


def check_path(
    name: str,
    path: Path,
    network: nn.Module,
    loss: Loss,
    probe: Sequence[Unit],
    truth: Sequence[Tensor] | None = None,
) -> None:
    """Return if `path` gives the gradients of torch.func for every unit in every layout.

    `truth`: what `oracle` gave in float64, to save asking again. ModelError names the path, the
    layout, the parameter that is furthest off and the ratio of norms.
    """
    double = in_double(network).train()
    units = [unit_in_double(unit) for unit in probe]
    truth = oracle(double, loss, units) if truth is None else truth
    kind = str(next(iter(trainable(network).values())).dtype).removeprefix("torch.")
    # Kernels and the layouts they choose differ by type, so that both must be seen.
    for made, rows, named, limits in (
        (double, units, "float64", _WRONG),
        (network, probe, kind, _WRONG_TRAINING),
    ):
        for layout, laid in LAYOUTS.items():
            placed = [tuple(laid(tensor) for tensor in unit) for unit in rows]
            found = collected(name, path, copy.deepcopy(made).train(), loss, placed)
            found = [gradient.double() for gradient in found]
            _judge(name, f"{named}, {layout}", found, truth, double, limits)


def oracle(network: nn.Module, loss: Loss, units: Sequence[Unit]) -> list[Tensor]:
    """Gradients by torch.func, a unit at a time, with no hook on any layer."""
    whole = _Lossy(network, loss)
    weights = {name: p.detach() for name, p in trainable(whole).items()}

    def value(weights: dict[str, Tensor], unit: Unit) -> Tensor:
        found: Tensor = functional_call(whole, weights, unit)
        return found

    def one(unit: Unit) -> Tensor:
        if not len(unit[0]):
            return torch.cat([torch.zeros_like(w).reshape(-1) for w in weights.values()])
        return torch.cat([g.detach().reshape(-1) for g in grad(value)(weights, unit).values()])

    return [one(unit) for unit in units]


class _Lossy(nn.Module):
    """The mean loss of a unit as a module, for functional_call."""

    def __init__(self, network: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.network, self._loss = network, loss

    def forward(self, *unit: Tensor) -> Tensor:
        return self._loss(self.network, unit).mean()


def _strided(tensor: Tensor) -> Tensor:
    """The same values, every second one of a tensor twice as long."""
    return torch.stack([tensor, torch.zeros_like(tensor)], -1)[..., 0]


def _channels_last(tensor: Tensor) -> Tensor:
    images = tensor.dim() == 4
    return tensor.contiguous(memory_format=torch.channels_last) if images else tensor


LAYOUTS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "contiguous": Tensor.contiguous,
    "channels_last": _channels_last,
    "not contiguous": _strided,
}


def collected(
    name: str, path: Path, network: nn.Module, loss: Loss, units: Sequence[Unit]
) -> list[Tensor]:
    """Copies of a path's gradients; whatever a library raises on the way becomes a ModelError."""
    try:
        found = [gradient.clone() for gradient in path(network, loss, units)]
    except ModelError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        raise ModelError(
            f'the path "{name}" cannot take this network',
            why=str(error).splitlines()[0][:200],
            fix='use the path "loop"',
        ) from None
    if len(found) != len(units):
        raise ModelError(f'the path "{name}" gives {len(found)} gradients for {len(units)} units')
    return found


def _judge(
    name: str,
    circumstances: str,
    found: Sequence[Tensor],
    truth: Sequence[Tensor],
    network: nn.Module,
    limits: tuple[float, float],
) -> None:
    """ModelError unless the median unit is within the first limit, and every one in the second."""
    least = _SMALL * max(float(right.norm()) for right in truth)
    errors = [_error(gradient, right, least) for gradient, right in zip(found, truth, strict=True)]
    worst = max(range(len(errors)), key=errors.__getitem__)
    told = [error for error, right in zip(errors, truth, strict=True) if right.any()]
    if median(told or errors) <= limits[0] and errors[worst] <= limits[1]:
        return
    ratio = float(found[worst].norm()) / max(float(truth[worst].norm()), 1e-300)
    raise ModelError(
        f'the path "{name}" gives wrong gradients',
        where=_furthest(found[worst], truth[worst], network),
        why=f"{circumstances}: {errors[worst]:.1e} of the norm off, "
        f"norm {ratio:.3f} times the right one",
        fix='use the path "loop"',
    )


def _error(gradient: Tensor, right: Tensor, least: float) -> float:
    """Distance in norms of the right one, or in `least` where that is larger.

    Infinite for another size, NaN, or where 0 is right and something else is found.
    """
    if len(gradient) != len(right):
        return math.inf
    off, scale = float((gradient - right).norm()), float(right.norm())
    if off == 0:
        return 0.0
    return off / max(scale, least) if scale and math.isfinite(off) else math.inf


def _furthest(gradient: Tensor, right: Tensor, network: nn.Module) -> str:
    """The parameter whose part of the gradient is off by most, in relation to its own size."""
    if len(gradient) != len(right):
        return f"{len(gradient)} values for {len(right)} parameters"
    named = trainable(network)
    sizes = [p.numel() for p in named.values()]
    parts = zip(named, torch.split(gradient, sizes), torch.split(right, sizes), strict=True)
    off = {name: float((a - b).norm() / b.norm().clamp_min(1e-12)) for name, a, b in parts}
    return f"parameter {max(off, key=lambda name: off[name])}"


def in_double(network: nn.Module) -> nn.Module:
    """A copy of `network` in float64."""
    return copy.deepcopy(network).double()


def unit_in_double(unit: Unit) -> Unit:
    """The unit in float64; integers stay."""
    return tuple(t.double() if t.is_floating_point() else t for t in unit)

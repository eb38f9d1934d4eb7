"""The gradient of one unit (patient, image or client), by three ways and a short cut.

A unit is a tuple of tensors with one row per image; its gradient is that of the mean loss of its
rows, flat, over the trainable parameters in order. Losses are one per row: what they may depend on
is checked by `unit_independence` before any path trains.

- loop: autograd on one unit at a time. Takes every network, and the least memory.
- hooks: Opacus' GradSampleModule on a few images at a time (Yousefpour et al. 2021).
- outer: closed form of a linear layer under `RecordLoss`: no autograd at all.
- ghost: norms without gradients, and the clipped sum by a weighted second pass (Li et al. 2022;
  Bu et al. 2023). `Descent` clips single gradients itself, in integers, so ghost never trains
  under it; it serves to look at norms, on public data, before a clip is chosen.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from opacus.grad_sample import (  # type: ignore[import-untyped]
    GradSampleModule,
    GradSampleModuleFastGradientClipping,
)
from torch import Tensor, nn

from protocols.errors import ModelError
from secure_natfl.alignment import Alignment
from secure_natfl.models import Network
from secure_natfl.surgery import OutOfPlace, check_untied, contiguous_inputs, trainable
from secure_natfl.training import record_losses

Unit = tuple[Tensor, ...]
"""Tensors whose rows are one unit's images, targets and so on; there may be no row."""

Loss = Callable[[nn.Module, Unit], Tensor]
"""Rows [n, …] → one loss per row [n], each a function of its own row."""

Path = Callable[[nn.Module, Loss, Iterable[Unit]], Iterator[Tensor]]
"""Gives one gradient [size] for every unit, in order; the next one may overwrite it.

A fresh vector for each unit would cost a large network as much time as the gradient itself.
"""

_IMAGES = 16  # at once in hooks: enough to fill the machine, and a bound on memory
_ROWS = 256  # at once in the closed form, whose rows are features


@dataclass(frozen=True)
class RecordLoss:
    """Supervision of each record, plus `weight` times its alignment to public statistics.

    Rows are (inputs, targets [n, C], known [n, C]); inputs are images for a `Network` or for any
    module that answers with logits [n, C], and frozen features for a linear layer.
    """

    multi_label: bool
    alignment: Alignment | None = None
    weight: float = 0.0

    def __call__(self, network: nn.Module, unit: Unit) -> Tensor:
        """One loss per row; what it reads of other records is nothing."""
        inputs, targets, known = unit
        if not isinstance(network, Network):
            return record_losses(network(inputs), targets, known, multi_label=self.multi_label)
        features = network.backbone(inputs)
        logits = network.xray(features)
        each = record_losses(logits, targets, known, multi_label=self.multi_label)
        if self.alignment is not None:
            each = each + self.weight * self.alignment(features.float())
        return each


def loop(network: nn.Module, loss: Loss, units: Iterable[Unit]) -> Iterator[Tensor]:
    """One backward pass per unit."""
    parameters = list(trainable(network).values())
    gradient = _Flat(parameters)
    for unit in units:
        if len(unit[0]):
            value = loss(network, unit).mean()
            yield gradient.filled(torch.autograd.grad(value, parameters, allow_unused=True))
        else:
            yield gradient.filled([None] * len(parameters))


def hooks(network: nn.Module, loss: Loss, units: Iterable[Unit]) -> Iterator[Tensor]:
    """Opacus' gradients of single images, averaged within each unit.

    Memory grows with 16 images (or the largest unit) times the parameters. A tied or functional
    weight, or a layer with buffers, is an error: of this module, of Opacus or of autograd. How a
    gradient is rounded may depend on the images beside it, near 1e-7 of it; in the loop it cannot.
    """
    parameters = list(trainable(network).values())
    gradient = _Flat(parameters)
    with _hooked(network, GradSampleModule) as wrapped:
        for chunk in _chunks(units):
            batch = _joined(chunk)
            if len(batch[0]):
                _backward(_losses(network, loss, batch))
            samples = [_sample(p, len(batch[0])) for p in parameters]
            wrapped.zero_grad(set_to_none=True)
            start = 0
            for unit in chunk:
                rows = slice(start, start := start + len(unit[0]))
                yield gradient.filled(
                    [None if s is None or not len(unit[0]) else s[rows].mean(0) for s in samples]
                )


def outer(network: nn.Module, loss: Loss, units: Iterable[Unit]) -> Iterator[Tensor]:
    """Logistic regression: residualᵀ·features, the outer products of a unit's rows added up.

    ModelError unless `network` is a linear layer and `loss` plain supervision of its outputs.
    """
    if type(network) is not nn.Linear or not isinstance(loss, RecordLoss) or loss.alignment:
        raise ModelError(
            "has no closed-form gradient", where=type(network).__name__, fix='use the path "loop"'
        )
    names = tuple(trainable(network))
    for chunk in _chunks(units, _ROWS):
        yield from _outer(network, names, chunk, loss.multi_label)


@torch.no_grad()
def _outer(
    network: nn.Linear, names: Sequence[str], chunk: Sequence[Unit], multi_label: bool
) -> Tensor:
    """Gradients [U, size] of the units of a chunk, with no sum over more than one row's values.

    How a matrix product is rounded may depend on its other rows. Products and sums of each row by
    itself do not, and a unit's rows are added up one by one.
    """
    inputs, targets, known = _joined(chunk)
    logits = (inputs.unsqueeze(1) * network.weight).sum(-1)
    if network.bias is not None:
        logits = logits + network.bias
    counts = torch.tensor([len(unit[0]) for unit in chunk])
    unit = torch.arange(len(chunk)).repeat_interleave(counts)
    residuals = _residuals(logits, targets, known, multi_label) / counts[unit].unsqueeze(1)
    rows = {"weight": residuals.unsqueeze(2) * inputs.unsqueeze(1), "bias": residuals}
    found = [rows[name].flatten(1) for name in names]
    return torch.cat(
        [part.new_zeros(len(chunk), part.shape[1]).index_add_(0, unit, part) for part in found], 1
    )


PATHS: Final[Mapping[str, Path]] = {"loop": loop, "hooks": hooks, "outer": outer}


def ghost_norms(network: nn.Module, loss: Loss, units: Iterable[Unit]) -> Tensor:
    """Gradient norms [U] of units of one image each; ModelError for units of several.

    The norm of a mean over images is not among what ghost clipping can know.
    """
    found = [_ghost(network, loss, chunk, None)[0] for chunk in _chunks(units)]
    return torch.cat(found) if found else torch.zeros(0)


def ghost_clipped_sum(
    network: nn.Module, loss: Loss, units: Iterable[Unit], clip_norm: float
) -> Tensor:
    """Sum [size] of the units' gradients, each scaled down to `clip_norm`: in floats, no noise."""
    parameters = list(trainable(network).values())
    total = torch.zeros_like(_Flat(parameters).vector)
    for chunk in _chunks(units):
        total += _ghost(network, loss, chunk, clip_norm)[1]
    return total


def _ghost(
    network: nn.Module, loss: Loss, chunk: Sequence[Unit], clip_norm: float | None
) -> tuple[Tensor, Tensor]:
    if any(len(unit[0]) != 1 for unit in chunk):
        raise ModelError("ghost clipping takes units of one image", fix='use the path "loop"')
    parameters = list(trainable(network).values())
    with _hooked(network, GradSampleModuleFastGradientClipping) as wrapped:
        losses = _losses(network, loss, _joined(chunk))
        _backward(losses)
        each = [p._norm_sample for p in parameters if hasattr(p, "_norm_sample")]
        norms = torch.stack(each).norm(dim=0)
        wrapped.disable_hooks()
        if clip_norm is None:
            return norms, norms[:0]
        weights = (clip_norm / norms).clamp(max=1.0)
        network.zero_grad(set_to_none=True)
        _backward(weights * losses)
        return norms, _Flat(parameters).filled([p.grad for p in parameters])


@contextmanager
def _hooked(network: nn.Module, kind: type[GradSampleModule]) -> Iterator[GradSampleModule]:
    """Opacus' hooks on the layers of `network` while entered; `network` itself is called."""
    check_untied(network)
    if not network.training:
        raise ModelError("is in evaluation mode", why="Opacus then sees nothing", fix="train()")
    with contiguous_inputs(network):
        wrapped = kind(network, loss_reduction="sum", strict=True)
        try:
            yield wrapped
        finally:
            for layer in network.modules():
                for left in ("activations", "max_batch_len"):
                    layer.__dict__.pop(left, None)
            wrapped.cleanup()
            network.zero_grad(set_to_none=True)


def _losses(network: nn.Module, loss: Loss, rows: Unit) -> Tensor:
    with OutOfPlace():
        return loss(network, rows)


def _backward(losses: Tensor) -> None:
    """A pass through Opacus' hooks; the graph is kept for a second one."""
    with warnings.catch_warnings():
        # Images need no gradient, and functorch is slow on attention: neither is news here.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        warnings.filterwarnings("ignore", message="There is a performance drop")
        losses.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]


def _chunks(units: Iterable[Unit], most: int = _IMAGES) -> Iterator[list[Unit]]:
    """Units in order, together of at most `most` rows unless one alone has more."""
    chunk: list[Unit] = []
    rows = 0
    for unit in units:
        if chunk and rows + len(unit[0]) > most:
            yield chunk
            chunk, rows = [], 0
        chunk.append(unit)
        rows += len(unit[0])
    if chunk:
        yield chunk


def _joined(units: Sequence[Unit]) -> Unit:
    """All rows of all units, in the layout that the units' tensors have."""
    return tuple(torch.cat(column) for column in zip(*units, strict=True))


def _sample(parameter: nn.Parameter, rows: int) -> Tensor | None:
    """Opacus' [rows, …] for one parameter; None where the loss does not reach it."""
    found: Tensor | None = getattr(parameter, "grad_sample", None)
    if found is not None and len(found) != rows:
        raise ModelError(
            f"hooks saw {len(found)} images of {rows}",
            fix='use the path "loop": the network folds or repeats its batch',
        )
    return found


class _Flat:
    """One vector [size] in which the gradient of every parameter has its place."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.vector = torch.cat([p.detach().reshape(-1) for p in parameters])
        parts = torch.split(self.vector, [p.numel() for p in parameters])
        self._places = [part.view(p.shape) for part, p in zip(parts, parameters, strict=True)]

    def filled(self, found: Iterable[Tensor | None]) -> Tensor:
        """The vector with `found` in it, and zero for parameters that the loss does not reach."""
        for place, part in zip(self._places, found, strict=True):
            if part is None:
                place.zero_()
            else:
                place.copy_(part.detach())
        return self.vector


def _residuals(logits: Tensor, targets: Tensor, known: Tensor, multi_label: bool) -> Tensor:
    """Derivative of `record_losses` by the logits; zero where nothing is known."""
    if multi_label:
        # A sigmoid is rounded by where in the batch it stands; a softmax over two is not.
        probable = torch.stack([logits, torch.zeros_like(logits)], -1).softmax(-1)[..., 0]
        return (probable - targets) * known / known.sum(-1, keepdim=True).clamp_min(1)
    told = targets * known
    return logits.softmax(-1) * told.sum(-1, keepdim=True) - told

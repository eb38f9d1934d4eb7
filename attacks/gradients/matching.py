"""Objectives of inversion attacks: how far a guess's gradient is from the observed one.

A point [n] is a batch of inputs [images, *shape], flat, followed by label logits where labels are
searched too. Several local steps are simulated as the client took them; where it clips, it does so
image by image, in one step.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from attacks.gradients.laboratory import Gradient, Observation
from protocols.errors import ConfigError

Distance = Literal["euclidean", "cosine"]
Parameters = dict[str, Tensor]
_LARGE = 500_000  # parameters
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True, kw_only=True)
class Penalties:
    """Weights of what makes an image likely, in units of the objective (0 to 2).

    variation: total variation, the mean |difference| of neighbours (Rudin et al. 1992).
    energy: mean square of the inputs. statistics: squared distance of batch-norm statistics from
    those the client reports, or else from the running ones (Yin et al. 2021).
    """

    variation: float = 0.0
    energy: float = 0.0
    statistics: float = 0.0


@dataclass(eq=False)
class Matching:
    """The distance between simulated and observed gradient, plus penalties.

    labels: int64[images], guessed before; None to search them too (Zhu et al. 2019). euclidean:
    squared, in units of the observed gradient's. cosine: 1 − cosine (Geiping et al. 2020).
    skip: names of parameters whose gradient is left out. images: how many of the client's are
    guessed, where the others leave no trace in the parameters that count (fishing).
    """

    observation: Observation
    labels: Tensor | None
    distance: Distance = "euclidean"
    penalties: Penalties = field(default_factory=Penalties)
    skip: frozenset[str] = frozenset()
    images: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        known, seen = self.observation.knowledge, self.observation.gradient
        if seen is None:
            raise ConfigError("no gradient is shown", where="Matching", fix="guess the prior")
        self._network = _copied(known.network).to(self.device)
        self._parameters = {n: p.detach() for n, p in self._network.named_parameters()}
        self._counts = [name not in self.skip for name in self._parameters]
        self.count = self.images or known.images
        self._shape = (self.count, *known.shape)
        self._pixels = self.count * known.shape[0] * known.shape[1] * known.shape[2]
        self.size = self._pixels + (0 if self.labels is not None else self.count * known.classes)
        self._target = [block.to(self.device) for block in self._blocks(seen)]
        self._energy = _product(self._target, self._target).clamp_min(1e-30)
        self._fixed = (
            None
            if self.labels is None
            else functional.one_hot(self.labels, known.classes).to(self.device, torch.float32)
        )
        words = repr((self.labels, self.distance, self.penalties, sorted(self.skip)))
        digest = hashlib.sha256(words.encode())
        for block in self._target:
            digest.update(block.cpu().contiguous().numpy().tobytes())
        self.key = digest.hexdigest()

    def __call__(self, point: Tensor, *, functional: bool) -> Tensor:
        """The objective of one point."""
        inputs = self.inputs(point)
        found, statistics = self._simulated(inputs, self._targets(point), functional=functional)
        if self.distance == "cosine":
            norms = (_product(found, found) * self._energy).clamp_min(1e-30).sqrt()
            value = 1 - _product(found, self._target) / norms
        else:
            away = [a - b for a, b in zip(found, self._target, strict=True)]
            value = _product(away, away) / self._energy
        weights = self.penalties
        if weights.variation:
            value = value + weights.variation * total_variation(inputs)
        if weights.energy:
            value = value + weights.energy * inputs.square().mean()
        return value + weights.statistics * statistics if weights.statistics else value

    def inputs(self, point: Tensor) -> Tensor:
        """The inputs [images, *shape] of a point."""
        return point[: self._pixels].view(self._shape)

    def label_of(self, point: Tensor) -> Tensor:
        """int64[images]: the labels given, or else those that the point holds."""
        return self._targets(point).argmax(-1)

    def _targets(self, point: Tensor) -> Tensor:
        if self._fixed is not None:
            return self._fixed
        return point[self._pixels :].view(self.count, -1).softmax(-1)

    def _simulated(
        self, inputs: Tensor, targets: Tensor, *, functional: bool
    ) -> tuple[list[Tensor], Tensor]:
        """What a client with these images would show, and its distance in statistics."""
        known = self.observation.knowledge
        now, sums, statistics = self._parameters, None, inputs.new_zeros(())
        differentiate = _by_functions if functional else _by_autograd
        each = math.isfinite(known.clip)
        # A few images that alone leave a trace may all be of one step.
        together = known.steps if self.count == known.images else 1
        steps = self.count if each else together
        for images, labels in zip(inputs.chunk(steps), targets.chunk(steps), strict=True):
            gradient, distance = differentiate(self._loss, now, images, labels)
            statistics = statistics + distance
            gradient = _clipped(gradient, known.clip) if each else gradient
            sums = gradient if sums is None else {n: sums[n] + g for n, g in gradient.items()}
            if steps > 1 and not each:
                now = {n: p - known.rate * gradient[n] for n, p in now.items()}
        assert sums is not None  # noqa: S101
        scale, blocks = self.count / (known.images * steps), self._blocks(tuple(sums.values()))
        return blocks if scale == 1 else [scale * block for block in blocks], statistics

    def _blocks(self, gradient: Gradient) -> list[Tensor]:
        """The gradient's parts that count, flat: one block of a small network's, else as many.

        One saves operations; many save copies, which are what a large network waits for.
        """
        used = [g.reshape(-1) for g, counts in zip(gradient, self._counts, strict=True) if counts]
        return [torch.cat(used)] if sum(map(len, used)) < _LARGE else used

    def _loss(
        self, parameters: Parameters, images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        with _recorded(self._network) as seen:
            logits = functional_call(self._network, parameters, (images,))
        value = -(targets * functional.log_softmax(logits, -1)).sum(-1).mean()
        if not self.penalties.statistics:
            return value, value.new_zeros(())
        return value, self._away(seen)

    def _away(self, seen: list[tuple[nn.Module, Tensor]]) -> Tensor:
        """How far the statistics of all batch-norm inputs are from those that are known."""
        reported = self.observation.knowledge.statistics
        total = torch.zeros((), device=self.device)
        for place, (norm, inputs) in enumerate(seen):
            dims = [d for d in range(inputs.ndim) if d != 1]
            mean, variance = reported[place] if reported else _running(norm)
            total = total + (inputs.mean(dims) - mean.to(self.device)).square().mean()
            total = total + (inputs.var(dims, False) - variance.to(self.device)).square().mean()
        return total


def has_batch_norm(network: nn.Module) -> bool:
    """Whether there are statistics that `Penalties.statistics` could match."""
    return any(isinstance(module, _NORMS) for module in network.modules())


def _clipped(gradient: Parameters, clip: float) -> Parameters:
    norm = torch.stack([g.square().sum() for g in gradient.values()]).sum().sqrt()
    scale = (clip / norm.clamp_min(1e-12)).clamp_max(1.0)
    return {name: scale * g for name, g in gradient.items()}


def _running(norm: nn.Module) -> tuple[Tensor, Tensor]:
    held = dict(norm.named_buffers())
    return held["running_mean"], held["running_var"]


def total_variation(images: Tensor) -> Tensor:
    """Mean |difference| of neighbours below plus that of neighbours to the right, a scalar."""
    down, across = images.diff(dim=-2).abs().mean(), images.diff(dim=-1).abs().mean()
    return down + across


_Loss = Callable[[Parameters, Tensor, Tensor], tuple[Tensor, Tensor]]


def _by_functions(
    loss: _Loss, parameters: Parameters, images: Tensor, targets: Tensor
) -> tuple[Parameters, Tensor]:
    found: tuple[Parameters, Tensor] = torch.func.grad(loss, has_aux=True)(
        parameters, images, targets
    )
    return found


def _by_autograd(
    loss: _Loss, parameters: Parameters, images: Tensor, targets: Tensor
) -> tuple[Parameters, Tensor]:
    leaves = {n: p if p.requires_grad else p.requires_grad_() for n, p in parameters.items()}
    value, statistics = loss(leaves, images, targets)
    found = torch.autograd.grad(value, list(leaves.values()), create_graph=True)
    return dict(zip(leaves, found, strict=True)), statistics


def _product(left: list[Tensor], right: list[Tensor]) -> Tensor:
    """The inner product of two gradients, a scalar."""
    return torch.stack([torch.dot(a, b) for a, b in zip(left, right, strict=True)]).sum()


def _copied(network: nn.Module) -> nn.Module:
    """A copy that torch.func can differentiate: batch norms in training write no running mean."""
    copied = copy.deepcopy(network)
    for module in copied.modules():
        if isinstance(module, _NORMS) and module.training:
            module.track_running_stats = False
    return copied


@contextmanager
def _recorded(network: nn.Module) -> Iterator[list[tuple[nn.Module, Tensor]]]:
    """The batch-norm layers and their inputs, in the order in which they run."""
    seen: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen.append((module, arguments[0]))

    hooks = [m.register_forward_pre_hook(note) for m in network.modules() if isinstance(m, _NORMS)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()

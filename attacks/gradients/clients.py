"""What simulated clients send under each arm: real local steps, and the real DP-SGD mechanism."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from attacks.gradients.laboratory import Arm, Gradient, Knowledge, Observation, Shared
from protocols.chain import RandomBytes
from protocols.dp_sgd import DpSgd
from protocols.ledger import Ledger
from protocols.mechanisms import ReleaseKey

SUMMED: Final = 10
"""Clients of the arm "aggregated"."""
STEPS: Final = 4
"""Local steps of the arm "fedavg"."""
_RATE: Final = 0.05
_PROBES: Final = 8  # public images whose gradients' median norm is the clip of one image


@dataclass(frozen=True, eq=False)
class Ground:
    """What all clients of a laboratory have in common; fields as of `SimulatedLab`."""

    public: Tensor
    classes: int
    mean: float
    deviation: float
    noise_multiplier: float
    random: RandomBytes
    shared: Shared | None


@dataclass(frozen=True, eq=False)
class Client:
    """Images [n, *shape] and labels [n] of one client, or of all clients that are added up."""

    ground: Ground
    network: nn.Module
    images: Tensor
    labels: Tensor

    def shows(self, arm: Arm) -> Observation:
        """What it sends under an arm."""
        if arm == "nothing shown":
            return Observation(self._knowledge(), None)
        if arm == "protected" and self.ground.shared is not None:
            return self._protected(self.ground.shared)
        if arm == "dp-sgd":
            return self._noised(self.ground.noise_multiplier)
        if arm == "fedavg":
            seen = self._update(self.images, self.labels, STEPS)
            return Observation(self._knowledge(steps=STEPS, rate=_RATE), seen)
        return Observation(self._knowledge(), self._update(self.images, self.labels, 1))

    def _knowledge(
        self, *, steps: int = 1, rate: float = 1.0, clip: float = math.inf, noise: float = 0.0
    ) -> Knowledge:
        shape = (self.images.shape[1], self.images.shape[2], self.images.shape[3])
        return Knowledge(
            network=self.network,
            shape=shape,
            classes=self.ground.classes,
            images=len(self.images),
            steps=steps,
            rate=rate,
            clip=clip,
            noise=noise,
            mean=self.ground.mean,
            deviation=self.ground.deviation,
        )

    def _protected(self, shared: Shared) -> Observation:
        """The mean of several sites' updates, with whatever noise they put on them."""
        if shared.record_noise:
            # The noise of so many sites adds up by its variance.
            return self._noised(shared.record_noise * math.sqrt(shared.sites))
        taken = shared.steps * shared.passes
        parts = zip(self.images.chunk(shared.sites), self.labels.chunk(shared.sites), strict=True)
        updates = [self._update(*part, shared.steps, shared.passes) for part in parts]
        if not shared.site_noise:
            return Observation(self._knowledge(steps=taken, rate=_RATE), _mean(updates))
        clip = self._public_norm(shared)
        noise = clip * shared.site_noise / shared.sites
        draw = np.random.default_rng(int.from_bytes(self.ground.random(16)))
        noisy = tuple(
            part + noise * torch.from_numpy(draw.standard_normal(part.shape)).float()
            for part in _mean([_within(one, clip) for one in updates])
        )
        return Observation(self._knowledge(steps=taken, rate=_RATE, noise=noise), noisy)

    def _update(self, images: Tensor, labels: Tensor, steps: int, passes: int = 1) -> Gradient:
        """(weights before − weights after)/(rate·steps) of plain SGD; of one step, its gradient."""
        start = {n: p.detach() for n, p in self.network.named_parameters()}
        parts = list(zip(images.tensor_split(steps), labels.tensor_split(steps), strict=True))
        if steps * passes == 1:
            return tuple(self._gradient(start, images, labels).values())
        now = start
        for some, classes in parts * passes:
            gradient = self._gradient(now, some, classes)
            now = {n: p - _RATE * gradient[n] for n, p in now.items()}
        return tuple((start[n] - now[n]) / (_RATE * steps * passes) for n in start)

    def _gradient(
        self, weights: dict[str, Tensor], images: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        leaves = {n: w.detach().requires_grad_() for n, w in weights.items()}
        inputs = (images - self.ground.mean) / self.ground.deviation
        loss = functional.cross_entropy(functional_call(self.network, leaves, (inputs,)), labels)
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    def _unit(self, images: Tensor, labels: Tensor) -> NDArray[np.float64]:
        weights = {n: p.detach() for n, p in self.network.named_parameters()}
        found = self._gradient(weights, images, labels)
        return torch.cat([g.flatten() for g in found.values()]).double().numpy()

    def _public_norm(self, shared: Shared) -> float:
        """The norm of the update of a site with public images, and equally many of each class."""
        images = self.ground.public[: shared.images]
        labels = torch.arange(len(images)) % self.ground.classes
        return _norm(self._update(images, labels, shared.steps, shared.passes))

    def _noised(self, multiplier: float) -> Observation:
        """One step of DP-SGD in which every image is a unit."""
        zero = torch.zeros(1, dtype=torch.int64)
        probes = self.ground.public[:_PROBES]
        norms = [np.linalg.norm(self._unit(image[None], zero)) for image in probes]
        clip, count = float(np.median(norms)), len(self.images)
        units = [
            self._unit(i[None], y[None]) for i, y in zip(self.images, self.labels, strict=True)
        ]
        plan = DpSgd(
            clip_norm=clip,
            noise_multiplier=multiplier,
            rate=1.0,
            steps=1,
            size=len(units[0]),
            expected=float(count),
        )
        with Ledger(
            Path(":memory:"),
            "victim",
            "laboratory",
            relation=plan.event().relation,
            budget_epsilon=None,
            delta=1e-5,
        ) as ledger:
            descent = plan.begin(ledger, ReleaseKey("laboratory", 0), self.ground.random)
            descent.sample(count)
            noisy = torch.from_numpy(np.asarray(descent.step(units))).float()
        parts = torch.split(noisy, [p.numel() for p in self.network.parameters()])
        gradient = tuple(
            part.view_as(p) for part, p in zip(parts, self.network.parameters(), strict=True)
        )
        noise = clip * multiplier / count
        return Observation(self._knowledge(clip=clip, noise=noise), gradient)


def _norm(update: Gradient) -> float:
    return float(torch.stack([part.square().sum() for part in update]).sum().sqrt())


def _within(update: Gradient, clip: float) -> Gradient:
    scale = min(1.0, clip / max(_norm(update), 1e-12))
    return tuple(scale * part for part in update)


def _mean(updates: Sequence[Gradient]) -> Gradient:
    return tuple(torch.stack(parts).mean(0) for parts in zip(*updates, strict=True))

"""A laboratory on given images: real networks, real local steps, the real DP-SGD mechanism.

A system's own laboratory may build on it and hand in the networks that the system trains.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from attacks.gradients import networks
from attacks.gradients.laboratory import Arm, Gradient, Knowledge, Observation, Scene, Trial, Truth
from protocols.chain import RandomBytes
from protocols.dp_sgd import DpSgd
from protocols.errors import ConfigError
from protocols.ledger import Ledger
from protocols.mechanisms import ReleaseKey

ARMS: Final[tuple[Arm, ...]] = ("undefended", "fedavg", "aggregated", "dp-sgd", "nothing shown")
_BATCH: Final[dict[Scene, int]] = {
    "linear": 1,
    "batch": 8,
    "image": 1,
    "transformer": 1,
    "imprint": 8,
    "fishing": 4,
}
_CRAFTED: Final[frozenset[Scene]] = frozenset({"imprint", "fishing"})
_MODELS, _CLIENTS, _STEPS, _RATE, _BINS = 5, 10, 4, 0.05, 64
_TRAINED_RATE, _TRAINED_BATCH = 1e-3, 32

Factory = Callable[[tuple[int, int, int], int], nn.Module]
"""(shape, classes) → a network with weights from torch's stream, which is seeded around it."""

NETWORKS: Final[Mapping[Scene, Factory]] = {
    "linear": networks.fully_connected,
    "batch": networks.convolutional,
    "image": networks.lenet,
    "transformer": networks.transformer,
    "imprint": networks.lenet,
    "fishing": networks.lenet,
}


@dataclass(frozen=True, eq=False)
class SimulatedLab:
    """Clients that hold `images` [N, *shape] in [0, 1] with labels int64[N].

    clusters: int64[N], images with the same one are of one patient. public: the attacker's own
    images [P, *shape]. lures: among how many others a victim's image is identified, at most.
    noise_multiplier: of the arm "dp-sgd", whose clip is the median norm of the gradients of eight
    public images. Five networks of different seeds take turns. epochs: for so many on the private
    images were they trained before, in turn as well; networks that a server crafts are not.

    fedavg: four steps of rate 0.05, each on a whole batch. aggregated: ten clients, one step.
    dp-sgd: one step in which every image of the batch is a unit, at sampling rate 1.
    """

    images: Tensor
    labels: Tensor
    clusters: NDArray[np.int64]
    public: Tensor
    classes: int
    factories: Mapping[Scene, Factory] = field(default_factory=lambda: NETWORKS)
    mean: float = 0.5
    deviation: float = 0.25
    lures: int = 49
    noise_multiplier: float = 1.0
    seed: int = 0
    random: RandomBytes = os.urandom
    epochs: tuple[int, ...] = (0,)
    _built: dict[tuple[Scene, int, int], nn.Module] = field(default_factory=dict)

    def __post_init__(self) -> None:
        least = max(_CLIENTS * max(_BATCH.values()), self.lures + 1)
        if not len(self.images) == len(self.labels) == len(self.clusters) >= least:
            raise ConfigError(
                f"{len(self.images)} images, {len(self.labels)} labels, {len(self.clusters)} "
                "clusters",
                where="gradient laboratory",
                fix=f"give at least {least} images, each with a label and a cluster",
            )
        for images in (self.images, self.public):
            if not 0 <= float(images.min()) <= float(images.max()) <= 1:
                raise ConfigError(
                    f"images from {float(images.min()):g} to {float(images.max()):g}",
                    where="gradient laboratory",
                    fix="give them in [0, 1], not as a network takes them",
                )

    def arms(self, scene: Scene) -> tuple[Arm, ...]:
        """All of them."""
        return ARMS if scene in self.factories else ()

    def prior(self) -> Tensor:
        """The public images."""
        return self.public

    def trials(
        self, scene: Scene, arm: Arm, count: int, random: np.random.Generator
    ) -> Iterator[Trial]:
        """Clients of the private images, each with a victim of its own until none is left."""
        return self._played(scene, arm, count, random, self.images, self.labels, self.clusters)

    def rehearsals(
        self, scene: Scene, arm: Arm, count: int, random: np.random.Generator
    ) -> Iterator[Trial]:
        """Clients of the public images, with labels that the attacker draws."""
        labels = torch.from_numpy(random.integers(0, self.classes, len(self.public)))
        clusters = np.arange(len(self.public), dtype=np.int64)
        return self._played(scene, arm, count, random, self.public, labels, clusters)

    def _played(
        self,
        scene: Scene,
        arm: Arm,
        count: int,
        random: np.random.Generator,
        images: Tensor,
        labels: Tensor,
        clusters: NDArray[np.int64],
    ) -> Iterator[Trial]:
        order, size = random.permutation(len(images)), _BATCH[scene]
        several = {"fedavg": _STEPS, "aggregated": _CLIENTS}.get(arm, 1)
        for number in range(count):
            victim = int(order[number % len(order)])
            others = random.permutation(np.delete(np.arange(len(images)), victim))
            rows = self._batch(scene, victim, others, labels, several * size)
            own = rows[: size if arm == "aggregated" else len(rows)]
            own = own[:1] if scene in ("imprint", "fishing") else own
            apart = ~np.isin(others, rows) & (clusters[others] != clusters[victim])
            lures = others[apart][: self.lures]
            epochs = 0 if scene in _CRAFTED else self.epochs[number % len(self.epochs)]
            network = self._network(scene, number % _MODELS, epochs)
            if scene == "fishing":
                network = networks.fishing(network, int(labels[victim]))
            client = _Client(self, network, images[rows], labels[rows])
            cluster = int(clusters[victim])
            truth = Truth(images[own], labels[own], images[lures], cluster)
            stage = f"after {epochs} epochs" if epochs else "untrained"
            yield Trial(client.shows(arm), truth, stage)

    def _batch(
        self, scene: Scene, victim: int, others: NDArray[np.int64], labels: Tensor, size: int
    ) -> NDArray[np.int64]:
        """The rows of a batch. Fishing meets its worst case: the victim's class occurs once."""
        if scene == "fishing":
            apart = others[(labels != labels[victim]).numpy()[others]]
            others = apart if len(apart) >= size else others
        return np.concatenate([[victim], others[: size - 1]])

    def _network(self, scene: Scene, number: int, epochs: int) -> nn.Module:
        key = scene, number, epochs
        if key not in self._built:
            shape = (self.images.shape[1], self.images.shape[2], self.images.shape[3])
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1000 * self.seed + number)
                network = self.factories[scene](shape, self.classes)
                if scene == "imprint":
                    inputs = (self.public - self.mean) / self.deviation
                    network = networks.Imprint(network, inputs, _BINS)
                self._train(network, epochs)
            self._built[key] = network
        return self._built[key]

    def _train(self, network: nn.Module, epochs: int) -> None:
        """Adam on the private images; torch's stream is seeded around it."""
        optimiser = torch.optim.Adam(network.parameters(), lr=_TRAINED_RATE)
        inputs = (self.images - self.mean) / self.deviation
        for _ in range(epochs):
            for rows in torch.split(torch.randperm(len(inputs)), _TRAINED_BATCH):
                optimiser.zero_grad()
                loss = functional.cross_entropy(network(inputs[rows]), self.labels[rows])
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
        network.zero_grad()


@dataclass(frozen=True, eq=False)
class _Client:
    """Images [n, *shape] and labels [n] of one client, or of all clients that are added up."""

    lab: SimulatedLab
    network: nn.Module
    images: Tensor
    labels: Tensor

    def shows(self, arm: Arm) -> Observation:
        """What it sends under an arm."""
        steps = _STEPS if arm == "fedavg" else 1
        known = self._knowledge(steps=steps, rate=_RATE if arm == "fedavg" else 1.0)
        if arm == "nothing shown":
            return Observation(known, None)
        if arm == "dp-sgd":
            return self._noised()
        return Observation(known, self._update(steps))

    def _knowledge(
        self, *, steps: int = 1, rate: float = 1.0, clip: float = math.inf, noise: float = 0.0
    ) -> Knowledge:
        shape = (self.images.shape[1], self.images.shape[2], self.images.shape[3])
        return Knowledge(
            network=self.network,
            shape=shape,
            classes=self.lab.classes,
            images=len(self.images),
            steps=steps,
            rate=rate,
            clip=clip,
            noise=noise,
            mean=self.lab.mean,
            deviation=self.lab.deviation,
        )

    def _update(self, steps: int) -> Gradient:
        """(weights before − weights after)/(rate·steps) of plain SGD."""
        start = {n: p.detach() for n, p in self.network.named_parameters()}
        now = start
        for images, labels in zip(self.images.chunk(steps), self.labels.chunk(steps), strict=True):
            gradient = self._gradient(now, images, labels)
            now = {n: p - _RATE * gradient[n] for n, p in now.items()}
        if steps == 1:
            return tuple(gradient.values())
        return tuple((start[n] - now[n]) / (_RATE * steps) for n in start)

    def _gradient(
        self, weights: dict[str, Tensor], images: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        leaves = {n: w.detach().requires_grad_() for n, w in weights.items()}
        inputs = (images - self.lab.mean) / self.lab.deviation
        loss = functional.cross_entropy(functional_call(self.network, leaves, (inputs,)), labels)
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    def _unit(self, images: Tensor, labels: Tensor) -> NDArray[np.float64]:
        weights = {n: p.detach() for n, p in self.network.named_parameters()}
        found = self._gradient(weights, images, labels)
        return torch.cat([g.flatten() for g in found.values()]).double().numpy()

    def _noised(self) -> Observation:
        """One step of DP-SGD in which every image is a unit."""
        zero = torch.zeros(1, dtype=torch.int64)
        norms = [np.linalg.norm(self._unit(image[None], zero)) for image in self.lab.public[:8]]
        clip, count = float(np.median(norms)), len(self.images)
        units = [
            self._unit(i[None], y[None]) for i, y in zip(self.images, self.labels, strict=True)
        ]
        plan = DpSgd(
            clip_norm=clip,
            noise_multiplier=self.lab.noise_multiplier,
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
            descent = plan.begin(ledger, ReleaseKey("laboratory", 0), self.lab.random)
            descent.sample(count)
            noisy = torch.from_numpy(np.asarray(descent.step(units))).float()
        parts = torch.split(noisy, [p.numel() for p in self.network.parameters()])
        gradient = tuple(
            part.view_as(p) for part, p in zip(parts, self.network.parameters(), strict=True)
        )
        noise = clip * self.lab.noise_multiplier / count
        return Observation(self._knowledge(clip=clip, noise=noise), gradient)

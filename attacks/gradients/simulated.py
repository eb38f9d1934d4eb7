"""A laboratory on given images: real networks, real local steps, the real DP-SGD mechanism.

A system's own laboratory may build on it and hand in the networks that the system trains.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from attacks.gradients import networks
from attacks.gradients.clients import STEPS, SUMMED, Client, Ground
from attacks.gradients.laboratory import Arm, Scene, Shared, Trial, Truth
from protocols.chain import RandomBytes
from protocols.errors import ConfigError

ARMS: Final[tuple[Arm, ...]] = ("undefended", "fedavg", "aggregated", "dp-sgd")
"""Those of every laboratory; its system's own comes after them."""
_BATCH: Final[dict[Scene, int]] = {
    "linear": 1,
    "batch": 8,
    "image": 1,
    "transformer": 1,
    "imprint": 8,
    "fishing": 4,
}
_CRAFTED: Final[frozenset[Scene]] = frozenset({"imprint", "fishing"})
_MODELS, _BINS = 5, 64
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
    images [P, *shape], public_labels: int64[P], theirs. lures: among how many others a victim's
    image is identified, at most. noise_multiplier: of the arm "dp-sgd", whose clip is the median
    norm of the gradients of eight public images. Five networks of different seeds take turns.
    epochs: for so many on the private images were they trained before, in turn as well; networks
    that a server crafts are not.

    fedavg: four steps of rate 0.05, each on a whole batch. aggregated: ten clients, one step.
    dp-sgd: one step in which every image of the batch is a unit, at sampling rate 1. shared: what
    the system shows of updates, under the arm "protected"; None: it shows nothing of the kind.
    """

    images: Tensor
    labels: Tensor
    clusters: NDArray[np.int64]
    public: Tensor
    public_labels: Tensor
    classes: int
    factories: Mapping[Scene, Factory] = field(default_factory=lambda: NETWORKS)
    mean: float = 0.5
    deviation: float = 0.25
    lures: int = 49
    noise_multiplier: float = 1.0
    seed: int = 0
    random: RandomBytes = os.urandom
    epochs: tuple[int, ...] = (0,)
    shared: Shared | None = None
    _built: dict[tuple[Scene, int, int], nn.Module] = field(default_factory=dict)

    def __post_init__(self) -> None:
        least = max(SUMMED * max(_BATCH.values()), self.lures + 1)
        if not len(self.images) == len(self.labels) == len(self.clusters) >= least:
            raise ConfigError(
                f"{len(self.images)} images, {len(self.labels)} labels, {len(self.clusters)} "
                "clusters",
                where="gradient laboratory",
                fix=f"give at least {least} images, each with a label and a cluster",
            )
        if len(self.public) != len(self.public_labels):
            raise ConfigError(
                f"{len(self.public)} public images, {len(self.public_labels)} labels",
                where="gradient laboratory",
                fix="give every public image its label",
            )
        for images in (self.images, self.public):
            if not 0 <= float(images.min()) <= float(images.max()) <= 1:
                raise ConfigError(
                    f"images from {float(images.min()):g} to {float(images.max()):g}",
                    where="gradient laboratory",
                    fix="give them in [0, 1], not as a network takes them",
                )

    def arms(self, scene: Scene) -> tuple[Arm, ...]:
        """All of them, the system's own last."""
        own: Arm = "nothing shown" if self.shared is None else "protected"
        return (*ARMS, own) if scene in self.factories else ()

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
        """Clients of the public images with their labels."""
        clusters = np.arange(len(self.public), dtype=np.int64)
        return self._played(scene, arm, count, random, self.public, self.public_labels, clusters)

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
        order, ground = random.permutation(len(images)), self._ground()
        for number in range(count):
            victim = int(order[number % len(order)])
            others = random.permutation(np.delete(np.arange(len(images)), victim))
            every, own = self._sizes(scene, arm)
            rows = self._batch(scene, victim, others, labels, every)
            apart = ~np.isin(others, rows) & (clusters[others] != clusters[victim])
            lures = others[apart][: self.lures]
            epochs = 0 if scene in _CRAFTED else self.epochs[number % len(self.epochs)]
            network = self._network(scene, number % _MODELS, epochs)
            if scene == "fishing":
                network = networks.fishing(network, int(labels[victim]))
            client = Client(ground, network, images[rows], labels[rows])
            mine, cluster = rows[:own], int(clusters[victim])
            truth = Truth(images[mine], labels[mine], images[lures], cluster)
            stage = f"after {epochs} epochs" if epochs else "untrained"
            yield Trial(client.shows(arm), truth, stage)

    def _ground(self) -> Ground:
        return Ground(
            self.public,
            self.classes,
            self.mean,
            self.deviation,
            self.noise_multiplier,
            self.random,
            self.shared,
        )

    def _sizes(self, scene: Scene, arm: Arm) -> tuple[int, int]:
        """Images behind an observation, and how many of them, from the first, are the victim's."""
        size = _BATCH[scene]
        every, own = size, size
        if arm == "fedavg":
            every = own = STEPS * size
        if arm == "aggregated":
            every = SUMMED * size
        if arm == "protected" and self.shared is not None:
            every, own = self.shared.sites * self.shared.images, 1
            own = self.shared.images if scene == "batch" else own
        return every, 1 if scene in _CRAFTED else own

    def _batch(
        self, scene: Scene, victim: int, others: NDArray[np.int64], labels: Tensor, size: int
    ) -> NDArray[np.int64]:
        """The rows of a batch, over and over where there are too few of the attacker's own.

        Fishing meets its worst case: the victim's class occurs once.
        """
        if scene == "fishing":
            apart = others[(labels != labels[victim]).numpy()[others]]
            others = apart if len(apart) >= size else others
        return np.concatenate([[victim], np.resize(others, size - 1)])

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

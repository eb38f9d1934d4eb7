"""What an attack on gradients is shown, what it may know, and, kept apart, what is true.

Whoever builds the table implements `GradientLab` on a system; `attacks.gradients.simulated` has
one on given images. An attack is handed `Observation`s; only scoring opens a `Trial`'s truth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from torch import Tensor, nn

from protocols.errors import ConfigError

Gradient = tuple[Tensor, ...]
"""One tensor per parameter, in the order of `network.parameters()`."""

Arm = Literal["undefended", "fedavg", "aggregated", "dp-sgd", "nothing shown", "protected"]
"""undefended: one client's gradient of one step, its `images` in one batch. fedavg: its update
after several steps. aggregated: the mean gradient of several clients, as a secure sum opens it.
dp-sgd: one client's gradient, clipped per image and noised. nothing shown: no gradient leaves.
protected: what `Shared` says of a system in which updates do."""

Scene = Literal["linear", "batch", "image", "transformer", "imprint", "fishing"]
"""linear: one image, a fully connected network whose first layer has a bias. batch: eight images,
a small network, for labels. image: one image, a small convolutional network. transformer: one
image, a timm vision transformer with position embedding. imprint: a batch, a network whose first
layer the server crafted (Robbing the Fed); fishing: a batch, whose last layer it crafted."""


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What a run's coalition sees of its sites' updates: the mean of some, each with equal weight.

    sites: how many updates are in that mean; 1 where single ones are shown. images: of a site,
    passes: over them in one round, steps: of plain SGD in each. site_noise: deviation of the noise
    on the sites' sum, in the norm to which one site's update is clipped; 0: neither. record_noise:
    deviation of a site's noise on the sum of its images' gradients, in their clip, averaged over
    all steps; every gradient is then taken at the start, where noise averages out best.
    """

    sites: int
    images: int
    steps: int = 1
    passes: int = 1
    site_noise: float = 0.0
    record_noise: float = 0.0


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What the attacker knows without looking: all of it public, or set by the server.

    network: inputs [B, *shape] → logits [B, classes], with the parameters that the client started
    from and in the mode (train or eval) of its step; its loss is mean cross-entropy. An input is
    (image − mean)/deviation for an image in [0, 1]. images: private images behind the observation,
    of all clients that were added up. steps and rate: the client's local steps of plain SGD, each
    on images/steps images in order. clip: L2 clip of one image's gradient. noise: deviation of
    the Gaussian noise on each coordinate of the observation. statistics: mean and variance [C] of
    the batch at each batch-norm layer, in order, where the client reports them (else empty).
    """

    network: nn.Module
    shape: tuple[int, int, int]
    classes: int
    images: int = 1
    steps: int = 1
    rate: float = 1.0
    clip: float = math.inf
    noise: float = 0.0
    mean: float = 0.0
    deviation: float = 1.0
    statistics: tuple[tuple[Tensor, Tensor], ...] = ()

    def inputs(self, images: Tensor) -> Tensor:
        """Images in [0, 1] as the network takes them."""
        return (images - self.mean) / self.deviation

    def shown(self, inputs: Tensor) -> Tensor:
        """Inputs of the network as images, clamped to [0, 1]; values that are not finite stay."""
        return (inputs * self.deviation + self.mean).clamp(0, 1)


def _unusable(what: str, why: str, fix: str) -> ConfigError:
    return ConfigError(what, where="observed gradient", why=why, fix=fix)


@dataclass(frozen=True, eq=False)
class Observation:
    """What is seen of one client, or of several added up.

    gradient: (weights before − weights after)/(rate · steps), which for one step is the gradient
    of the mean loss; None where nothing is shown. ConfigError for one that is not of the known
    network, or not finite, and for no image behind it.
    """

    knowledge: Knowledge
    gradient: Gradient | None

    def __post_init__(self) -> None:
        if self.knowledge.images < 1:
            raise _unusable("an empty batch", "no image is behind it", "attack one image or more")
        if self.gradient is None:
            return
        shapes = [tuple(part.shape) for part in self.gradient]
        if shapes != [tuple(p.shape) for p in self.knowledge.network.parameters()]:
            why = f"{len(shapes)} tensors are not of the shapes of its parameters"
            raise _unusable("not a gradient of this network", why, "give the network it is of")
        if not all(bool(part.isfinite().all()) for part in self.gradient):
            why = "it has values that are no numbers"
            raise _unusable("a gradient that is not finite", why, "leave this client out")


@dataclass(frozen=True, eq=False)
class Truth:
    """For scoring only: the victim's images [n, *shape] in [0, 1] and labels int64[n].

    lures: private images [N − 1, *shape] of other patients, among which a victim's image is
    identified. `cluster`: trials with the same one are resampled together (patient, or client).
    """

    images: Tensor
    labels: Tensor
    lures: Tensor
    cluster: int


@dataclass(frozen=True, eq=False)
class Trial:
    """One observation and its truth. stage: how far the attacked network was trained, in words."""

    observation: Observation
    truth: Truth
    stage: str = ""


class GradientLab(Protocol):
    """Plays clients of a system under several arms; bound to one data set and one set of seeds."""

    def arms(self, scene: Scene) -> tuple[Arm, ...]:
        """The arms that it can play of a scene, "undefended" first; empty if it cannot at all."""

    def prior(self) -> Tensor:
        """The attacker's own images [P, *shape] in [0, 1], disjoint from every private image."""

    def trials(
        self, scene: Scene, arm: Arm, count: int, random: np.random.Generator
    ) -> Iterator[Trial]:
        """Attacked clients, `count` of them. The same `random` picks the same in every arm."""

    def rehearsals(
        self, scene: Scene, arm: Arm, count: int, random: np.random.Generator
    ) -> Iterator[Trial]:
        """The same arm played by the attacker on images of `prior`, to tune and shrink itself."""

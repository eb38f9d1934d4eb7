"""The speaking model of dp-sgd: one linear head per site, trained under noise, for one round.

Where it is so configured, layers of the backbone are trained with it (`deep_training`).

Everything that it says is post-processing of its training: answers, β and all. The features come
from the central model's public backbone, which has seen natural images only: it is the same at all
sites, and a student on another one would lose most of what a head under noise can say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from protocols.chain import RandomBytes
from protocols.dp_sgd import Descent
from protocols.errors import PrivacyError
from secure_natfl.config import DpSgd
from secure_natfl.deep_training import Layers, train_layers
from secure_natfl.dp_training import Cohort, Recipe, train_head
from secure_natfl.exact_head import exact_head
from secure_natfl.federation import Site
from secure_natfl.fine_tuning import solved
from secure_natfl.heads import Knowledge
from secure_natfl.models import Network
from secure_natfl.systems.betas import Answer
from secure_natfl.training import features_of

Begin = Callable[[int], Descent]
"""Charges for a training of so many parameters, and hands out its noisy steps."""


@dataclass(frozen=True, eq=False)
class PrivateHead:
    """A site's units, and how a head is trained on them. Units are patients, or else images."""

    cohort: Cohort
    recipe: Recipe
    multi_label: bool
    layers: Layers = "head"
    ridge: float = 0.0
    """Above 0: a head without noise, shrunk by so much."""

    @classmethod
    def exact_of(cls, site: Site) -> PrivateHead:
        """The head of a run without noise, shrunk as the usual noisy descent is by its end."""
        table = DpSgd()
        length = table.steps * table.learning_rate / table.gradient_clip
        return replace(cls.of(site, table), ridge=1 / (2 * length))

    @classmethod
    def of(cls, site: Site, table: DpSgd) -> PrivateHead:
        """As configured; every image is a unit where a site knows no patients."""
        return cls(
            Cohort.of_patients(site.train, site.train_patients),
            Recipe(
                rate=table.learning_rate,
                momentum=0.0,
                images=table.max_images_per_patient,
                average=0.0,
            ),
            site.train.multi_label,
            table.layers,
        )

    def train(
        self,
        network: Network,
        naturals: torch.Tensor,
        open_features: torch.Tensor,
        returned: Knowledge | None,
        begin: Begin | None,
        random: RandomBytes,
        features: torch.Tensor | None = None,
    ) -> None:
        """Train the head of `network`, and the `layers` below it, in place.

        The head starts from what the server returned, which costs nothing, or from zero.
        open_features: those of the natural images `naturals`, [P, d], as the network gives them; so
        are those of `returned`. `random` draws a unit's images of each step. features: of the
        cohort's images, where the network stays as it is and they are known.
        """
        if self.ridge:
            rows = (
                features_of(network.backbone, self.cohort.tensors[0])
                if features is None
                else features,
                *self.cohort.tensors[1:],
            )
            exact_head(network, open_features, rows, self.ridge, multi_label=self.multi_label)
            return
        if begin is None:
            raise PrivacyError(
                "a head that is to be trained under noise, and no charge for it",
                fix="hand in what begins the mechanism's training",
            )
        start_head(network, returned)
        shared = self.cohort, begin, self.recipe
        if self.layers == "head":
            train_head(
                network,
                open_features,
                *shared,
                multi_label=self.multi_label,
                random=random,
                features=features,
            )
        else:
            train_layers(
                network,
                self.layers,
                naturals,
                open_features,
                *shared,
                multi_label=self.multi_label,
                random=random,
            )


@lru_cache(maxsize=64)
def frozen_features(network: Network, images: torch.Tensor) -> torch.Tensor:
    """Features [n, d] of a site's images under a public network that nobody trains further.

    Kept, since every round and every personal choice asks for them again. Neither argument may
    change afterwards.
    """
    return features_of(network.backbone, images)


@torch.no_grad()
def start_head(network: Network, returned: Knowledge | None) -> None:
    """Where training begins: the head that says what the server returned, or zero, in place."""
    weight, bias = torch.zeros_like(network.xray.weight), torch.zeros_like(network.xray.bias)
    if returned is not None:
        trust = torch.ones(len(returned.logits), 1)
        weight, bias = solved(returned.features, returned.logits, trust, torch.inf)
    network.xray.weight.copy_(weight)
    network.xray.bias.copy_(bias)


@torch.no_grad()
def head_answer(network: Network, features: torch.Tensor, *, multi_label: bool) -> Answer:
    """What a network says of images given as its own features [n, d], as one teacher.

    It has no label counts to share: those would be private, and no noise covers them.
    """
    xray, natural = network.answers(features)
    shares = torch.full((1, network.classes), torch.nan)
    return Answer(xray[:, 0].unsqueeze(0), natural.unsqueeze(0), shares, multi_label)

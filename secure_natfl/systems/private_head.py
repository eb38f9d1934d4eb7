"""The speaking model of dp-sgd: one linear head per site, trained under noise, for one round.

Everything that it says is post-processing of its training: answers, β and all. The features come
from the public backbone, which has seen natural images only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from protocols.chain import RandomBytes
from protocols.dp_sgd import Descent
from protocols.errors import PrivacyError
from secure_natfl.config import DpSgd
from secure_natfl.dp_training import Cohort, Recipe, train_head
from secure_natfl.federation import Site
from secure_natfl.models import Network
from secure_natfl.systems.betas import Answer
from secure_natfl.training import Naturals, answers_of

Begin = Callable[[int], Descent]
"""Charges for a training of so many parameters, and hands out its noisy steps."""


@dataclass(frozen=True, eq=False)
class PrivateHead:
    """A site's units, and how a head is trained on them. Units are patients, or else images."""

    cohort: Cohort
    recipe: Recipe
    multi_label: bool

    @classmethod
    def of(cls, site: Site, table: DpSgd) -> PrivateHead:
        """As configured; every image is a unit where a site knows no patients."""
        return cls(
            Cohort.of_patients(site.train, site.train_patients),
            Recipe(rate=table.learning_rate, images=table.max_images_per_patient),
            site.train.multi_label,
        )

    def train(
        self, network: Network, naturals: Naturals, begin: Begin | None, random: RandomBytes
    ) -> None:
        """Train the head of `network` in place; `random` draws a unit's images of each step."""
        if begin is None:
            raise PrivacyError(
                "a head that is to be trained under noise, and no charge for it",
                fix="hand in what begins the mechanism's training",
            )
        train_head(
            network,
            naturals,
            self.cohort,
            begin,
            self.recipe,
            multi_label=self.multi_label,
            random=random,
        )


def private_answer(network: Network, images: torch.Tensor, *, multi_label: bool) -> Answer:
    """What a privately trained network says of natural images [n, 1, H, W], as one teacher.

    It has no label counts to share: those would be private, and no noise covers them.
    """
    xray, natural = answers_of(network, images)
    shares = torch.full((1, network.classes), torch.nan)
    return Answer(xray[:, 0].unsqueeze(0), natural.unsqueeze(0), shares, multi_label)

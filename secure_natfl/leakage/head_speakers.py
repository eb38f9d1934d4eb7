"""Heads trained under noise at many sites, and their answers: what speaks under dp-sgd.

The interface of `speakers.Speakers`. A head sees features alone, so that the public backbone is
asked once for each record. Each site trains twice: as the run does, and with the least noise that
the mechanism can draw, which is the undefended arm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from protocols.dp_sgd import Descent, DpSgd
from protocols.ledger import Ledger, ReleaseKey
from protocols.noise_search import LEAST
from protocols.sampler import seeded_random
from secure_natfl.config import DpSgd as DpSgdTable
from secure_natfl.dp_training import Cohort
from secure_natfl.fine_tuning import fresh
from secure_natfl.leakage.attacked import AttackedRun
from secure_natfl.leakage.pool import Pool, Rows
from secure_natfl.leakage.speakers import Asked, Floats
from secure_natfl.models import Network
from secure_natfl.systems.betas import Answer
from secure_natfl.systems.private_head import PrivateHead


@dataclass(frozen=True, eq=False)
class TrainedHead:
    """One site's head with hardly any noise, and the one that speaks."""

    clear: Network
    noised: Network
    sites: int = 1


class HeadSpeakers(Asked):
    """Trains one head per site on the central model's backbone; `training` is the run's charge."""

    def __init__(self, run: AttackedRun, training: DpSgd, rounds: int) -> None:
        super().__init__(run, run.config.models.central, rounds)
        self.training = training
        network = run.networks[run.config.models.central]
        classes = len(run.federation.task.classes)
        self._start = fresh(network, classes, torch.Generator().manual_seed(0))
        self._start.backbone = nn.Identity()

    def trained(
        self, pool: Pool, sites: Sequence[Rows], number: int, random: np.random.Generator
    ) -> Iterator[TrainedHead]:
        """Both heads of each site."""
        for rows in sites:
            least = replace(self.training, noise_multiplier=LEAST)
            yield TrainedHead(
                self._head(pool, rows, number, least, random),
                self._head(pool, rows, number, self.training, random),
            )

    def answers(self, trained: TrainedHead, number: int, features: Tensor | None = None) -> Floats:
        """What the clear and the noised head send for round `number`: [1, 2, layout size]."""
        rows = self.rows[number]
        asked = self.backbone.features[rows] if features is None else features
        said = [self._ask(one, asked) for one in (trained.clear, trained.noised)]
        return np.concatenate([self.run.system.weighted(one, rows) for one in said])[None]

    def ask(self, trained: TrainedHead, features: Tensor) -> Answer:
        """The speaking head's logits on any features [n, d]."""
        return self._ask(trained.noised, features)

    @torch.no_grad()
    def _ask(self, network: Network, features: Tensor) -> Answer:
        xray, natural = network(self._raw(features))
        shares = torch.full((1, network.classes), torch.nan)
        multi_label = self.run.federation.task.multi_label
        return Answer(xray[:, 0].unsqueeze(0), natural.unsqueeze(0), shares, multi_label)

    def _head(
        self, pool: Pool, rows: Rows, number: int, training: DpSgd, random: np.random.Generator
    ) -> Network:
        network = fresh(self._start, self._start.classes, torch.Generator().manual_seed(0))
        at = torch.from_numpy(rows)
        units = tuple(torch.tensor([row]) for row in range(len(rows)))
        cohort = Cohort((self._raw(pool.features[at]), pool.targets[at], pool.known[at]), units)
        charge = replace(training, expected=len(rows) * training.rate)
        noise = seeded_random(random.bytes(32))
        table = self.run.config.privacy
        if not isinstance(table, DpSgdTable):
            raise TypeError("a head under noise in a run without one")
        recipe = PrivateHead.of(self.run.federation.sites[0], table).recipe
        with Ledger(
            Path(":memory:"),
            "a",
            "study",
            relation=charge.event().relation,
            budget_epsilon=None,
            delta=1e-5,
        ) as ledger:

            def begin(size: int) -> Descent:
                return replace(charge, size=size).begin(ledger, ReleaseKey("study", 0), noise)

            head = PrivateHead(cohort, recipe, pool.multi_label)
            natural = self._raw(self.backbone.features)
            head.train(network, natural, natural, self._known(number), begin, noise)
        return network

    def _raw(self, features: Tensor) -> Tensor:
        """Features as the network gives them."""
        return features * self.backbone.deviation + self.backbone.mean

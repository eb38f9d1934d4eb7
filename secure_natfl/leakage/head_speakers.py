"""Heads trained under noise at many sites, and their answers: what speaks under dp-sgd.

The interface of `speakers.Speakers`. A head sees features alone, so that the public backbone is
asked once for each record. Each site trains twice: as the run does, and with the least noise that
the mechanism can draw, which is the undefended arm; or once, where nobody asks for that arm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from protocols.chain import RandomBytes
from protocols.dp_sgd import Descent, DpSgd
from protocols.ledger import Ledger, ReleaseKey
from protocols.noise_search import LEAST
from protocols.sampler import seeded_random
from secure_natfl.config import DpSgd as DpSgdTable
from secure_natfl.dp_training import Cohort
from secure_natfl.fine_tuning import fresh
from secure_natfl.leakage.attacked import AnswersRun
from secure_natfl.leakage.pool import Pool, Rows
from secure_natfl.leakage.speakers import Asked, Floats
from secure_natfl.models import Network
from secure_natfl.systems.betas import Answer
from secure_natfl.systems.private_head import PrivateHead


@dataclass(frozen=True, eq=False)
class TrainedHead:
    """One site's head with hardly any noise, if it was asked for, and the one that speaks."""

    clear: Network | None
    noised: Network
    sites: int = 1


class HeadSpeakers(Asked):
    """Trains heads on the central model's backbone; `training` is the run's charge.

    clear: whether the head with hardly any noise is trained too; it says NaN otherwise.
    """

    def __init__(self, run: AnswersRun, training: DpSgd, rounds: int, *, clear: bool) -> None:
        super().__init__(run, run.config.models.central, rounds)
        self.training, self.clear = training, clear
        network = run.networks[run.config.models.central]
        classes = len(run.federation.task.classes)
        self._start = fresh(network, classes, torch.Generator().manual_seed(0))
        self._start.backbone = nn.Identity()

    def trained(
        self, pool: Pool, sites: Sequence[Rows], number: int, random: np.random.Generator
    ) -> Iterator[TrainedHead]:
        """Both heads of each site, or the noised one alone."""
        least = replace(self.training, noise_multiplier=LEAST)
        for rows in sites:
            streams = [seeded_random(random.bytes(32)) for _ in range(2)]
            yield TrainedHead(
                self._head(pool, rows, number, least, streams[0]) if self.clear else None,
                self._head(pool, rows, number, self.training, streams[1]),
            )

    def answers(self, trained: TrainedHead, number: int, features: Tensor | None = None) -> Floats:
        """What the clear and the noised head send for round `number`: [1, 2, layout size]."""
        rows = self.rows[number]
        asked = self.backbone.features[rows] if features is None else features
        noised = self.run.system.weighted(self._ask(trained.noised, asked), rows)
        if trained.clear is None:
            return np.concatenate([np.full_like(noised, np.nan), noised])[None]
        clear = self.run.system.weighted(self._ask(trained.clear, asked), rows)
        return np.concatenate([clear, noised])[None]

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
        self, pool: Pool, rows: Rows, number: int, training: DpSgd, noise: RandomBytes
    ) -> Network:
        network = fresh(self._start, self._start.classes, torch.Generator().manual_seed(0))
        at = torch.from_numpy(rows)
        units = tuple(torch.tensor([row]) for row in range(len(rows)))
        cohort = Cohort((self._raw(pool.features[at]), pool.targets[at], pool.known[at]), units)
        charge = replace(training, expected=len(rows) * training.rate)
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

"""Heads trained under noise at many sites, and their answers: what speaks under dp-sgd.

The interface of `speakers.Speakers`. A head sees features alone, so that the public backbone is
asked once for each record. Each site trains twice: as the run does, and with the least noise that
the mechanism can draw, which is the undefended arm; or once, where nobody asks for that arm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from protocols.chain import RandomBytes
from protocols.dp_sgd import DpSgd
from protocols.noise_search import LEAST
from protocols.sampler import seeded_random
from secure_natfl.config import DpSgd as DpSgdTable
from secure_natfl.fine_tuning import fresh
from secure_natfl.leakage.attacked import AnswersRun
from secure_natfl.leakage.pool import Pool, Rows
from secure_natfl.leakage.quick_heads import quick_head
from secure_natfl.leakage.speakers import Asked, Floats
from secure_natfl.models import Network
from secure_natfl.natural_coordinates import NaturalCoordinates
from secure_natfl.systems.betas import Answer
from secure_natfl.systems.private_head import start_head


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
        """One site's head, as `PrivateHead` would train it with every record a unit."""
        network = fresh(self._start, self._start.classes, torch.Generator().manual_seed(0))
        at = torch.from_numpy(rows)
        inputs = self._space.inputs(self._raw(pool.features[at])).float()
        weights = quick_head(
            self._starts[number],
            (inputs, pool.targets[at], pool.known[at]),
            replace(training, expected=len(rows) * training.rate),
            self._rate,
            noise,
            multi_label=pool.multi_label,
        )
        with torch.no_grad():
            weight, bias = self._space.outward(weights)
            network.xray.weight.copy_(weight)
            network.xray.bias.copy_(bias)
        return network

    @cached_property
    def _space(self) -> NaturalCoordinates:
        return NaturalCoordinates.of(self._raw(self.backbone.features))

    @cached_property
    def _starts(self) -> list[Tensor]:
        """Where every head of a round starts: from what the server had returned, or from zero."""
        starts = []
        for number in range(len(self.rows)):
            network = fresh(self._start, self._start.classes, torch.Generator().manual_seed(0))
            start_head(network, self._known(number))
            starts.append(self._space.inward(network.xray.weight, network.xray.bias))
        return starts

    @property
    def _rate(self) -> float:
        table = self.run.config.privacy
        if not isinstance(table, DpSgdTable):
            raise TypeError("a head under noise in a run without one")
        return table.learning_rate

    def _raw(self, features: Tensor) -> Tensor:
        """Features as the network gives them."""
        return features * self.backbone.deviation + self.backbone.mean

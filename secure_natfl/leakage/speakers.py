"""Many sites' shard heads trained at once, and their answers; the run's own code and settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secure_natfl.fine_tuning import fresh
from secure_natfl.heads import HeadLoss, Knowledge, PublicBatch, ShardBatch, ShardHeads
from secure_natfl.leakage.attacked import AnswersRun
from secure_natfl.leakage.pool import Pool, Rows
from secure_natfl.run_folder import load_network
from secure_natfl.systems.betas import Answer
from secure_natfl.systems.speaking import (
    PublicBackbone,
    heads_answer,
    public_backbone,
    shard_capacity,
    train_heads,
)
from secure_natfl.training import features_of, logits_of

Floats = NDArray[np.float64]
_AT_ONCE: Final = 16  # sites whose heads are trained in one batch
_DECAY: Final = 1e-3


@dataclass(frozen=True, eq=False)
class Trained:
    """The heads of some sites, one after the other, with the shards that they were trained on."""

    heads: ShardHeads
    shards: ShardBatch
    sites: int


class Asked:
    """Public ground of all speakers of one architecture.

    rows [rounds, n]: the proxies that the signed plans asked. What the server had returned before
    a round comes from the run's own central model.
    """

    def __init__(self, run: AnswersRun, architecture: str, rounds: int) -> None:
        self.run = run
        federation, seeds = run.federation, run.folder.seeds
        network = run.networks[architecture]
        raw = features_of(network.backbone, federation.naturals.images)
        self.backbone: PublicBackbone = public_backbone(
            network, raw, federation.naturals, seeds.torch("trunk", architecture)
        )
        self.rows = [plan.subset.astype(np.int64) for plan in run.plans[:rounds]]
        self._returned = [self._logits(number) for number in range(rounds)]

    def _known(self, number: int) -> Knowledge | None:
        """Earlier rows' features, raw, and what the server had returned on them."""
        returned = self._returned[number]
        return None if returned is None else Knowledge(self.backbone.raw[returned[0]], returned[1])

    def _logits(self, number: int) -> tuple[Rows, Tensor] | None:
        """The central model's answers on all rows that were asked before this round."""
        if number == 0:
            return None
        run, system = self.run, self.run.system
        rows = np.concatenate(self.rows[:number])
        central = fresh(
            run.networks[run.config.models.central],
            len(run.federation.task.classes),
            run.folder.seeds.torch("central"),
            len(system.heads),
        )
        load_network(central, run.folder.intact(f"round-{number - 1:03d}") / "central.safetensors")
        return rows, logits_of(central, run.federation.naturals.images[rows])[:, 0]


class Speakers(Asked):
    """Trains shard heads at sites with one architecture, for one round, and asks them."""

    def __init__(self, run: AnswersRun, architecture: str, teachers: int, rounds: int) -> None:
        super().__init__(run, architecture, rounds)
        self.teachers = teachers

    def trained(
        self, pool: Pool, sites: Sequence[Rows], number: int, random: np.random.Generator
    ) -> Iterator[Trained]:
        """Heads of all sites for round `number`, some sites at a time."""
        room = shard_capacity(max(map(len, sites)), self.teachers, 1)
        for start in range(0, len(sites), _AT_ONCE):
            some = sites[start : start + _AT_ONCE]
            batch = _joined([self._sharded(pool, rows, room, random) for rows in some])
            yield Trained(self._train(batch, number, random), batch, len(some))

    def answers(self, trained: Trained, number: int, features: Tensor | None = None) -> Floats:
        """What every teacher sends for round `number`: [sites, M, layout size].

        features [rows, d]: other images than the plan's, as a malicious server would send them.
        """
        rows = self.rows[number]
        said = self.ask(trained, self.backbone.features[rows] if features is None else features)
        matrix = self.run.system.weighted(said, rows)
        return matrix.reshape(trained.sites, self.teachers, -1)

    def ask(self, trained: Trained, features: Tensor) -> Answer:
        """The teachers' logits on any features [n, d]."""
        return heads_answer(
            trained.heads,
            trained.shards,
            features,
            multi_label=self.run.federation.task.multi_label,
        )

    def _train(self, batch: ShardBatch, number: int, random: np.random.Generator) -> ShardHeads:
        options = self.run.config.natimg
        return train_heads(
            self.backbone,
            batch,
            PublicBatch(self.backbone.features, self.run.federation.naturals.labels),
            self._knowledge(number),
            HeadLoss(
                natural=options.natural_weight,
                alignment=options.alignment_weight,
                distillation=options.distillation_weight,
                decay=_DECAY,
            ),
            options.head_steps,
            options.temperature,
            torch.Generator().manual_seed(int(random.integers(1 << 31))),
            multi_label=self.run.federation.task.multi_label,
        )

    def _sharded(
        self, pool: Pool, rows: Rows, room: int, random: np.random.Generator
    ) -> ShardBatch:
        """A site's records in shards drawn anew; a shard takes what it has room for."""
        width, classes = pool.features.shape[1], pool.targets.shape[1]
        padded = torch.zeros(self.teachers, room, width)
        targets, known = (torch.zeros(self.teachers, room, classes) for _ in range(2))
        shard = random.integers(0, self.teachers, len(rows))
        for at in range(self.teachers):
            own = torch.from_numpy(rows[shard == at][:room])
            padded[at, : len(own)] = pool.features[own]
            targets[at, : len(own)] = pool.targets[own]
            known[at, : len(own)] = pool.known[own]
        return ShardBatch(padded, targets, known)

    def _knowledge(self, number: int) -> Knowledge | None:
        """As `_known`, on standardised features."""
        returned = self._returned[number]
        if returned is None:
            return None
        return Knowledge(self.backbone.features[returned[0]], returned[1])


def _joined(batches: Sequence[ShardBatch]) -> ShardBatch:
    return ShardBatch(
        torch.cat([one.features for one in batches]),
        torch.cat([one.targets for one in batches]),
        torch.cat([one.known for one in batches]),
    )

"""How long the cells will take: images per second measured now, times the images of a cell.

Cells that are finished already, on this machine or another, say it better than any count.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache

import torch

from secure_natfl.config import Config, DpSgd, NoNoise, speaks_by_head
from secure_natfl.federation import Federation
from secure_natfl.models import Network, build_backbone
from secure_natfl.study.folder import StudyFolder
from secure_natfl.study.grid import Cell, Plan

_BATCH, _STEPS = 32, 3
_START, _LOAD = 1.5, 2e-4
"""Seconds of a cell for itself, and per image for scoring it; images are read once per process."""

_CONTROLS = {"noise_proxies", "in_domain_proxies"}
_BACKWARD = 3
"""Cost of a training step in passes without one."""

_HEADS, _DESCENT = 1.0, 0.5
"""Seconds of a site's round for shard heads, and for one head trained under noise, about."""


class Estimate:
    """Foretells a cell's seconds on one core.

    federations: cell id → the federation of some cells, at least one of every setting and kind.
    counted: cell id → seconds, where the cells were measured already.
    """

    def __init__(
        self,
        plan: Plan,
        federations: Mapping[str, Federation],
        folder: StudyFolder | None,
        counted: Mapping[str, float] | None = None,
    ) -> None:
        self._plan, self._federations, self._folder = plan, federations, folder
        self._measured = counted or {}
        self._shape: dict[str, str] = {}
        for number, setting in enumerate(plan.settings):
            for seed in setting.seeds:
                for cell in plan.of(setting, seed):
                    self._shape.setdefault(cell.id, f"{cell.kind} {number}")
        self._taken: dict[str, list[float]] = defaultdict(list)

    @cached_property
    def _counted(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for cell in self._plan.cells():
            if cell.id in self._measured:
                found.setdefault(self._shape[cell.id], self._measured[cell.id])
            elif cell.id in self._federations:
                seconds = _seconds(cell, self._federations[cell.id], self._sharing(cell))
                found.setdefault(self._shape[cell.id], seconds)
        return found

    def _sharing(self, cell: Cell) -> int:
        """How many settings use the same personal training; 1 where it depends on the others."""
        if cell.config.natimg.downward != "off":
            return 1
        alike = [
            setting
            for setting in self._plan.settings
            if "personalised" in setting.models
            and setting.config.natimg.downward == "off"
            and setting.config.data.hospitals == cell.config.data.hospitals
            and _sides(setting.config) == _sides(cell.config)
        ]
        return max(1, len(alike))

    def learn(self, cell: Cell) -> None:
        """Take a finished cell into account."""
        if self._folder is not None:
            self._taken[self._shape[cell.id]].append(self._folder.record(cell)["seconds"])

    def seconds(self, cell: Cell) -> float:
        """Of one cell: like those of its setting that ended, else as counted and corrected."""
        shape = self._shape[cell.id]
        if self._taken[shape]:
            return sum(self._taken[shape]) / len(self._taken[shape])
        return self._correction() * self._counted[shape]

    def _correction(self) -> float:
        """Seconds taken over seconds counted, of all cells so far."""
        pairs = [(t, self._counted[s]) for s, each in self._taken.items() for t in each]
        return sum(t for t, _ in pairs) / sum(c for _, c in pairs) if pairs else 1.0

    def total(self, cells: Sequence[Cell]) -> float:
        """CPU seconds of all of `cells`."""
        return sum(self.seconds(cell) for cell in cells)


def _seconds(cell: Cell, federation: Federation, sharing: int) -> float:
    config, sites, models = cell.config, federation.sites, cell.models
    images = sum(len(site.train) + len(site.test) for site in sites)
    total = _START + _LOAD * (images + len(federation.naturals.labels))
    epochs = config.system.rounds * config.natimg.local_epochs
    central = _rate(config.models.central, config.data.size)
    train = {site.name: len(site.train) for site in sites}
    alone = sum(train[s.name] / _rate(s.architecture, config.data.size) for s in sites)
    if cell.kind == "comparison":
        total += epochs * alone if "local_only" in models else 0
        return total + (epochs * sum(train.values()) / central if "pooled" in models else 0)
    if not speaks_by_head(config.privacy):
        # Every round learns from all proxies asked so far.
        passes = config.proxies.per_round * config.system.rounds * (config.system.rounds + 1) / 2
        total += config.natimg.distill_epochs * passes / central
    # Controls go through the central network once for training and once for the student.
    passed = 2 * config.proxies.per_round * config.system.rounds
    total += passed / (_BACKWARD * central) * len(_CONTROLS.intersection(models))
    if "personalised" in models:
        total += _sides(config) * epochs * alone / sharing
    deep = sum(train.values()) / central
    return total + config.system.rounds * _speaking(config, len(sites), 2 * epochs * alone, deep)


def _sides(config: Config) -> int:
    """2 where public images go beside private ones in a site's own training."""
    system = config.natimg
    return 2 if system.natural_weight or system.downward != "off" else 1


def _speaking(config: Config, sites: int, network: float, deep: float) -> float:
    """Of one round at all sites; `network`: where a whole one is fine-tuned at each; `deep`: one
    pass of all private images through the central architecture.
    """
    if isinstance(config.privacy, DpSgd):
        steps = config.privacy.steps
        if config.privacy.layers != "head":
            return deep * steps * config.privacy.rate
        return _DESCENT * sites * steps / 60
    if speaks_by_head(config.privacy):
        return sites * _DESCENT
    if isinstance(config.privacy, NoNoise) and config.privacy.speaking == "network":
        return network
    if config.privacy.mechanism == "client-gaussian":
        return network
    return _HEADS * sites * config.natimg.head_steps / 60


@lru_cache
def _rate(architecture: str, size: int) -> float:
    """Images per second of training on one thread, measured on a few batches of nothing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        backbone, features = build_backbone(architecture, size)
        network = Network(backbone, features, 2, 2)
        images = torch.zeros(_BATCH, 1, size, size)
        network(images)[0].sum().backward()
        start = time.process_time()
        for _ in range(_STEPS):
            network(images)[0].sum().backward()
        return _BATCH * _STEPS / (time.process_time() - start)
    finally:
        torch.set_num_threads(threads)

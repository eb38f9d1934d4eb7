"""What FedMD, FedDF, DS-FL and FedAUX share, as `systems.distilled` builds on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from torch import Tensor, nn

from secure_natfl.config import Config
from secure_natfl.federation import Federation, Site
from secure_natfl.methods.distillation_rules import Rule
from secure_natfl.methods.plain_models import started, taught, train_plain
from secure_natfl.methods.task_network import below
from secure_natfl.seeds import Seeds
from secure_natfl.summed.weight_vectors import tensors_of
from secure_natfl.system_tables import Distilled as Table
from secure_natfl.systems.grouped import Grouped
from secure_natfl.systems.summed import Phase, Rows, Summed, Trait, Vector
from secure_natfl.training import Schedule

UPDATE: Final = "update"
ANSWERS: Final = "answers"
_LEAST_VARIANCE: Final = 1e-5
_SOURCES: Final = {
    "fedmd": "FedMD (Li and Wang 2019, arXiv:1910.03581)",
    "feddf": "FedDF (Lin et al. 2020, arXiv:2006.07242)",
    "ds-fl": "DS-FL with entropy reduction (Itahara et al. 2021, arXiv:2008.06180)",
    "fedaux": "FedAUX (Sattler et al. 2021, arXiv:2102.02514)",
}


class Distilling(Grouped):
    """What both families share: who is asked about which public images, and how it trains."""

    name = "distilled"
    options: Table

    def __init__(self, config: Config, options: Table, federation: Federation, seeds: Seeds):
        self.config, self.options = config, options
        self.federation, self.seeds = federation, seeds
        task = federation.task
        rows, classes = config.proxies.per_round, len(task.classes)
        self.rule = Rule(options.method, rows, classes, task.multi_label, options.sharpening)

    @property
    def reconstruction(self) -> str:
        """The label sentence."""
        said = f"{_SOURCES[self.options.method]}: a baseline, its answers summed under protection."
        if self.options.method == "fedaux":
            said += " Its certainty has no noise of its own; only the run's mechanism covers it."
        return said

    def phases(self, round_number: int) -> tuple[Phase, ...]:
        """One sum, of answers on public images."""
        del round_number
        return (Phase(ANSWERS, self.rule.layout),)

    def asked(self, round_number: int, phase: str) -> Rows:
        """The public images of a round, none in two rounds; none for weights."""
        if phase == UPDATE:
            return np.zeros(0, dtype=np.int64)
        count = self.config.proxies.per_round
        return np.sort(self.order()[round_number * count : (round_number + 1) * count])

    def trained_parameters(self, site: Site) -> int:
        """Nothing trains under noise."""
        del site
        return 0

    def parts(self) -> dict[str, bool]:
        """What is on and off."""
        method = self.options.method
        return {
            "a network of each site's own": method in ("fedmd", "ds-fl"),
            "a student that starts from the mean of weights": method in ("feddf", "fedaux"),
            "entropy reduction of the mean": method == "ds-fl",
            "certainty weights, without noise of their own": method == "fedaux",
            f"client weight α ({self.options.alpha})": self.options.alpha != "equal",
            "a share of the sites per round": self.options.participation < 1,
        }

    def traits(self) -> dict[str, Trait]:
        """Sizes and schedules."""
        return {
            "method": self.options.method,
            "numbers sent per round": sum(p.layout.size for p in self.phases(0)),
            "local epochs per round": self.options.local_epochs,
            "distillation epochs per round": self.options.distill_epochs,
        }

    def order(self) -> Rows:
        """The public images in the order in which rounds ask them; the rest are never asked."""
        rng = np.random.default_rng(self.seeds.integer("proxies"))
        return rng.permutation(len(self.federation.natural_records)).astype(np.int64)

    def started(self, architecture: str) -> nn.Module:
        """The public start of an architecture, for the one task."""
        task = self.federation.task
        return started(self.config, self.federation, architecture, task, self.seeds).eval()

    def images(self, round_number: int) -> Tensor:
        """The public images that a round asks [rows, ch, S, S]."""
        return self.federation.naturals.images[self.asked(round_number, ANSWERS)]

    def train(self, network: nn.Module, site: Site, round_number: int, purpose: str) -> float:
        """Train on a site's images, in place; the loss of the last epoch."""
        schedule = self._schedule(self.options.local_epochs, self.options.learning_rate)
        generator = self.seeds.torch(purpose, site.name, round_number)
        return train_plain(network, site.train, schedule, generator)

    def learn(self, network: nn.Module, target: Tensor, round_number: int, *who: str) -> float:
        """Fit a network to what was released on a round's images; the loss of the last epoch."""
        schedule = self._schedule(self.options.distill_epochs, self.options.distill_rate)
        generator = self.seeds.torch("distil", *who, round_number)
        return self.rule.learn(network, self.images(round_number), target, schedule, generator)

    def _schedule(self, epochs: int, rate: float) -> Schedule:
        return Schedule(epochs, max(2, self.config.models.batch // 2), rate)

    def targets(self, sums: Mapping[str, Summed]) -> dict[str, Tensor]:
        """Group → logits [rows, C] to learn from."""
        return {
            group: self.rule.target(opened.mean, opened.noise / opened.weight)
            for group, opened in sums.items()
        }


def move(network: nn.Module, change: Vector) -> None:
    """Add a change of all that is taught to a network, in place."""
    now = taught(network)
    for name, moved in tensors_of(change, now).items():
        now[name] += moved
        if name.endswith("running_var"):
            # Clipping and noise can take a variance below zero.
            now[name].clamp_(min=_LEAST_VARIANCE)


def named(networks: Mapping[str, nn.Module], start: str) -> dict[str, Tensor]:
    """Everything taught of several networks, as "start/WHO/tensor"."""
    return {
        f"{start}{who}/{name}": tensor.clone()
        for who, network in networks.items()
        for name, tensor in taught(network).items()
    }


def take_up(networks: Mapping[str, nn.Module], state: Mapping[str, Tensor], start: str) -> None:
    """Undo `named`, in networks that are there."""
    for who, network in networks.items():
        found = below(state, f"{start}{who}/")
        network.load_state_dict(network.state_dict() | found)

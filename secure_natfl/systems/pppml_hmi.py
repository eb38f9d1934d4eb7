"""PPPML-HMI: a shared start that every site makes its own in a few steps (Per-FedAvg), summed in a
ring under homomorphic encryption.

Source: Zhou et al., "Personalized and privacy-preserving federated heterogeneous medical image
analysis with PPPML-HMI", Computers in Biology and Medicine 169:107861, 2024 (arXiv 2302.11571),
and its public code. Departures, each for a defect of that code: Per-FedAvg is that of Fallah et
al. 2020 (`per_fedavg`); no network has batch statistics; what chooses among own steps is cut from
the training patients, and no test image is read; sums are exact integers whatever their size.

A round: every site moves the shared weights θ along its gradients after an own step, and sends the
change; the server adds the weighted mean to θ; every site takes up to K own steps from there.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from protocols.errors import ConfigError, PrivacyError
from secure_natfl.config import Config, DpSgd
from secure_natfl.federation import Federation, Site
from secure_natfl.methods.meta_training import (
    LocalPlan,
    NoisyTraining,
    cut,
    own_network,
    place,
    weights_of,
)
from secure_natfl.methods.per_fedavg import Meta
from secure_natfl.methods.plain_models import Plain, started
from secure_natfl.seeds import Seeds
from secure_natfl.summed.weight_vectors import layout_of
from secure_natfl.surgery import fitted, trainable
from secure_natfl.system_tables import PppmlHmi as Table
from secure_natfl.systems.grouped import Grouped
from secure_natfl.systems.private_head import Begin
from secure_natfl.systems.summed import SITE, Phase, Summed, Trait, Vector

RECONSTRUCTION = (
    "PPPML-HMI (Zhou et al. 2024, Computers in Biology and Medicine 169:107861), after its paper "
    "and public code, with Per-FedAvg as Fallah et al. 2020 have it."
)


class PppmlHmi(Grouped):
    """The system, as `SummedSystem` describes it; cohort, groups and weights as `Grouped` has them.

    shared: group → θ, one vector [parameters].
    """

    name = "pppml-hmi"
    reconstruction = RECONSTRUCTION
    options: Table

    def __init__(self, config: Config, federation: Federation, seeds: Seeds) -> None:
        options = config.system
        if not isinstance(options, Table):
            raise ConfigError("the table is of another system", where="system.kind")
        self.options, self.config = options, config
        self.federation, self.seeds = federation, seeds
        self._network = _common(config, federation, seeds)
        seed = config.data.split_seed
        self._parts = {s.name: cut(s, options.validation_folds, seed) for s in federation.sites}
        # Two batches of a step together are as large as one of other systems.
        self._batch = max(1, config.models.batch // 4)
        meta = Meta(options.inner_rate, options.order)
        self._plan = LocalPlan(
            meta, options.local_epochs, self._batch, options.learning_rate, options.optimiser
        )
        self._layout = layout_of(trainable(self._network))
        start = weights_of(self._network)
        self.shared = {group: start.clone() for group in federation.groups}
        self.own: dict[str, Tensor] = {}
        self._taken: dict[str, int] = {}
        self._noisy: NoisyTraining | None = None

    # What is agreed before a round.

    def phases(self, round_number: int) -> tuple[Phase, ...]:
        """One sum, of the changes of all weights, layer by layer."""
        del round_number
        return (Phase("update", self._layout),)

    def trained_parameters(self, site: Site) -> int:
        """All weights train under noise."""
        del site
        return self._layout.size

    # A round.

    def contribute(self, site: Site, round_number: int, phase: str, begin: Begin | None) -> Vector:
        """The change of θ that this site's gradients after an own step make: float64."""
        del phase
        start = self.shared[site.group]
        network = self._with(start)
        table = self.config.privacy
        if isinstance(table, DpSgd):
            self._train_noisily(network, site, round_number, table, begin)
        else:
            draw = self.seeds.torch("local training", site.name, round_number)
            self._plan.train(network, self._parts[site.name].fit, draw)
        change = weights_of(network).double() - start.double()
        return np.asarray(change.numpy(), dtype=np.float64)

    def absorb(self, sums: Mapping[str, Summed], round_number: int, phase: str) -> None:
        """θ of a group moves by the weighted mean of the changes; without a sum it stays."""
        del round_number, phase
        for group, found in sums.items():
            moved_by = torch.from_numpy(found.mean)
            self.shared[group] = (self.shared[group].double() + moved_by).float()

    def personalise(self, site: Site, round_number: int) -> float | None:
        """Own steps from θ; of 0 to K the number that the site's validation part finds best.

        Returns the loss on that part, None without one.
        """
        options, network = self.options, self._with(self.shared[site.group])
        draw = self.seeds.torch("own steps", site.name, round_number)
        self._taken[site.name], least = own_network(
            network,
            self._parts[site.name],
            options.own_steps,
            options.inner_rate,
            2 * self._batch,
            draw,
        )
        self.own[site.name] = weights_of(network)
        return least

    # What comes of it.

    def answering(self, site: Site) -> nn.Module:
        """The site's own network; the shared one before it has any."""
        return self._with(self.own.get(site.name, self.shared[site.group])).eval()

    def central(self, site: Site) -> nn.Module | None:
        """The shared start, before any own step."""
        return self._with(self.shared[site.group]).eval()

    def gradient_of(self, site: Site, round_number: int) -> tuple[Tensor, ...]:
        """What a neighbour in the ring would learn of this site if the sum were in clear.

        The site's update of this round as attacks on gradients read it, (weights before − after) /
        (β · steps), one tensor per parameter. Nothing is sent; simulation only.
        """
        sent = torch.from_numpy(self.contribute(site, round_number, "update", None))
        steps = self._plan.steps(len(self._parts[site.name].fit))
        scaled = -sent.float() / (self._plan.rate * steps)
        shapes = [p.shape for p in trainable(self._network).values()]
        pieces = torch.split(scaled, [shape.numel() for shape in shapes])
        return tuple(p.view(shape) for p, shape in zip(pieces, shapes, strict=True))

    def state(self) -> dict[str, Tensor]:
        """θ of every group, and what each site made of it."""
        found = {f"shared/{group}": value for group, value in self.shared.items()}
        for name, value in self.own.items():
            found[f"{SITE}{name}/own"] = value
            found[f"{SITE}{name}/taken"] = torch.tensor([self._taken[name]])
        return found

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` gave."""
        self.shared = {group: state[f"shared/{group}"] for group in self.shared}
        names = [site.name for site in self.federation.sites if f"{SITE}{site.name}/own" in state]
        self.own = {name: state[f"{SITE}{name}/own"] for name in names}
        self._taken = {name: int(state[f"{SITE}{name}/taken"]) for name in names}

    def parts(self) -> dict[str, bool]:
        """What is on."""
        return {
            "meta-learned start": True,
            "Hessian-free product": self.options.order == "hessian-free",
            "own steps": self.options.own_steps > 0,
            "validation chooses": self.options.validation_folds > 0,
        }

    def traits(self) -> dict[str, Trait]:
        """Sizes, and how many own steps the sites kept."""
        found: dict[str, Trait] = {
            "parameters": self._layout.size,
            "own steps at most": self.options.own_steps,
        }
        return found | {f"own steps kept at {name}": n for name, n in self._taken.items()}

    # Within.

    def _with(self, weights: Tensor) -> nn.Module:
        network = copy.deepcopy(self._network)
        place(weights, network)
        return network

    def _train_noisily(
        self, network: nn.Module, site: Site, number: int, table: DpSgd, begin: Begin | None
    ) -> None:
        if begin is None:
            raise PrivacyError("training under noise without a charge for it", where=site.name)
        if self._noisy is None:
            shape, draw = self.federation.sites[0].train, self.seeds.torch("probe")
            self._noisy = NoisyTraining(self._network, shape, draw)
        self._noisy.train(
            network,
            self._parts[site.name],
            begin(self._noisy.size),
            clips=table.learning_rate,
            ahead=self.options.inner_rate / self.options.learning_rate,
            images=table.max_images_per_patient,
            random=self.seeds.protective(os.urandom, "images of a step", site.name, number),
        )


def make(config: Config, federation: Federation, seeds: Seeds) -> PppmlHmi:
    """The system; ConfigError or ModelError where networks, data or mechanism do not fit it."""
    table = config.privacy
    if isinstance(table, DpSgd) and (table.layers != "network" or table.steps % 2):
        raise ConfigError(
            "Per-FedAvg trains all weights, by two noisy gradients a step",
            where="privacy",
            fix='set layers = "network" and an even number of steps',
        )
    return PppmlHmi(config, federation, seeds)


def _common(config: Config, federation: Federation, seeds: Seeds) -> nn.Module:
    """The one network of all sites; `fitted` leaves it no running statistics to disagree on."""
    names = {site.architecture: site.name for site in federation.sites}
    if len(names) > 1:
        raise ConfigError(
            "sites have different networks: "
            + ", ".join(f"{name} at {site}" for name, site in names.items()),
            where="data.hospitals",
            why="weights are averaged one by one",
            fix="give every hospital the same single architecture",
        )
    (architecture,) = names
    network = started(config, federation, architecture, federation.task, seeds)
    if isinstance(network, Plain):
        network.network.natural.requires_grad_(False)
    return fitted(network)

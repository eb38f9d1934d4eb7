"""FedAvg, and by two keys FedProx and FedBN: the averaging baselines of every other system.

McMahan et al. 2017 (AISTATS, arXiv 1602.05629): every site trains the shared network on its own
images for some epochs, and the weighted mean of what changed is the next shared network. FedProx
(Li et al. 2020, arXiv 1812.06127) adds µ/2·‖w − w_shared‖² to the local loss; FedBN (Li et al.
2021, arXiv 2102.07623) keeps normalisation layers at the site.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from protocols.errors import ConfigError
from secure_natfl.config import Config, DpSgd
from secure_natfl.deep_training import trained_parameters
from secure_natfl.federation import Federation, Site
from secure_natfl.methods.averaging_variants import norm_names, proximal_term
from secure_natfl.methods.plain_models import Plain, parameter_count, started, taught, train_plain
from secure_natfl.methods.private_layers import private_names, train_privately
from secure_natfl.seeds import Seeds
from secure_natfl.summed.weight_vectors import layout_of, tensors_of, vector_of
from secure_natfl.system_tables import FedAvg
from secure_natfl.systems.grouped import Grouped, one_architecture
from secure_natfl.systems.private_head import Begin
from secure_natfl.systems.summed import SITE, SPAN, Phase, Summed, Trait, Vector
from secure_natfl.training import Schedule

NAME = "fedavg"
HEAD_SPAN = 32.0
"""A head under noise learns in natural coordinates; in those of its features it may move far."""
_LEAST_VARIANCE = 1e-5


class Averaging(Grouped):
    """The shared network of each group, and what stays at each site.

    It is used as `SummedSystem` describes it; cohort, groups and weights are those of `Grouped`.
    """

    name = NAME
    options: FedAvg

    def __init__(self, config: Config, federation: Federation, seeds: Seeds) -> None:
        if not isinstance(config.system, FedAvg):
            raise ConfigError(f"the table is of {config.system.kind}", where="system.kind")
        self.options, self.config = config.system, config
        self.federation, self.seeds = federation, seeds
        self._architecture = one_architecture(federation)
        self._template = started(
            config, federation, self._architecture, federation.task, seeds
        ).eval()
        whole = taught(self._template)
        self._norms = norm_names(self._template)
        kept = set(self._norms) if self.options.keep_norms else set()
        self._sent = {name: tensor for name, tensor in whole.items() if name not in kept}
        if isinstance(config.privacy, DpSgd):
            self._check_private()
            self._sent = {n: whole[n] for n in private_names(self._template, config.privacy)}
        self._layout = layout_of(self._sent)
        groups = dict.fromkeys(self.group_of(site) for site in federation.sites)
        self._shared = {group: _copied(self._sent) for group in groups}
        self._own = {
            site.name: {name: whole[name].clone() for name in kept} for site in federation.sites
        }
        self._losses: dict[str, float] = {}

    @property
    def reconstruction(self) -> str:
        """The label sentence."""
        said = "Federated averaging (McMahan et al. 2017)"
        if self.options.proximal:
            said += " with FedProx' proximal term (Li et al. 2020)"
        if self.options.keep_norms:
            said += " and FedBN's site-own normalisation (Li et al. 2021)"
        return f"{said}: a baseline, under the same protection as the systems it is compared with."

    def phases(self, round_number: int) -> tuple[Phase, ...]:
        """One sum: what changed in the shared tensors."""
        del round_number
        table = self.config.privacy
        head = isinstance(table, DpSgd) and table.layers == "head"
        return (Phase("update", self._layout, HEAD_SPAN if head else SPAN),)

    def trained_parameters(self, site: Site) -> int:
        """The size of a private gradient: head, last block or network."""
        del site
        table = self.config.privacy
        if not isinstance(table, DpSgd):
            return 0
        classes = len(self.federation.task.classes)
        return trained_parameters(self._architecture, self.config.data.size, classes, table.layers)

    # At a site.

    def contribute(self, site: Site, round_number: int, phase: str, begin: Begin | None) -> Vector:
        """Train on from the shared network: what changed, [layout size]."""
        del phase
        before = self._shared[self.group_of(site)]
        network = self._network(site)
        table = self.config.privacy
        if isinstance(table, DpSgd):
            naturals = self.federation.naturals.images
            random = self.seeds.protective(os.urandom, "drawn images", site.name, round_number)
            train_privately(network, site, table, naturals, begin, random, head_by_features=True)
        else:
            self._losses[site.name] = self._train(network, site, round_number)
        after = taught(network)
        for name in self._own[site.name]:
            self._own[site.name][name] = after[name].clone()
        return vector_of({name: after[name] for name in before}) - vector_of(before)

    def personalise(self, site: Site, round_number: int) -> float | None:
        """Nothing more is trained: the loss of the local training, where there was one."""
        del round_number
        return self._losses.pop(site.name, None)

    def answering(self, site: Site) -> nn.Module:
        """The shared network, with the site's own normalisation under FedBN."""
        return self._network(site).eval()

    # At the server.

    def absorb(self, sums: Mapping[str, Summed], round_number: int, phase: str) -> None:
        """The shared network moves by the weighted mean of the changes."""
        del round_number, phase
        for group, opened in sums.items():
            moved = tensors_of(opened.mean, self._shared[group])
            after = {name: old + moved[name] for name, old in self._shared[group].items()}
            for name in after:
                if name.endswith("running_var"):
                    # Clipping and noise can take a variance below zero.
                    after[name].clamp_(min=_LEAST_VARIANCE)
            self._shared[group] = after

    def central(self, site: Site) -> nn.Module | None:
        """The shared network; under FedBN it is not whole without a site's normalisation."""
        return None if self.options.keep_norms else self._network(site).eval()

    # For the run loop.

    def state(self) -> dict[str, Tensor]:
        """The shared tensors of each group, and each site's own."""
        found = {
            f"{group}/{name}": tensor
            for group, tensors in self._shared.items()
            for name, tensor in tensors.items()
        }
        for site, tensors in self._own.items():
            found |= {f"{SITE}{site}/{name}": tensor for name, tensor in tensors.items()}
        for site, loss in self._losses.items():
            found[f"{SITE}{site}/loss"] = torch.tensor([loss], dtype=torch.float64)
        return found

    def restore(self, state: dict[str, Tensor]) -> None:
        """As `state` gave it."""
        for group, tensors in self._shared.items():
            self._shared[group] = {name: state[f"{group}/{name}"].clone() for name in tensors}
        for site, tensors in self._own.items():
            self._own[site] = {name: state[f"{SITE}{site}/{name}"].clone() for name in tensors}
            if f"{SITE}{site}/loss" in state:
                self._losses[site] = float(state[f"{SITE}{site}/loss"])

    def parts(self) -> dict[str, bool]:
        """What is on and off."""
        kinds = ", ".join(sorted(set(self._norms.values()))) or "none in this network"
        note = "" if "BatchNorm" in kinds else "; without running statistics, scale and shift alone"
        return {
            f"proximal term, µ = {self.options.proximal:g} (FedProx)": self.options.proximal > 0,
            f"normalisation stays at the site (FedBN; {kinds}{note})": self.options.keep_norms,
            f"client weight α ({self.options.alpha})": self.options.alpha != "equal",
            "a share of the sites per round": self.options.participation < 1,
        }

    def traits(self) -> dict[str, Trait]:
        """Sizes and the local schedule."""
        return {
            "parameters of the network": parameter_count(self._template),
            "numbers sent per round": self._layout.size,
            "local epochs per round": self.options.local_epochs,
            "local learning rate": self.options.learning_rate,
        }

    def _network(self, site: Site) -> nn.Module:
        network = copy.deepcopy(self._template)
        own = self._shared[self.group_of(site)] | self._own[site.name]
        network.load_state_dict(network.state_dict() | own)
        return network

    def _train(self, network: nn.Module, site: Site, round_number: int) -> float:
        table = self.options
        schedule = Schedule(
            table.local_epochs, max(2, self.config.models.batch // 2), table.learning_rate
        )
        draw = self.seeds.torch("local", site.name, round_number)
        beside = proximal_term(network, self._sent, table.proximal) if table.proximal else None
        return train_plain(network, site.train, schedule, draw, beside)

    # Under dp-sgd, where the change of the trained layers is post-processing.

    def _check_private(self) -> None:
        form = self.federation.task.form
        if form == "mask" or not isinstance(self._template, Plain):
            raise ConfigError(
                f"dp-sgd trains classifiers on a public backbone, and this is {self._architecture} "
                f"for {form} labels",
                where="privacy.mechanism",
                fix='take "client-gaussian", or "none"',
            )
        if self.options.proximal or self.options.keep_norms:
            raise ConfigError(
                "dp-sgd fixes its own local loss, and keeps normalisation statistics public",
                where="system.proximal, system.keep_norms",
                fix="leave both at their defaults under dp-sgd",
            )


def make(config: Config, federation: Federation, seeds: Seeds) -> Averaging:
    """The system of a configuration with `system.kind = "fedavg"`."""
    return Averaging(config, federation, seeds)


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}

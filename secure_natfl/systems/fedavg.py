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

import numpy as np
import torch
from torch import Tensor, nn

from protocols.errors import ConfigError
from secure_natfl.config import Config, DpSgd
from secure_natfl.deep_training import train_layers, trained_names, trained_parameters
from secure_natfl.dp_training import Cohort, Recipe, train_head
from secure_natfl.federation import Federation, Site
from secure_natfl.methods.plain_models import Plain, parameter_count, started, taught, train_plain
from secure_natfl.seeds import Seeds
from secure_natfl.summed.weight_vectors import layout_of, tensors_of, vector_of
from secure_natfl.system_tables import FedAvg
from secure_natfl.systems.cohorts import declared_weights, drawn_cohort
from secure_natfl.systems.private_head import Begin
from secure_natfl.systems.summed import SITE, SPAN, Phase, Rows, Summed, Trait, Vector
from secure_natfl.training import Schedule, features_of

NAME = "fedavg"
HEAD_SPAN = 32.0
"""A head under noise learns in natural coordinates; in those of its features it may move far."""
_LEAST_VARIANCE = 1e-5


class Averaging:
    """The shared network of each group, and what stays at each site."""

    name = NAME

    def __init__(self, config: Config, federation: Federation, seeds: Seeds) -> None:
        if not isinstance(config.system, FedAvg):
            raise ConfigError(f"the table is of {config.system.kind}", where="system.kind")
        self.table, self.config = config.system, config
        self.federation, self.seeds = federation, seeds
        self._architecture = one_architecture(federation)
        self._template = started(
            config, federation, self._architecture, federation.task, seeds
        ).eval()
        whole = taught(self._template)
        self._norms = _norm_names(self._template)
        kept = set(self._norms) if self.table.keep_norms else set()
        self._sent = {name: tensor for name, tensor in whole.items() if name not in kept}
        if isinstance(config.privacy, DpSgd):
            self._check_private()
            self._sent = self._trained_tensors(config.privacy)
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
        if self.table.proximal:
            said += " with FedProx' proximal term (Li et al. 2020)"
        if self.table.keep_norms:
            said += " and FedBN's site-own normalisation (Li et al. 2021)"
        return f"{said}: a baseline, under the same protection as the systems it is compared with."

    def phases(self, round_number: int) -> tuple[Phase, ...]:
        """One sum: what changed in the shared tensors."""
        del round_number
        table = self.config.privacy
        head = isinstance(table, DpSgd) and table.layers == "head"
        return (Phase("update", self._layout, HEAD_SPAN if head else SPAN),)

    def asked(self, round_number: int, phase: str) -> Rows:
        """No public image is asked."""
        del round_number, phase
        return np.empty(0, dtype=np.int64)

    def cohort(self, round_number: int) -> tuple[str, ...]:
        """The configured share of each group, drawn anew each round."""
        fewest = self.config.aggregation.min_participants
        return drawn_cohort(
            self.table, self.federation, self.group_of, round_number, self.seeds, fewest
        )

    def group_of(self, site: Site) -> str:
        """One shared network per group of hospitals."""
        return site.group

    def weights(self) -> dict[str, int]:
        """α from declared sizes."""
        return declared_weights(self.table, self.federation, self.group_of)

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
        if isinstance(self.config.privacy, DpSgd):
            self._train_private(network, site, round_number, begin)
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
        return None if self.table.keep_norms else self._network(site).eval()

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
            f"proximal term, µ = {self.table.proximal:g} (FedProx)": self.table.proximal > 0,
            f"normalisation stays at the site (FedBN; {kinds}{note})": self.table.keep_norms,
            f"client weight α ({self.table.alpha})": self.table.alpha != "equal",
            "a share of the sites per round": self.table.participation < 1,
        }

    def traits(self) -> dict[str, Trait]:
        """Sizes and the local schedule."""
        return {
            "parameters of the network": parameter_count(self._template),
            "numbers sent per round": self._layout.size,
            "local epochs per round": self.table.local_epochs,
            "local learning rate": self.table.learning_rate,
        }

    def _network(self, site: Site) -> nn.Module:
        network = copy.deepcopy(self._template)
        own = self._shared[self.group_of(site)] | self._own[site.name]
        network.load_state_dict(network.state_dict() | own)
        return network

    def _train(self, network: nn.Module, site: Site, round_number: int) -> float:
        anchors = {name: p.detach().clone() for name, p in network.named_parameters()}

        def distance() -> Tensor:
            moved = [
                (p - anchors[name]).square().sum()
                for name, p in network.named_parameters()
                if name in self._sent
            ]
            return self.table.proximal / 2 * torch.stack(moved).sum()

        schedule = Schedule(
            self.table.local_epochs, max(2, self.config.models.batch // 2), self.table.learning_rate
        )
        return train_plain(
            network,
            site.train,
            schedule,
            self.seeds.torch("local", site.name, round_number),
            distance if self.table.proximal else None,
        )

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
        if self.table.proximal or self.table.keep_norms:
            raise ConfigError(
                "dp-sgd fixes its own local loss, and keeps normalisation statistics public",
                where="system.proximal, system.keep_norms",
                fix="leave both at their defaults under dp-sgd",
            )

    def _trained_tensors(self, table: DpSgd) -> dict[str, Tensor]:
        """Those that dp-sgd trains: a public tensor that nobody moves is not sent."""
        if not isinstance(self._template, Plain):
            return {}
        whole = taught(self._template)
        names = trained_names(self._template.network, table.layers)
        return {name: whole[name] for name in (f"network.{inner}" for inner in names)}

    def _train_private(
        self, network: nn.Module, site: Site, round_number: int, begin: Begin | None
    ) -> None:
        table = self.config.privacy
        if not isinstance(table, DpSgd) or begin is None or not isinstance(network, Plain):
            raise ConfigError("no charge for a training under noise", where=site.name)
        naturals, inner = self.federation.naturals.images, network.network
        recipe = Recipe(
            rate=table.learning_rate, momentum=0.0, images=table.max_images_per_patient, average=0.0
        )
        shared = Cohort.of_patients(site.train, site.train_patients), begin, recipe
        drawn = self.seeds.protective(os.urandom, "drawn images", site.name, round_number)
        features = features_of(inner.backbone, naturals)
        multi = self.federation.task.multi_label
        if table.layers == "head":
            train_head(inner, features, *shared, multi_label=multi, random=drawn)
        else:
            train_layers(
                inner,
                table.layers,
                naturals,
                features,
                *shared,
                multi_label=multi,
                random=drawn,
            )


def make(config: Config, federation: Federation, seeds: Seeds) -> Averaging:
    """The system of a configuration with `system.kind = "fedavg"`."""
    return Averaging(config, federation, seeds)


def one_architecture(federation: Federation) -> str:
    """The architecture of all sites; ConfigError where there are several."""
    names = sorted({site.architecture for site in federation.sites})
    if len(names) > 1:
        raise ConfigError(
            f"the sites have {len(names)} architectures: {', '.join(names)}",
            where="data.hospitals.architectures",
            why="weights of different networks cannot be averaged",
            fix=f'give all hospitals architectures = ["{names[0]}"], or take natimg-fl',
        )
    return names[0]


def _norm_names(network: nn.Module) -> dict[str, str]:
    """Names of all tensors of normalisation layers, each with its layer's kind."""
    found = {}
    for prefix, module in network.named_modules():
        kind = type(module).__name__
        own = next(module.parameters(recurse=False), None) is not None
        if own and "Norm" in kind and "NormFree" not in kind:
            for name, tensor in module.state_dict(prefix=f"{prefix}.").items():
                if tensor.is_floating_point():
                    found[name] = kind
    return found


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}

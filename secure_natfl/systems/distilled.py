"""FedMD, FedDF, DS-FL and FedAUX: baselines that learn from answers on public images.

The rules and their sources stand in `distillation_rules`, FedAUX' weights in `certainty`. Two
families: sites that keep networks of their own, of any architecture (`Consensus`: FedMD, DS-FL),
and one student that all sites train and a server teaches (`Ensemble`: FedDF, FedAUX).

What is otherwise than published: a server sees sums alone, so the ensemble's answers are added up
under protection, on images that are asked once, in place of being worked out from every site's
weights; and FedAUX' certainty has no noise of its own, since it leaves a site only inside the sum
that the run's mechanism covers. This file knows nothing of keys, noise or messages.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn

from protocols.errors import ConfigError, ModelError
from secure_natfl.config import Config, DpSgd
from secure_natfl.federation import Federation, Site
from secure_natfl.methods.certainty import (
    Bounds,
    Matrix,
    certainty,
    fit_certainty,
    sensitivity,
    size_of,
)
from secure_natfl.methods.plain_models import Plain, parameter_count, taught
from secure_natfl.methods.task_network import below
from secure_natfl.seeds import Seeds
from secure_natfl.summed.weight_vectors import layout_of, vector_of
from secure_natfl.system_tables import Distilled as Table
from secure_natfl.systems.distilling import UPDATE, Distilling, move, named, take_up
from secure_natfl.systems.grouped import one_architecture
from secure_natfl.systems.private_head import Begin
from secure_natfl.systems.summed import SITE, Phase, Rows, Summed, Trait, Vector
from secure_natfl.training import features_of


class Consensus(Distilling):
    """FedMD and DS-FL: sites' own networks meet in the answers. own: site → its network.

    FedMD: sites have learnt from their images, say what they think, fit the mean and go back to
    their images. DS-FL: sites learn from their images, answer, and fit the sharpened mean, as the
    server's own network (`models.central`) does. So FedMD trains once more on private images.
    """

    def __init__(self, config: Config, options: Table, federation: Federation, seeds: Seeds):
        super().__init__(config, options, federation, seeds)
        public = {name: self.started(name) for name in {s.architecture for s in federation.sites}}
        self.own = {s.name: copy.deepcopy(public[s.architecture]) for s in federation.sites}
        self.shared: dict[str, nn.Module] = {}
        if options.method == "ds-fl":
            central = self.started(config.models.central)
            self.shared = {group: copy.deepcopy(central) for group in federation.groups}
        self._released: dict[str, Tensor] = {}

    def contribute(self, site: Site, round_number: int, phase: str, begin: Begin | None) -> Vector:
        """Answers of the site's own network, after its local training (FedMD: in round 0 alone)."""
        del phase, begin
        network = self.own[site.name]
        if self.options.method == "ds-fl" or round_number == 0:
            self.train(network, site, round_number, "local")
        return self.rule.said(features_of(network, self.images(round_number)), None)

    def absorb(self, sums: Mapping[str, Summed], round_number: int, phase: str) -> None:
        """What the sites will learn from; DS-FL's server learns from it too."""
        del phase
        self._released = self.targets(sums)
        for group, target in self._released.items():
            if group in self.shared:
                self.learn(self.shared[group], target, round_number, group)

    def personalise(self, site: Site, round_number: int) -> float | None:
        """Fit what was released; with FedMD, back to the site's own images."""
        network, loss = self.own[site.name], None
        target = self._released.get(self.group_of(site))
        if target is not None:
            loss = self.learn(network, target, round_number, "site", site.name)
        if self.options.method == "fedmd":
            loss = self.train(network, site, round_number, "back")
        return loss

    def answering(self, site: Site) -> nn.Module:
        """The site's own network."""
        return self.own[site.name].eval()

    def central(self, site: Site) -> nn.Module | None:
        """DS-FL's network at the server; FedMD has none."""
        return self.shared.get(self.group_of(site))

    def state(self) -> dict[str, Tensor]:
        """All networks, and what was released last."""
        found = {f"released/{group}": target for group, target in self._released.items()}
        found |= named(self.shared, "shared/")
        return found | named(self.own, SITE)

    def restore(self, state: dict[str, Tensor]) -> None:
        """As `state` gave it."""
        self._released = below(state, "released/")
        take_up(self.shared, state, "shared/")
        take_up(self.own, state, SITE)

    def traits(self) -> dict[str, Trait]:
        """Sizes and schedules."""
        rounds = self.options.rounds + (self.options.method == "fedmd")
        passes = rounds * self.options.local_epochs
        return super().traits() | {"passes over private images in all": passes}


class Ensemble(Distilling):
    """FedDF and FedAUX: a student starts at the mean of the sites' weights, then learns answers.

    shared: group → the student. local: site → what it has trained in this round.
    """

    def __init__(self, config: Config, options: Table, federation: Federation, seeds: Seeds):
        super().__init__(config, options, federation, seeds)
        self.public = self.started(one_architecture(federation))
        self.shared = {group: copy.deepcopy(self.public) for group in federation.groups}
        self.local: dict[str, nn.Module] = {}
        self._fitted: dict[str, Matrix] = {}
        if options.method == "fedaux":
            _backbone(self.public)
            self._elsewhere = self._never_asked()

    def phases(self, round_number: int) -> tuple[Phase, ...]:
        """Two sums: of what changed in the student, and of answers."""
        update = Phase(UPDATE, layout_of(taught(self.public)))
        return (update, *super().phases(round_number))

    def contribute(self, site: Site, round_number: int, phase: str, begin: Begin | None) -> Vector:
        """What training changes in the student; then what the network so trained answers."""
        del begin
        if phase == UPDATE:
            student = self.shared[self.group_of(site)]
            network = self.local[site.name] = copy.deepcopy(student)
            self.train(network, site, round_number, "local")
            return vector_of(taught(network)) - vector_of(taught(student))
        images = self.images(round_number)
        said = features_of(self.local[site.name], images)
        return self.rule.said(said, self._certainty(site, images))

    def absorb(self, sums: Mapping[str, Summed], round_number: int, phase: str) -> None:
        """The student moves by the mean change; then it learns from the ensemble."""
        if phase == UPDATE:
            for group, opened in sums.items():
                move(self.shared[group], opened.mean)
            return
        for group, target in self.targets(sums).items():
            self.learn(self.shared[group], target, round_number, group)
        self.local.clear()

    def personalise(self, site: Site, round_number: int) -> float | None:
        """Nothing: sites use the student as it is."""
        del site, round_number
        return None

    def answering(self, site: Site) -> nn.Module:
        """The student."""
        return self.shared[self.group_of(site)].eval()

    def central(self, site: Site) -> nn.Module | None:
        """The student."""
        return self.answering(site)

    def state(self) -> dict[str, Tensor]:
        """The students, and between two sums what the sites have trained."""
        return named(self.shared, "shared/") | named(self.local, SITE)

    def restore(self, state: dict[str, Tensor]) -> None:
        """As `state` gave it."""
        take_up(self.shared, state, "shared/")
        names = [s.name for s in self.federation.sites if below(state, f"{SITE}{s.name}/")]
        self.local = {name: copy.deepcopy(self.public) for name in names}
        take_up(self.local, state, SITE)

    def traits(self) -> dict[str, Trait]:
        """Sizes and schedules, and what noise on the certainty would have to hide."""
        found = super().traits() | {"parameters of the student": parameter_count(self.public)}
        if self.options.method == "fedaux":
            public, sites = len(self._elsewhere), self.federation.sites
            fewest = min(size_of(site.train_patients, public) for site in sites)
            moved = sensitivity(fewest, self.options.certainty_decay)
            found["most that one patient moves a certainty regression, in L2"] = moved
        return found

    def _certainty(self, site: Site, images: Tensor) -> Tensor | None:
        """s of public images [n, 1], from features of the public start; None for FedDF."""
        if self.options.method != "fedaux":
            return None
        backbone = _backbone(self.public)
        elsewhere = features_of(backbone, self.federation.naturals.images[self._elsewhere])
        bounds = Bounds.of(elsewhere)
        if site.name not in self._fitted:
            self._fitted[site.name] = fit_certainty(
                bounds.bounded(features_of(backbone, site.train.images)),
                site.train_patients,
                bounds.bounded(elsewhere),
                self.options.certainty_decay,
            )
        return certainty(self._fitted[site.name], bounds.bounded(features_of(backbone, images)))

    def _never_asked(self) -> Rows:
        asked = self.options.rounds * self.config.proxies.per_round
        rest = self.order()[asked:]
        if len(rest) == 0:
            raise ConfigError(
                f"all {asked} public images are asked",
                where="proxies.per_round",
                why="FedAUX tells a site's images apart from public ones that are never asked",
                fix="lower it, or take more images",
            )
        return np.sort(rest)


def make(config: Config, federation: Federation, seeds: Seeds) -> Consensus | Ensemble:
    """The system of a configuration with `system.kind = "distilled"`. ConfigError, ModelError."""
    options = config.system
    if not isinstance(options, Table):
        raise ConfigError(f"the table is of {options.kind}", where="system.kind")
    _check(config, federation)
    family = Consensus if options.method in ("fedmd", "ds-fl") else Ensemble
    return family(config, options, federation, seeds)


def _check(config: Config, federation: Federation) -> None:
    if federation.task.form == "mask" or federation.sites[0].train.images.ndim > 4:
        raise ConfigError(
            "distilled systems answer with one row of classes for each image",
            where="data.hospitals",
            why="the hospitals' labels are masks, or their images are volumes",
            fix="set other labels or slices, or take a system that averages, such as fedavg",
        )
    if isinstance(config.privacy, DpSgd):
        raise ConfigError(
            "distilled systems train without noise, and dp-sgd covers nothing else",
            where="privacy.mechanism",
            fix='take "client-gaussian" or "none"; natimg-fl answers under dp-sgd',
        )


def _backbone(network: nn.Module) -> nn.Module:
    """What gives features of images; ModelError where a network has no such part."""
    if not isinstance(network, Plain):
        raise ModelError(
            "has no backbone that gives features",
            where="data.hospitals.architectures",
            why="FedAUX' certainty is read from them",
            fix="take a classifier that timm knows, or another method",
        )
    return network.network.backbone

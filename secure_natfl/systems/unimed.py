"""UniMed, reconstructed: one encoder grows from the local models of many different tasks.

Source: Radwan, Osman and Shehata, "UniMed", arXiv 2407.14719. It is known here from its abstract
alone: local models of different imaging tasks become one global model, no labelled data lie at the
server, and the baseline is masked image modelling. Everything else is a *reconstruction*, and none
of the paper's figures is claimed.

Stage 0: a ViT learns from masked public images (`masked_images`). Then, in each stage, every site
of the cohort, whatever its task, fine-tunes the encoder under a head of its own and sends either
the encoder's change ("param_avg") or that of its features of public images ("feature_distill"), by
whose mean the server moves the encoder's features, beside the masked images. New tasks may join a
later stage. After the last, every site fine-tunes the encoder for itself, those held out too.

Features are averaged as they are: all encoders of a stage begin as the same one, so their
coordinates agree. A map P_k of each site, as encoders of other widths would need, is left out.
This file knows nothing of keys, noise or messages.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from protocols.errors import ConfigError
from protocols.quantize import Layout, Segment
from secure_natfl.config import Config, DpSgd
from secure_natfl.federation import Federation, Site
from secure_natfl.methods.masked_images import MaskedAutoencoder, masked_start, match_features
from secure_natfl.methods.private_tuning import private_size, tune_privately
from secure_natfl.methods.public_pool import public_pool
from secure_natfl.methods.task_network import (
    TaskNetwork,
    below,
    over,
    probe_head,
    tune,
    weights_by_name,
)
from secure_natfl.methods.unimed_checks import check_unimed
from secure_natfl.seeds import Seeds
from secure_natfl.summed.weight_vectors import layout_of, tensors_of, vector_of
from secure_natfl.system_tables import UniMed as Table
from secure_natfl.systems.cohorts import declared_weights, drawn_cohort
from secure_natfl.systems.private_head import Begin
from secure_natfl.systems.summed import Phase, Rows, Summed, Trait, Vector
from secure_natfl.training import Schedule, features_of

RECONSTRUCTION: Final = (
    "UniMed (Radwan, Osman and Shehata, arXiv:2407.14719), a reconstruction from the abstract: the "
    "aggregation rule, the encoder and the stages are this project's reading, and none of the "
    "paper's figures is claimed."
)
_START: Final = 20_26
_SERVER_RATE: Final = 5e-4
_ALL: Final = "all"


def make(config: Config, federation: Federation, seeds: Seeds) -> UniMed:
    """The system of a configuration, with its public start. ConfigError, DataError, ModelError."""
    options = config.system
    if not isinstance(options, Table):
        raise ConfigError(f"{options.kind} is another system", where="system.kind")
    check_unimed(config, options, federation)
    pool = public_pool(federation, options.pool, config.data.root, config.data.size)
    start = masked_start(
        config.models.central,
        pool,
        mask=options.mask,
        epochs=config.models.pretrain_epochs,
        batch=config.models.batch,
        seed=_START,
    )
    return UniMed(config, options, federation, seeds, start, pool)


class UniMed:
    """The system, as `SummedSystem` describes it. `shared`: the encoder and its decoder, public."""

    name = "unimed"
    reconstruction = RECONSTRUCTION

    def __init__(
        self,
        config: Config,
        options: Table,
        federation: Federation,
        seeds: Seeds,
        shared: MaskedAutoencoder,
        pool: Tensor,
    ) -> None:
        self.config, self.options, self.federation = config, options, federation
        self.seeds, self.shared, self.pool = seeds, shared, pool
        self._heads: dict[str, nn.Linear] = {}
        self._own: dict[str, TaskNetwork] = {}
        self._probed: dict[str, TaskNetwork] = {}

    # What all parties agree on before a stage.

    def phases(self, round_number: int) -> tuple[Phase, ...]:
        """One sum: of the encoders' changes, layer by layer, or of features [asked, d]."""
        del round_number
        encoder = self.shared.encoder
        if self.options.merge == "param_avg":
            return (Phase("encoder", layout_of(weights_by_name(encoder))),)
        features = Segment("features", self.config.proxies.per_round, int(encoder.embed_dim))
        return (Phase("features", Layout((features,))),)

    def asked(self, round_number: int, phase: str) -> Rows:
        """The public images whose features are sent, none in two stages; none for changes."""
        if phase == "encoder":
            return np.zeros(0, dtype=np.int64)
        count = self.config.proxies.per_round
        rng = np.random.default_rng(self.seeds.integer("proxies"))
        order = rng.permutation(len(self.federation.natural_records))
        return np.sort(order[round_number * count : (round_number + 1) * count]).astype(np.int64)

    def cohort(self, round_number: int) -> tuple[str, ...]:
        """The sites whose task has joined by this stage, or a share of them, drawn in public."""
        joins, stage = self.options.joins, round_number + 1
        sites = self.federation.sites
        joined = tuple(site for site in sites if 0 < joins.get(site.hospital, 1) <= stage)
        of, fewest = (
            replace(self.federation, sites=joined),
            self.config.aggregation.min_participants,
        )
        return drawn_cohort(self.options, of, self.group_of, round_number, self.seeds, fewest)

    def group_of(self, site: Site) -> str:
        """One sum of all tasks: the encoder knows none of them apart."""
        del site
        return _ALL

    def weights(self) -> dict[str, int]:
        """α: every task counts the same, or by its declared size, capped."""
        return declared_weights(self.options, self.federation, self.group_of)

    # At a site.

    def trained_parameters(self, site: Site) -> int:
        """How many parameters of encoder and head are trained under noise."""
        privacy = self.config.privacy
        layers = privacy.layers if isinstance(privacy, DpSgd) else "network"
        return private_size(self._under_head(site), layers)

    def contribute(self, site: Site, round_number: int, phase: str, begin: Begin | None) -> Vector:
        """Fine-tune the last stage's encoder under the site's own head; send what it has learnt."""
        network, privacy = self._under_head(site), self.config.privacy
        if isinstance(privacy, DpSgd):
            random = self.seeds.protective(os.urandom, "unimed", site.name, round_number)
            tune_privately(network, site, privacy, self.pool, begin, random)
        else:
            if site.name not in self._heads:
                probe_head(network, site.train)
            generator = self.seeds.torch("stage", site.name, round_number)
            schedule = self._schedule(self.options.local_epochs, self.options.learning_rate)
            tune(network, site.train, schedule, generator, anchor=self.options.anchor)
        self._heads[site.name] = network.head
        if phase == "encoder":
            return vector_of(weights_by_name(network.encoder)) - vector_of(
                weights_by_name(self.shared.encoder)
            )
        images = self._public(round_number)
        change = features_of(network.encoder, images) - features_of(self.shared.encoder, images)
        layout = self.phases(round_number)[0].layout
        return np.asarray(layout.pack({"features": change.double().numpy()}))

    def personalise(self, site: Site, round_number: int) -> float | None:
        """After the last stage: a site's own model, fine-tuned from the encoder that all made."""
        if round_number + 1 < self.options.rounds or not self.options.tune_epochs:
            return None
        network = self._own[site.name] = over(self.shared.encoder, site.train)
        probe_head(network, site.train)
        schedule = self._schedule(self.options.tune_epochs, self.options.tune_rate)
        return tune(network, site.train, schedule, self.seeds.torch("own", site.name))

    def answering(self, site: Site) -> nn.Module:
        """The site's own model; before it has one, the shared encoder under its linear probe."""
        return self._own[site.name] if site.name in self._own else self.central(site)

    def central(self, site: Site) -> nn.Module:
        """The shared encoder, frozen, under a linear probe that the site fits and keeps."""
        if site.name not in self._probed:
            network = self._probed[site.name] = over(self.shared.encoder, site.train)
            probe_head(network, site.train)
        return self._probed[site.name]

    # At the server, which has no label.

    def absorb(self, sums: Mapping[str, Summed], round_number: int, phase: str) -> None:
        """Move the encoder by the mean change, or fit it to the mean features."""
        if _ALL not in sums:
            return
        encoder, mean = self.shared.encoder, sums[_ALL].mean
        if phase == "encoder":
            now = weights_by_name(encoder)
            for name, change in tensors_of(mean, now).items():
                now[name] += change
        else:
            moved = self.phases(round_number)[0].layout.unpack(mean)["features"]
            match_features(
                self.shared,
                self._public(round_number),
                torch.from_numpy(moved).float(),
                masked_weight=self.options.masked_weight,
                anchor=self.options.anchor,
                schedule=self._schedule(self.options.distill_epochs, _SERVER_RATE),
                generator=self.seeds.torch("server", round_number),
            )
        self._probed.clear()

    # What a stage leaves behind, and what a report says.

    def state(self) -> dict[str, Tensor]:
        """The encoder with its decoder, and of every site its head and its own model."""
        named = {f"shared/{name}": value for name, value in self.shared.state_dict().items()}
        for kept, networks in (("head", self._heads), ("own", self._own)):
            for site, network in networks.items():
                values = network.state_dict().items()
                named |= {f"site/{site}/{kept}/{name}": value for name, value in values}
        return named

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` gave."""
        self.shared.load_state_dict(below(state, "shared/"))
        self._probed.clear()
        for site in self.federation.sites:
            network = over(self.shared.encoder, site.train)
            if head := below(state, f"site/{site.name}/head/"):
                self._heads[site.name] = copy.deepcopy(network.head)
                self._heads[site.name].load_state_dict(head)
            if own := below(state, f"site/{site.name}/own/"):
                network.load_state_dict(own)
                self._own[site.name] = network.eval()

    def parts(self) -> dict[str, bool]:
        """What is on and off."""
        return {
            "masked image modelling": self.config.models.pretrain_epochs > 0,
            "tasks that join later": bool(self.options.joins),
            "knowledge accumulation": self.options.anchor > 0,
            "feature distillation": self.options.merge == "feature_distill",
            "own fine-tuning": self.options.tune_epochs > 0,
        }

    def traits(self) -> dict[str, Trait]:
        """Further figures."""
        return {
            "encoder": self.config.models.central,
            "encoder parameters": sum(p.numel() for p in self.shared.encoder.parameters()),
            "public pool, images": len(self.pool),
            "hidden patches": f"{self.shared.tokens - self.shared.visible} of {self.shared.tokens}",
            "tasks": len(self.federation.tasks),
        }

    def _public(self, round_number: int) -> Tensor:
        rows = torch.from_numpy(self.asked(round_number, "features"))
        return self.federation.naturals.images[rows]

    def _schedule(self, epochs: int, rate: float) -> Schedule:
        return Schedule(epochs, max(2, self.config.models.batch // 2), rate)

    def _under_head(self, site: Site) -> TaskNetwork:
        """A copy of the shared encoder under the head that the site has, or under zeros."""
        network = over(self.shared.encoder, site.train)
        if site.name in self._heads:
            network.head = copy.deepcopy(self._heads[site.name])
        return network

"""NatIMG-FL, reconstructed: local models speak on natural images, dual weights merge them.

Source: NatIMG-FL, IEEE TPAMI 2026, doi 10.1109/TPAMI.2026.3704679. Only its abstract is public
and no code is known, so this is a *reconstruction* from the abstract's two parts and the
neighbouring literature; none of the paper's figures is claimed.

(1) Augmented local training: labelled natural images are auxiliary supervision, and private
records are aligned to the statistics of public ones. (2) Dual weights: upwards α (client) × β
(per sample, or per sample × class), downwards w↓ (per client and sample). A central model is
distilled from the released aggregate, one head per group of hospitals, and its answers flow back.

This file knows nothing of keys, noise or messages.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from protocols.quantize import Layout, Segment
from secure_natfl.config import Config, speaks_by_head
from secure_natfl.federation import Federation, Site
from secure_natfl.fine_tuning import LocalLoss, Target, Teacher, distil, fine_tune, fresh
from secure_natfl.heads import HeadLoss, Knowledge, PublicBatch
from secure_natfl.models import Network
from secure_natfl.personal import answering
from secure_natfl.seeds import Seeds
from secure_natfl.system_tables import NatImg
from secure_natfl.systems.betas import BETAS, Answer
from secure_natfl.systems.cohorts import declared_weights
from secure_natfl.systems.private_head import Begin, PrivateHead, frozen_features, head_answer
from secure_natfl.systems.speaking import (
    PublicBackbone,
    Speaking,
    heads_answer,
    network_answer,
    train_heads,
)
from secure_natfl.training import Progress, Schedule, answers_of, features_of, logits_of

NAME = "natimg-fl"
RECONSTRUCTION = (
    "NatIMG-FL (IEEE TPAMI 2026, doi:10.1109/TPAMI.2026.3704679), a reconstruction from the "
    "abstract and neighbouring work: the paper's text and code are not public, and none of its "
    "figures is claimed."
)
Rows = NDArray[np.int64]
Matrix = NDArray[np.float64]

PERSONAL_RATE = 1e-3
CENTRAL_RATE = 2e-3
_DECAY = 1e-3
_FEWEST = 0.25


@dataclass(frozen=True, eq=False)
class Returned:
    """What the server returned to a group: answers [n, C] on all `rows` asked so far."""

    rows: Rows
    logits: Tensor


@dataclass(frozen=True, eq=False)
class Released:
    """What everybody may know after a round: all rows asked so far, and per group Z and trust.

    logits: group → [n, C]. trust: group → ω [n] ≥ 0 with mean 1. signal_to_noise: group → ratio
    of root mean squares in the released sums, infinite without noise.
    """

    rows: Rows
    logits: dict[str, Tensor]
    trust: dict[str, Tensor]
    signal_to_noise: dict[str, float]

    def followed_by(self, later: Released) -> Released:
        """This and a later round's rows as one."""
        return Released(
            np.concatenate([self.rows, later.rows]),
            {g: torch.cat([z, later.logits[g]]) for g, z in self.logits.items()},
            {g: torch.cat([w, later.trust[g]]) for g, w in self.trust.items()},
            {g: self._joint_ratio(later, g) for g in self.signal_to_noise},
        )

    def _joint_ratio(self, later: Released, group: str) -> float:
        """The rounds' ratios, each counted by its rows."""
        n, m = len(self.rows), len(later.rows)
        both = n * self.signal_to_noise[group] + m * later.signal_to_noise[group]
        return both / (n + m)


class NatImgFL:
    """The system: `weights` and `contribute` at sites, `read` and `absorb` at the server, then
    `personalise` at sites again.
    """

    def __init__(self, config: Config, federation: Federation, seeds: Seeds) -> None:
        self.options: NatImg = config.natimg
        self.federation, self.seeds = federation, seeds
        self.heads = list(federation.groups) if config.natimg.heads == "group" else ["all"]
        self._batch = config.models.batch
        self._beta = BETAS[config.natimg.beta]
        self._asked = config.proxies.per_round
        self._linear = speaks_by_head(config.privacy)
        self._public: PublicBackbone | None = None

    def group_of(self, site: Site) -> str:
        """The one aggregate that a site enters."""
        return site.group if self.options.heads == "group" else "all"

    def weights(self) -> dict[str, int]:
        """α of every site: 1, or its declared size against the smallest of its group, capped."""
        return declared_weights(self.options, self.federation, self.group_of)

    def layout(self, rows: int) -> Layout:
        """The released matrix: numerators [rows, C] and, where β is used, denominators."""
        classes = len(self.federation.task.classes)
        segments = [Segment("numerators", rows, classes)]
        if self._beta is not None:
            per_class = self.options.beta == "class"
            segments.append(Segment("denominators", rows, classes if per_class else 1))
        return Layout(tuple(segments))

    def recall(self, public: PublicBackbone) -> None:
        """The central model's public backbone, with its features of all natural images.

        Linear answers never change that backbone: whoever plays a run hands it in once, and no
        image goes through the network twice. Nothing is kept for other answers.
        """
        if self._linear:
            self._public = public

    # At a site, upwards.

    def contribute(
        self,
        speaking: Speaking,
        rows: Rows,
        round_number: int,
        returned: Returned | None,
        begin: Begin | None = None,
    ) -> Matrix:
        """Train what speaks, ask it about the proxies `rows`, weight by β → [M, layout size]."""
        answer = self.speak(speaking, rows, round_number, returned, begin=begin)
        return self.weighted(answer, rows)

    def speak(
        self,
        speaking: Speaking,
        rows: Rows,
        round_number: int,
        returned: Returned | None,
        images: Tensor | None = None,
        begin: Begin | None = None,
    ) -> Answer:
        """The speaking model's answer on the proxies `rows`, or on other `images` as a control.

        begin: what a head that is trained under noise needs, and nothing else does.
        """
        generator = self.seeds.torch("speak", speaking.site.name, round_number)
        if speaking.shards is None:
            asked = self.federation.naturals.images[rows] if images is None else images
            if speaking.head is not None:
                network = self._private_network(
                    speaking, speaking.head, round_number, returned, begin
                )
                if not self._linear:
                    features = features_of(network.backbone, asked)
                elif images is None:
                    features = speaking.backbone.raw[rows]
                else:
                    features = frozen_features(speaking.backbone.network, images)
                return head_answer(network, features, multi_label=speaking.head.multi_label)
            network = self._speaking_network(speaking, returned, generator)
            return network_answer(network, speaking.site, asked)
        backbone, multi_label = speaking.backbone, self.federation.task.multi_label
        heads = train_heads(
            backbone,
            speaking.shards,
            PublicBatch(backbone.features, self.federation.naturals.labels),
            None
            if returned is None
            else Knowledge(backbone.features[returned.rows], returned.logits),
            HeadLoss(
                natural=self.options.natural_weight,
                alignment=self.options.alignment_weight,
                distillation=self.options.distillation_weight,
                decay=_DECAY,
            ),
            self.options.head_steps,
            self.options.temperature,
            generator,
            multi_label=multi_label,
        )
        if images is None:
            features = backbone.features[rows]
        else:
            features = backbone.standardised(features_of(backbone.network.backbone, images))
        return heads_answer(heads, speaking.shards, features, multi_label=multi_label)

    def weighted(self, answer: Answer, rows: Rows) -> Matrix:
        """Centre over classes (single-label), multiply by β, append β: [M, layout size]."""
        logits = answer.xray
        if not answer.multi_label:
            logits = logits - logits.mean(-1, keepdim=True)
        matrices = {"numerators": logits}
        if self._beta is not None:
            beta = self._beta(answer, self.federation.naturals.labels[rows])
            matrices = {"numerators": beta * logits, "denominators": beta}
        layout = self.layout(len(rows))
        return np.stack(
            [
                layout.pack({name: matrix[m].double().numpy() for name, matrix in matrices.items()})
                for m in range(len(logits))
            ]
        )

    # At the server.

    def read(
        self,
        rows: Rows,
        sums: Mapping[str, Matrix],
        teachers: Mapping[str, float],
        noise: Mapping[str, float],
    ) -> Released:
        """Z = N / D per group, from released sums; where nothing was appended D is Σα·M.

        noise: group → standard deviation per released number, 0 without noise. A row whose
        denominator fell below a quarter of the usual gets no trust: its quotient would be mostly
        noise.
        """
        layout = self.layout(len(rows))
        logits, trust, ratio = {}, {}, {}
        for group, vector in sums.items():
            parts = {k: torch.from_numpy(m).float() for k, m in layout.unpack(vector).items()}
            shape = (len(rows), 1)
            weight = parts.get("denominators", torch.full(shape, teachers[group]))
            usual = weight.median(0).values.clamp_min(1e-6)
            logits[group] = parts["numerators"] / torch.maximum(weight, _FEWEST * usual)
            relative = (weight / usual).mean(1)
            omega = torch.where(relative < _FEWEST, 0.0, relative.clamp_max(1 / _FEWEST))
            trust[group] = omega / omega.mean().clamp_min(1e-6)
            energy = float(parts["numerators"].square().mean())
            ratio[group] = _signal_to_noise(energy, noise[group])
        return Released(rows, logits, trust, ratio)

    def absorb(
        self,
        central: Network,
        released: Released,
        round_number: int,
        progress: Progress | None = None,
        images: Tensor | None = None,
    ) -> float:
        """Distil the central model from all that was released; `images` are a control's proxies."""
        naturals = self.federation.naturals
        trust = torch.stack([released.trust[g] for g in self.heads], 1).unsqueeze(-1)
        if self._linear:
            # Each round went on from the one before: the latest answers hold all that was learned.
            trust[: -self._asked] = 0
        target = Target(
            naturals.images[released.rows] if images is None else images,
            torch.stack([released.logits[g] for g in self.heads], 1),
            trust,
            naturals.labels[released.rows] if images is None else None,
            torch.tensor([released.signal_to_noise[g] for g in self.heads]),
            self._linear,
            None if images is not None else self._recalled(released.rows),
        )
        return distil(
            central,
            target,
            self.options.natural_weight,
            Schedule(self.options.distill_epochs, self._batch, CENTRAL_RATE),
            self.seeds.torch("absorb", round_number),
            progress,
            multi_label=self.federation.task.multi_label,
        )

    def returned(self, central: Network, rows: Rows, group: str) -> Returned:
        """What the server returns to a group: its head's answers on every proxy asked so far."""
        features = self._recalled(rows)
        if features is None:
            logits = logits_of(central, self.federation.naturals.images[rows])
        else:
            logits = central.answers(features)[0]
        return Returned(rows, logits[:, self.heads.index(group)].detach())

    def open_features(self, central: Network) -> Tensor:
        """The natural images' features [P, d] under the central network's backbone."""
        if self._public is not None:
            return self._public.raw
        return features_of(central.backbone, self.federation.naturals.images)

    def _recalled(self, rows: Rows) -> Tensor | None:
        return None if self._public is None else self._public.raw[rows]

    # At a site, downwards.

    def personalise(
        self,
        personal: Network,
        site: Site,
        central: Network,
        returned: Returned,
        round_number: int,
        progress: Progress | None = None,
    ) -> float:
        """Fine-tune the site's own network with the whole local loss; it never speaks."""
        down = self._downward(personal, central, returned.rows)
        return fine_tune(
            personal,
            site.train,
            self.federation.naturals,
            self._local_loss(distillation=down is not None),
            None if down is None else _teacher(returned, down),
            Schedule(self.options.local_epochs, self._batch // 2, PERSONAL_RATE),
            self.seeds.torch("personalise", site.name, round_number),
            progress,
        )

    def answering(self, personal: Network, site: Site, central: Network) -> Network:
        """What a site uses after `personalise`: its own network, beside the central one or not."""
        head = self.heads.index(self.group_of(site))
        features = None
        if self._public is not None:
            features = frozen_features(self._public.network, site.train.images)
        return answering(personal, central, head, site.train, site.train_patients, features)

    def _downward(self, personal: Network, central: Network, rows: Rows) -> Tensor | None:
        """w↓ = r_F/(r_F + r_k) per sample, r = exp(−CE/2) of the natural heads; never leaves."""
        if self.options.downward == "off":
            return None
        if self.options.downward == "constant":
            return torch.full((len(rows),), 0.5)
        naturals = self.federation.naturals
        theirs, own = (
            torch.exp(
                -functional.cross_entropy(
                    answers_of(network, naturals.images[rows])[1],
                    naturals.labels[rows],
                    reduction="none",
                )
                / 2
            )
            for network in (central, personal)
        )
        return theirs / (theirs + own).clamp_min(1e-6)

    def _local_loss(self, *, distillation: bool) -> LocalLoss:
        return LocalLoss(
            self.options.natural_weight,
            self.options.alignment_weight,
            self.options.distillation_weight if distillation else 0.0,
            self.options.temperature,
        )

    def _private_network(
        self,
        speaking: Speaking,
        head: PrivateHead,
        round_number: int,
        returned: Returned | None,
        begin: Begin | None,
    ) -> Network:
        """The public backbone with a head trained under noise, which `begin` charges for."""
        site, classes = speaking.site.name, len(self.federation.task.classes)
        network = fresh(speaking.backbone.network, classes, self.seeds.torch("head", site))
        drawn = self.seeds.protective(os.urandom, "drawn images", site, round_number)
        raw = speaking.backbone.raw
        known = None if returned is None else Knowledge(raw[returned.rows], returned.logits)
        features = None
        if head.layers == "head":
            features = frozen_features(speaking.backbone.network, head.cohort.tensors[0])
        head.train(network, self.federation.naturals.images, raw, known, begin, drawn, features)
        return network

    def _speaking_network(
        self, speaking: Speaking, returned: Returned | None, generator: torch.Generator
    ) -> Network:
        """One network trained for speaking alone, from the public start, with the local loss."""
        classes = len(self.federation.task.classes)
        network = fresh(speaking.backbone.network, classes, generator)
        epochs = self.options.local_epochs * self.options.rounds
        fine_tune(
            network,
            speaking.site.train,
            self.federation.naturals,
            self._local_loss(distillation=True),
            None if returned is None else _teacher(returned, torch.ones(len(returned.rows))),
            Schedule(epochs, self._batch // 2, PERSONAL_RATE),
            generator,
        )
        return network


def _signal_to_noise(energy: float, noise: float) -> float:
    """From the mean square of signal and noise together, and the noise's deviation alone."""
    return math.sqrt(max(energy / noise**2 - 1, 0.0)) if noise else math.inf


def _teacher(returned: Returned, weight: Tensor) -> Teacher:
    return Teacher(torch.from_numpy(returned.rows), returned.logits, weight)

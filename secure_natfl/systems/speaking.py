"""Models that speak: all that a site ever says outside comes from one of these.

Three kinds: M heads on the frozen public backbone, one per shard of patients; one head on it that
is trained under noise; and one fine-tuned network, where a patient is not what noise hides. None
is ever a personal model, nor is it built from one.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional

from secure_natfl.alignment import Alignment
from secure_natfl.federation import Site, class_shares
from secure_natfl.heads import HeadLoss, Knowledge, PublicBatch, ShardBatch, ShardHeads
from secure_natfl.models import Network
from secure_natfl.systems.betas import Answer
from secure_natfl.systems.private_head import PrivateHead
from secure_natfl.training import (
    Naturals,
    answers_of,
    distillation_losses,
    features_of,
    record_losses,
)

HIDDEN = 32
"""Width of a head; small, since a shard holds a handful of patients."""

_RATE = 3e-3
_PUBLIC_STEPS = 300
_PUBLIC_BATCH = 128
_ALIGNMENT_IMAGES = 1024


@dataclass(frozen=True, eq=False)
class PublicBackbone:
    """A public network of one architecture and its answers' raw material on all natural images.

    `features` [P, d] are standardised by the natural images' own mean and deviation.
    """

    network: Network
    features: Tensor
    mean: Tensor
    deviation: Tensor
    trunk: nn.Linear
    natural: nn.Linear

    @cached_property
    def raw(self) -> Tensor:
        """The natural images' features [P, d] as the network gives them."""
        return self.features * self.deviation + self.mean

    def standardised(self, features: Tensor) -> Tensor:
        """Any features in the units of the natural ones."""
        return (features - self.mean) / self.deviation


@dataclass(frozen=True, eq=False)
class Speaking:
    """All that a contribution may be made from: public parts and one site's shards.

    There is no personal model in it. `shards` or `head` where they speak; both are None where a
    fine-tuned network speaks, which is then trained on the site's examples for speaking alone.
    """

    site: Site
    backbone: PublicBackbone
    shards: ShardBatch | None
    head: PrivateHead | None = None


def public_backbone(
    network: Network, raw: Tensor, naturals: Naturals, generator: torch.Generator
) -> PublicBackbone:
    """The public start of every shard head: a trunk trained to tell natural images apart."""
    mean, deviation = raw.mean(0), raw.std(0).clamp_min(1e-4)
    features = (raw - mean) / deviation
    trunk, natural = (
        nn.Linear(raw.shape[1], HIDDEN),
        nn.Linear(HIDDEN, network.natural.out_features),
    )
    for layer in (trunk, natural):
        nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
        nn.init.zeros_(layer.bias)
    optimiser = torch.optim.Adam([*trunk.parameters(), *natural.parameters()], lr=_RATE)
    for _ in range(_PUBLIC_STEPS):
        rows = torch.randint(len(features), (2 * _PUBLIC_BATCH,), generator=generator)
        optimiser.zero_grad()
        logits = natural(functional.gelu(trunk(features[rows])))
        functional.cross_entropy(logits, naturals.labels[rows]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return PublicBackbone(network, features, mean, deviation, trunk, natural)


def shard_capacity(patients: int, shards: int, images_per_patient: int) -> int:
    """Records that a shard has room for: public, since it depends on declared figures alone."""
    expected = patients / shards
    return math.ceil(expected + 4 * math.sqrt(expected)) * images_per_patient


def assign_shards(site: Site, shards: int, images_per_patient: int, key: bytes) -> list[list[int]]:
    """The rows of each shard: patients by keyed hash, at most so many images each, fixed room.

    A patient's shard depends on the key and the patient alone, so replacing one patient touches
    one shard for each of the two. `key`: the site's secret, 32 bytes.
    """
    members: dict[str, list[int]] = {}
    for row, patient in enumerate(site.train_patients):
        members.setdefault(patient, []).append(row)
    ranks = {p: hmac.new(key, p.encode(), hashlib.sha256).digest() for p in members}
    capacity = shard_capacity(site.patients, shards, _images(site, images_per_patient))
    rows: list[list[int]] = [[] for _ in range(shards)]
    for patient in sorted(members, key=lambda p: ranks[p]):
        shard = rows[int.from_bytes(ranks[patient][:8], "big") % shards]
        kept = members[patient][:images_per_patient]
        if len(shard) + len(kept) <= capacity:
            shard.extend(kept)
    return rows


def _images(site: Site, images_per_patient: int) -> int:
    return images_per_patient if site.unit == "patient" else 1


def shard_batch(
    site: Site, backbone: PublicBackbone, shards: int, images_per_patient: int, key: bytes
) -> ShardBatch:
    """A site's records on public features, as padded shards.

    A shard's features are computed apart from the others', for the rounding of a network's
    arithmetic depends on how many images it is given at once.
    """
    assigned = assign_shards(site, shards, images_per_patient, key)
    room = shard_capacity(site.patients, shards, _images(site, images_per_patient))
    classes = site.train.targets.shape[1]
    padded = torch.zeros(shards, room, backbone.features.shape[1])
    targets, known = torch.zeros(shards, room, classes), torch.zeros(shards, room, classes)
    for shard, rows in enumerate(assigned):
        if not rows:
            continue
        chosen = torch.tensor(rows, dtype=torch.long)
        raw = features_of(backbone.network.backbone, site.train.images[chosen])
        padded[shard, : len(rows)] = backbone.standardised(raw)
        targets[shard, : len(rows)] = site.train.targets[chosen]
        known[shard, : len(rows)] = site.train.known[chosen]
    return ShardBatch(padded, targets, known)


def train_heads(
    backbone: PublicBackbone,
    shards: ShardBatch,
    public: PublicBatch,
    knowledge: Knowledge | None,
    weights: HeadLoss,
    steps: int,
    temperature: float,
    generator: torch.Generator,
    *,
    multi_label: bool,
) -> ShardHeads:
    """Full-batch Adam on every shard at once, from the public start, with the whole local loss."""
    heads = ShardHeads(
        len(shards.features), backbone.trunk, backbone.natural, shards.targets.shape[2]
    )
    align = Alignment(heads.embed(backbone.features[:_ALIGNMENT_IMAGES])[0].detach(), generator)
    optimiser = torch.optim.Adam(heads.parameters(), lr=_RATE)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = _private(heads, shards, align, weights, multi_label=multi_label)
        loss = loss + _public(
            heads, public, knowledge, weights, temperature, generator, multi_label
        )
        loss = loss + weights.decay * (
            heads.xray_weight.square().sum()
            + (heads.trunk_weight - backbone.trunk.weight.T).square().sum()
        )
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return heads.requires_grad_(False)


def _private(
    heads: ShardHeads, shards: ShardBatch, align: Alignment, weights: HeadLoss, *, multi_label: bool
) -> Tensor:
    hidden = heads.embed(shards.features)
    each = record_losses(heads.xray(hidden), shards.targets, shards.known, multi_label=multi_label)
    present = (shards.known.sum(-1) > 0).float()
    if weights.alignment:
        each = each + weights.alignment * align(hidden) * present
    return (each.sum(1) / present.sum(1).clamp_min(1)).sum()


def _public(
    heads: ShardHeads,
    public: PublicBatch,
    knowledge: Knowledge | None,
    weights: HeadLoss,
    temperature: float,
    generator: torch.Generator,
    multi_label: bool,
) -> Tensor:
    """Losses on public images; each head's own, summed over heads."""
    total = torch.zeros(())
    if weights.natural:
        rows = torch.randint(len(public.labels), (_PUBLIC_BATCH,), generator=generator)
        logits = heads.natural(heads.embed(public.features[rows]))
        labels = public.labels[rows].expand(len(logits), -1).flatten()
        each = functional.cross_entropy(logits.flatten(0, 1), labels, reduction="sum")
        total = total + weights.natural * each / len(rows)
    if weights.distillation and knowledge is not None:
        rows = torch.randint(len(knowledge.logits), (_PUBLIC_BATCH,), generator=generator)
        student = heads.xray(heads.embed(knowledge.features[rows]))
        teacher = knowledge.logits[rows].expand_as(student)
        each = distillation_losses(student, teacher, temperature, multi_label=multi_label)
        total = total + weights.distillation * each.mean(1).sum()
    return total


@torch.no_grad()
def heads_answer(
    heads: ShardHeads, shards: ShardBatch, features: Tensor, *, multi_label: bool
) -> Answer:
    """What each shard's head says of natural images given as features [n, d]."""
    hidden = heads.embed(features)
    counted = shards.known.sum(1)
    shares = (shards.targets * shards.known).sum(1) / counted.clamp_min(1)
    return Answer(heads.xray(hidden), heads.natural(hidden), shares, multi_label)


def network_answer(network: Network, site: Site, images: Tensor) -> Answer:
    """What a fine-tuned speaking network says of natural images [n, 1, H, W], as one teacher."""
    xray, natural = answers_of(network, images)
    return Answer(
        xray[:, 0].unsqueeze(0),
        natural.unsqueeze(0),
        class_shares(site.train).unsqueeze(0),
        site.train.multi_label,
    )

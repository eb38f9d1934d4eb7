"""What every party has before the first round: public networks, and its own speaking inputs."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

from secure_natfl.config import Config, DpSgd, speaks_by_head
from secure_natfl.federation import Federation, Site
from secure_natfl.models import Network, check_architecture
from secure_natfl.planner import sharded, teachers_of
from secure_natfl.pretraining import pretrained, public_features
from secure_natfl.progress import Stages
from secure_natfl.seeds import Seeds
from secure_natfl.site_state import secret
from secure_natfl.systems.private_head import PrivateHead
from secure_natfl.systems.speaking import PublicBackbone, Speaking, public_backbone, shard_batch


def check_architectures(config: Config) -> None:
    """Refuse an unknown architecture before any image is read."""
    names = {name for hospital in config.data.hospitals for name in hospital.architectures}
    for name in sorted(names | {config.models.central}):
        check_architecture(name)


def public_networks(config: Config, federation: Federation, stages: Stages) -> dict[str, Network]:
    """Architecture → its public start, for every site's and the central one."""
    names = dict.fromkeys([site.architecture for site in federation.sites])
    names[config.models.central] = None
    networks = {}
    for name in names:
        with stages.stage("Public pre-training", name) as progress:
            networks[name] = pretrained(
                name,
                federation.naturals,
                size=config.data.size,
                classes=len(federation.task.classes),
                weights=config.models.weights,
                epochs=config.models.pretrain_epochs,
                progress=progress,
            )
    return networks


def speaking_inputs(
    config: Config,
    federation: Federation,
    networks: dict[str, Network],
    sites: Path,
    seeds: Seeds,
    stages: Stages,
) -> dict[str, Speaking]:
    """Site → all that its contributions are made from."""
    backbones: dict[str, PublicBackbone] = {}
    speaking = {}
    with stages.stage("Public features") as progress:
        for i, site in enumerate(federation.sites):
            # Heads under noise are added up best where all are heads of one network.
            trained = isinstance(config.privacy, DpSgd) or speaks_by_head(config.privacy)
            name = config.models.central if trained else site.architecture
            if name not in backbones:
                backbones[name] = _backbone(config, networks[name], federation, seeds, name)
            speaking[site.name] = _speaking(config, federation, site, backbones[name], sites, seeds)
            progress(i + 1, len(federation.sites))
    return speaking


def natural_features(config: Config, network: Network, federation: Federation, name: str) -> Tensor:
    """Features [P, d] of all natural images on the public start of architecture `name`."""
    return public_features(
        network,
        federation.naturals,
        architecture=name,
        size=config.data.size,
        weights=config.models.weights,
        epochs=config.models.pretrain_epochs,
    )


def _backbone(
    config: Config, network: Network, federation: Federation, seeds: Seeds, name: str
) -> PublicBackbone:
    raw = natural_features(config, network, federation, name)
    return public_backbone(network, raw, federation.naturals, seeds.torch("trunk", name))


def _speaking(
    config: Config,
    federation: Federation,
    site: Site,
    backbone: PublicBackbone,
    sites: Path,
    seeds: Seeds,
) -> Speaking:
    if isinstance(config.privacy, DpSgd):
        return Speaking(site, backbone, None, PrivateHead.of(site, config.privacy))
    if speaks_by_head(config.privacy):
        return Speaking(site, backbone, None, PrivateHead.exact_of(site))
    table, teachers = sharded(config.privacy), teachers_of(config, federation)[site.name]
    if table is None:
        return Speaking(site, backbone, None)
    if seeds.seeded:
        key = seeds.protective(os.urandom, "partition", site.name)(32)
    else:
        key = secret(sites / site.name, "partition", os.urandom)
    shards = shard_batch(site, backbone, teachers, table.max_images_per_patient, key)
    return Speaking(site, backbone, shards)

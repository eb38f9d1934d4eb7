"""The arms of `benchmarks.pppml`: federations that differ in one thing, and what is played on them.

Both systems run without protection and without a run folder, each at the rates that tuning found.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from benchmarks.pppml_sites import unlike
from benchmarks.systems import open_round
from secure_natfl.config import Config
from secure_natfl.evaluation import probabilities, quick_dice, site_test
from secure_natfl.federation import Federation, Site, build
from secure_natfl.methods.meta_training import Parts, cut, own_network
from secure_natfl.seeds import Seeds
from secure_natfl.systems.summed import SummedSystem, make_system

ARMS: Final = ("fedavg", "fedavg, own steps", "pppml-hmi, shared", "pppml-hmi")
ROUNDS: Final = 10

_FOLDS: Final = 5

FEDAVG: Final[dict[str, Any]] = {"kind": "fedavg", "local_epochs": 2, "learning_rate": 8e-3}
PPPML: Final[dict[str, Any]] = {
    "kind": "pppml-hmi",
    "local_epochs": 2,
    "learning_rate": 1e-2,
    "inner_rate": 0.1,
    "own_steps": 60,
}
"""Both as `tune` found them best."""


@dataclass(frozen=True)
class Setting:
    """One federation: how many sites, how unlike, how much of the training images, which network.

    makers: sites are the makers' own (cut in 2 and 3) in place of random parts of both together.
    order: of PPPML-HMI's gradient.
    """

    strength: float = 0.0
    sites: int = 3
    share: float = 1.0
    network: str = "unet-8"
    makers: bool = False
    order: str = "first"


def config_of(setting: Setting, system: dict[str, Any], seed: int, root: str) -> Config:
    """Cells at 48 pixels; the seed cuts sites and test parts and draws everything else."""
    pack = {
        "kind": "npz",
        "path": "wbc_seg/wbc_seg.dev.npz",
        "target": "mask",
        "classes": ["background", "cytoplasm", "nucleus"],
        "architectures": [setting.network],
    }
    hospitals = [{**pack, "name": "cells", "sites": setting.sites}]
    if setting.makers:
        hospitals = [
            {**pack, "name": "cellavision", "source": "cellavision", "sites": 2},
            {**pack, "name": "tecom", "source": "tecom", "sites": 3},
        ]
    return Config.model_validate(
        {
            "run": {"name": "pppml", "seed": seed},
            "data": {"root": root, "size": 48, "split_seed": seed, "hospitals": hospitals},
            "models": {"central": setting.network, "pretrain_epochs": 0, "batch": 16},
            "system": {"rounds": ROUNDS, "alpha": "equal", **system},
            "aggregation": {"kind": "plain"},
            "privacy": {"mechanism": "none"},
        }
    )


def federation_of(config: Config, setting: Setting, *, tuning: bool) -> Federation:
    """The sites, unlike by the strength; for tuning their test parts are cut from training."""
    federation = unlike(build(config, lambda _: b"benchmark of pppml"), setting.strength)
    sites = [_smaller(site, setting.share) for site in federation.sites]
    if tuning:
        sites = [_without_test(site) for site in sites]
    return replace(federation, sites=tuple(sites))


def played(config: Config, federation: Federation) -> SummedSystem:
    """All rounds of the system with sums in clear.

    FedAvg trains on what PPPML-HMI trains on: the images that choose among own steps train nothing.
    """
    if config.system.kind == "fedavg":
        seed = config.data.split_seed
        sites = tuple(_apart(site, seed)[0] for site in federation.sites)
        federation = replace(federation, sites=sites)
    system = make_system(config, federation, Seeds.of_study(int(config.run.seed)))
    for number in range(config.system.rounds):
        open_round(system, federation, number)
    for site in federation.sites:
        system.personalise(site, config.system.rounds - 1)
    return system


def rows_of(
    setting: Setting, seed: int, root: str, arms: Collection[str]
) -> Iterator[dict[str, Any]]:
    """The Dice of these arms at every site; a system is played where one of its arms is asked."""
    for name, table in (("fedavg", FEDAVG), ("pppml-hmi", PPPML | {"order": setting.order})):
        if not any(arm.startswith(name) for arm in arms):
            continue
        config = config_of(setting, table, seed, root)
        federation = federation_of(config, setting, tuning=False)
        start = time.process_time()
        system = played(config, federation)
        spent = time.process_time() - start
        for arm, networks in _arms_of(system, federation, seed).items():
            if arm not in arms:
                continue
            for network, site in zip(networks, federation.sites, strict=True):
                part = site_test(site)
                yield {
                    "seed": seed,
                    **vars(setting),
                    "arm": arm,
                    "site": site.name,
                    "dice": quick_dice([probabilities(network, part)], part),
                    "images": len(site.train),
                    "test images": len(site.test),
                    "cpu_s": round(spent, 1),
                }


def _arms_of(system: SummedSystem, federation: Federation, seed: int) -> dict[str, list[nn.Module]]:
    """Arm → the network of every site, of the arms of one system."""
    central = [_shared(system, site) for site in federation.sites]
    if system.name == "fedavg":
        pairs = zip(central, federation.sites, strict=True)
        return {"fedavg": central, "fedavg, own steps": [_tuned(n, s, seed) for n, s in pairs]}
    own = [system.answering(site) for site in federation.sites]
    return {"pppml-hmi, shared": central, "pppml-hmi": own}


def _shared(system: SummedSystem, site: Site) -> nn.Module:
    network = system.central(site)
    if network is None:
        raise SystemExit(f"{system.name} has no shared network")
    return network


def _tuned(network: nn.Module, site: Site, seed: int) -> nn.Module:
    """FedAvg's network after the very own steps of PPPML-HMI: K, rate, batch and choice alike."""
    own = copy.deepcopy(network).train()
    _, parts = _apart(site, seed)
    draw = Seeds.of_study(seed).torch("own steps of fedavg", site.name)
    own_network(own, parts, PPPML["own_steps"], PPPML["inner_rate"], 8, draw)
    return own


def _smaller(site: Site, share: float) -> Site:
    rows = np.arange(max(2, round(share * len(site.train))))
    return _kept(site, rows) if share < 1 else site


def _without_test(site: Site) -> Site:
    """The same split that chooses among own steps would leave nothing to judge them on."""
    fits, parts = _apart(site, 1000)
    if parts.chooses is None:
        raise SystemExit(f"{site.name} is too small to tune on")
    names = tuple(p for p in site.train_patients if p not in set(parts.patients))
    return replace(fits, test=parts.chooses, test_patients=names)


def _apart(site: Site, seed: int) -> tuple[Site, Parts]:
    """The site without the patients that choose, as PPPML-HMI cuts them, and both parts."""
    parts = cut(site, _FOLDS, seed)
    fits = set(parts.patients)
    rows = [row for row, patient in enumerate(site.train_patients) if patient in fits]
    return _kept(site, np.array(rows)), parts


def _kept(site: Site, rows: np.ndarray[Any, np.dtype[np.int64]]) -> Site:
    at = torch.from_numpy(rows)
    return replace(site, train=site.train.at(at), records=site.records.take(rows))

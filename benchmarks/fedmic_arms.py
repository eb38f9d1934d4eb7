"""The arms of `benchmarks.fedmic`: their configurations, how each is played, and how it is scored.

All have the same network, start, epochs and batches; `CHOSEN` was tuned on validation parts, with
three trials for every arm.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from benchmarks.systems import open_round
from protocols.errors import ConfigError, DataError
from secure_natfl.config import Config
from secure_natfl.data.splits import split
from secure_natfl.federation import Federation, Site, build, examples
from secure_natfl.methods.plain_models import started, train_plain
from secure_natfl.seeds import Seeds
from secure_natfl.system_tables import FedAvg
from secure_natfl.systems.fedavg import Averaging
from secure_natfl.systems.fedmic import falling
from secure_natfl.systems.summed import SummedSystem, make_system
from secure_natfl.training import Schedule

SITES: Final = {"wbc_seg": 5, "brainmri": 10, "rbc": 10, "derma28": 10}
CUTS: Final[dict[str, dict[str, Any]]] = {
    "dirichlet": {"partition": "dirichlet", "concentration": 0.1},
    "pathological": {"partition": "pathological", "classes_per_site": 2},
}
ROUNDS, BATCH, SIZE = 12, 64, 28
NETWORK: Final = "secure_natfl.methods.small_network:small"

Arm = dict[str, Any]
TRIALS: Final[dict[str, list[Arm]]] = {
    "local": [{"learning_rate": rate} for rate in (1e-3, 3e-3, 1e-2)],
    "fedavg": [{"learning_rate": rate} for rate in (3e-4, 1e-3, 3e-3)],
    "fedprox": [
        {"learning_rate": rate, "proximal": mu}
        for rate, mu in ((1e-3, 0.01), (1e-3, 0.1), (3e-3, 0.1))
    ],
    "fedbn": [{"learning_rate": rate, "keep_norms": True} for rate in (1e-3, 3e-3, 1e-2)],
    "fedmic": [{"learning_rate": rate, "rank": 4} for rate in (1e-3, 3e-3, 1e-2)],
}
CHOSEN: Final[dict[str, Arm]] = {
    "local": {"learning_rate": 3e-3},
    "fedavg": {"learning_rate": 3e-3},
    "fedprox": {"learning_rate": 3e-3, "proximal": 0.1},
    "fedbn": {"learning_rate": 1e-2, "keep_norms": True},
    "fedmic": {"learning_rate": 1e-2, "rank": 4},
}
"""The best trial of each arm on the validation parts, as `tune` found it."""


def configured(
    root: Path, pack: str, cut: str, seed: int, arm: str, keys: Arm, **more: Any
) -> Config:
    """One simulation: a pack cut into sites, and the table of an arm."""
    kind = "fedmic" if arm.startswith("fedmic") else "fedavg"
    hospital = {
        "name": pack.replace("_", "-"),
        "kind": "npz",
        "path": f"{pack}/{pack}.dev.npz",
        "sites": SITES[pack],
        "architectures": [NETWORK],
        **CUTS[cut],
    }
    return Config.model_validate(
        {
            "run": {"seed": seed},
            "data": {"root": str(root), "size": SIZE, "split_seed": seed, "hospitals": [hospital]},
            "models": {"central": NETWORK, "pretrain_epochs": 0, "batch": BATCH},
            "system": {"kind": kind, "rounds": ROUNDS, **keys, **more},
            "aggregation": {"kind": "plain"},
            "privacy": {"mechanism": "none"},
        }
    )


def played(config: Config, federation: Federation) -> SummedSystem:
    """All rounds of a system, its sums added in the clear."""
    system = make_system(config, federation, Seeds.of_study(int(config.run.seed)))
    for number in range(config.system.rounds):
        if isinstance(system, Averaging):
            rate = keys_of(config).learning_rate * falling(number, config.system.rounds)
            system.options = keys_of(config).model_copy(update={"learning_rate": rate})
        open_round(system, federation, number)
        for site in federation.sites:
            system.personalise(site, number)
    return system


def keys_of(config: Config) -> FedAvg:
    """The table of an averaging arm."""
    if not isinstance(config.system, FedAvg):
        raise ConfigError(f"the table is of {config.system.kind}", where="system.kind")
    return config.system


def alone(config: Config, federation: Federation, keys: Arm) -> dict[str, nn.Module]:
    """Every site on its own images, with the epochs of a whole run."""
    seeds, found = Seeds.of_study(int(config.run.seed)), {}
    for site in federation.sites:
        network = started(config, federation, NETWORK, site.task, seeds)
        schedule = Schedule(ROUNDS, BATCH // 2, keys["learning_rate"])
        train_plain(network, site.train, schedule, seeds.torch("alone", site.name))
        found[site.name] = network
    return found


def tuned(config: Config, system: SummedSystem, federation: Federation) -> dict[str, nn.Module]:
    """What a site answers with after one epoch more on its own images."""
    seeds, found = Seeds.of_study(int(config.run.seed)), {}
    for site in federation.sites:
        network = copy.deepcopy(system.answering(site))
        schedule = Schedule(1, BATCH // 2, 1e-3)
        train_plain(network, site.train, schedule, seeds.torch("tuned", site.name))
        found[site.name] = network
    return found


def scored(networks: dict[str, nn.Module], federation: Federation) -> dict[str, float]:
    """Accuracy on each site's own test part: over all images, and as the mean of the sites."""
    hits = {site.name: _hits(networks[site.name], site) for site in federation.sites}
    images = [len(site.test) for site in federation.sites]
    each = [sum(hits[site.name]) / len(site.test) for site in federation.sites]
    return {
        "accuracy": float(sum(sum(one) for one in hits.values()) / sum(images)),
        "mean_of_sites": float(np.mean(each)),
        "worst_site": float(min(each)),
    }


@torch.no_grad()
def _hits(network: nn.Module, site: Site) -> list[bool]:
    found = network.eval()(site.test.images).argmax(1) == site.test.targets.argmax(1)
    return [bool(hit) for hit in found]


def trial(config: Config, federation: Federation, arm: str, keys: Arm) -> Iterator[dict[str, Any]]:
    """The lines of one arm; fine-tuning and the shared model come along with what they end."""
    start, cpu = time.perf_counter(), time.process_time()
    if arm == "local":
        yield {"arm": arm, **scored(alone(config, federation, keys), federation)}
        return
    system = played(config, federation)
    seconds = {"wall_s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}
    answers = {site.name: system.answering(site) for site in federation.sites}
    yield {"arm": arm, **scored(answers, federation), **seconds, "traits": system.traits()}
    if arm == "fedavg":
        yield {"arm": "fedavg, then tuned", **scored(tuned(config, system, federation), federation)}
    if arm.startswith("fedmic"):
        shared = {site.name: system.central(site) for site in federation.sites}
        networks = {name: network for name, network in shared.items() if network is not None}
        yield {"arm": f"{arm}, student", **scored(networks, federation)}


def validating(federation: Federation, seed: int) -> Federation:
    """The same sites without their test parts: a quarter of what trained stands in for them."""
    sites = []
    for site in federation.sites:
        try:
            train, test = split(site.records, 0.25, seed)
        except DataError:  # a site with one patient cannot be divided; it tunes nothing
            continue
        sites.append(
            replace(
                site,
                train=examples(train, SIZE),
                test=examples(test, SIZE),
                records=train,
                test_patients=test.patients,
            )
        )
    return replace(federation, sites=tuple(sites))


def loaded(config: Config) -> Federation:
    """The federation of a configuration; nothing here is private."""
    return build(config, lambda name: bytes(32))  # noqa: ARG005

"""Everything that can be wrong with a study of whole runs, and how long they will take.

Public networks are started here, once for all cells, and lie in the cache when cells run side by
side. Nothing private is trained, and nothing is charged.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from protocols.chain import canonical, digest
from protocols.errors import ConfigError, NatflError, PrivacyError
from secure_natfl.config import Config, NoNoise, Plain
from secure_natfl.federation import Federation, Site, build
from secure_natfl.seeds import Seeds
from secure_natfl.study.grid import COMPARISONS, Plan, Setting
from secure_natfl.summed.terms import agree_sums
from secure_natfl.system_tables import NatImg, Summing
from secure_natfl.systems.summed import SummedSystem, make_system

_MODELS = {"central", "personalised", *COMPARISONS}
_START, _BATCH, _BESIDE = 4.0, 16, 2.0
"""Seconds of a run for itself; images of a measured step; how much more than plain training a
system does, about: a second network, own steps, or answers."""


@dataclass
class Checked:
    """Of a study of whole runs: a federation of each setting, its reasons, its seconds.

    federations, seconds: by the id of a setting's first cell. refusals: (setting, the refusal).
    """

    federations: dict[str, Federation] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    refusals: list[tuple[Setting, str]] = field(default_factory=list)


def check_whole(plan: Plan) -> Checked:
    """Agree on every setting as its run would, or raise what is wrong with it, and where.

    A setting that is to be refused is asked for its reason; ConfigError if there is none.
    """
    found, built = Checked(), dict[str, Federation]()
    for setting in plan.settings:
        cell = plan.run_of(setting, setting.seeds[0])
        try:
            _check_setting(setting)
            federation = _federation(cell.config, built)
            system = make_system(cell.config, federation, Seeds.of_study(0))
            agree_sums(cell.config, federation, system)
        except NatflError as error:
            if setting.refused and isinstance(error, ConfigError | PrivacyError):
                found.refusals.append((setting, str(error)))
                continue
            where = f"{setting.label}: {error.where}" if error.where else setting.label
            raise type(error)(error.what, where=where, why=error.why, fix=error.fix) from None
        if setting.refused:
            raise ConfigError(
                "nothing refuses this arm", where=setting.label, fix="leave out study.refused"
            )
        found.federations[cell.id] = federation
        found.seconds[cell.id] = _seconds(cell.config, federation, system)
    return found


def _check_setting(setting: Setting) -> None:
    config, strangers = setting.config, set(setting.models) - _MODELS
    if isinstance(config.system, NatImg):
        raise ConfigError(
            "natimg-fl is studied fold by fold", where="system.kind", fix="set folds = 2 or more"
        )
    if strangers or setting.newcomers:
        raise ConfigError(
            f"whole runs have no {', '.join(sorted(strangers)) or 'hospitals that are left out'}",
            where="study.models" if strangers else "study.left_out",
            fix=f"models of whole runs: {', '.join(sorted(_MODELS))}",
        )
    silent = isinstance(config.aggregation, Plain) and isinstance(config.privacy, NoNoise)
    if setting.clear and not silent:
        raise ConfigError(
            "sums in the clear have neither encryption nor noise",
            where="study.in_the_clear",
            fix='set aggregation.kind = "plain" and privacy.mechanism = "none"',
        )


def _federation(config: Config, built: dict[str, Federation]) -> Federation:
    """The sites of a configuration; arms of the same images and system share them."""
    stated = [config.data, config.proxies, config.models, config.system]
    key = digest(canonical([*(one.model_dump(mode="json") for one in stated), config.uses_proxies]))
    if key not in built:
        built[key] = build(config, lambda _: os.urandom(32))
    return built[key]


def _seconds(config: Config, federation: Federation, system: SummedSystem) -> float:
    """Of one run on one core, about: a measured step of every site's network, times its images."""
    table = config.system
    epochs = table.rounds * table.local_epochs if isinstance(table, Summing) else table.rounds
    beside = _BESIDE + 2.0 * config.run.baselines
    passes = dict(_passes(federation, system))
    return _START + epochs * beside * sum(
        len(site.train) * passes[site.architecture, site.task.name] for site in federation.sites
    )


def _passes(
    federation: Federation, system: SummedSystem
) -> Iterator[tuple[tuple[str, str], float]]:
    """(Architecture, task) → seconds of an image in training."""
    measured: dict[tuple[str, str], Site] = {}
    for site in federation.sites:
        measured.setdefault((site.architecture, site.task.name), site)
    for key, site in measured.items():
        network = copy.deepcopy(system.answering(site)).train()
        yield key, _step(network, torch.zeros(_BATCH, *site.train.images.shape[1:]))


def _step(network: nn.Module, images: torch.Tensor) -> float:
    start = time.process_time()
    with torch.enable_grad():
        said: torch.Tensor = network(images)
        if said.requires_grad:
            torch.autograd.backward(said.sum())
    return (time.process_time() - start) / len(images)

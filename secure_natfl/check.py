"""What a run will need, cost and promise, worked out before anything is trained or spent."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from pydantic import BaseModel, ConfigDict

from protocols.ledger import Ledger
from protocols.mechanisms import TrainedOutput
from protocols.policy import effective, threshold_of
from protocols.promises import PROMISES, Parties
from secure_natfl.config import Config
from secure_natfl.federation import Federation, Site, build
from secure_natfl.models import Network, build_backbone
from secure_natfl.prediction import gradient_noise, predictions
from secure_natfl.seeds import Seeds
from secure_natfl.setup import check_architectures
from secure_natfl.site_state import open_ledger, secret, state_folder
from secure_natfl.systems.natimg_fl import NatImgFL
from secure_natfl.terms import Terms, agree

Epsilon = float | Literal["inf"]
_SIGNATURE_AND_HEADER = 330
"""Bytes of a message around its body, about."""


class SiteCheck(BaseModel):
    """One site as all parties see it."""

    model_config = ConfigDict(frozen=True)

    name: str
    group: str
    architecture: str
    parameters: int
    unit: str
    patients: int
    teachers: int
    gradient_noise: float | None
    """Deviation of the noise on a step's mean gradient, in clip norms; None at other mechanisms."""
    alpha: int
    epsilon: Epsilon
    epsilon_isolated: Epsilon
    spent_before: Epsilon
    one_class: bool


class GroupCheck(BaseModel):
    """One aggregate: how far it hides a contributor, and how loud its noise is."""

    model_config = ConfigDict(frozen=True)

    name: str
    sites: int
    effective_contributors: float
    colluders: int | None
    """None where no other site's noise is counted on."""
    signal_to_noise_at_most: float | None
    noise_predicted: str


class Check(BaseModel):
    """The preflight of a configuration."""

    model_config = ConfigDict(frozen=True)

    name: str
    config_sha256: str
    sites: tuple[SiteCheck, ...]
    groups: tuple[GroupCheck, ...]
    central: str
    epsilon: Epsilon
    epsilon_isolated: Epsilon
    delta: float
    rounds: int
    proxies_per_round: int
    proxies_left_over: int
    upload_bytes: int
    fp32_bytes: int
    memory_mib: int
    disk_mib: int
    cores: int
    mode: str
    key_holders: int
    threshold: int
    hidden_unless: str
    """Who would have to pool what they know to read a single contribution."""
    relied_on: str
    ledgers: str


def check(config: Config) -> Check:
    """Load the data, agree on the terms, count. Raises what a run would raise, spends nothing."""
    check_architectures(config)
    sites = state_folder(config, Path())
    throwaway = Seeds.of_study(0)
    federation = build(config, lambda name: _key(sites, name))
    system = NatImgFL(config, federation, throwaway)
    layout = system.layout(config.proxies.per_round)
    groups = {site.name: system.group_of(site) for site in federation.sites}
    terms = agree(config, federation, layout, system.weights(), groups)
    parameters = _parameters(config, federation)
    noise = terms.noise_plan
    logits = 4 * config.proxies.per_round * len(federation.task.classes)
    promise, members = PROMISES[config.mode], _parties(config, terms)
    bodies = promise.upload(members, layout.size)
    upload = sum(bodies) + _SIGNATURE_AND_HEADER * len(bodies)
    return Check(
        name=config.run.name,
        config_sha256=config.identity,
        sites=_sites(config, federation, terms, parameters, sites),
        groups=_groups(config, federation, terms),
        central=config.models.central,
        epsilon=noise.epsilon if noise else "inf",
        epsilon_isolated=noise.epsilon_isolated if noise else "inf",
        delta=noise.delta_total if noise else 0.0,
        rounds=config.system.rounds,
        proxies_per_round=config.proxies.per_round,
        proxies_left_over=len(federation.natural_records)
        - config.system.rounds * config.proxies.per_round,
        upload_bytes=upload,
        fp32_bytes=logits,
        memory_mib=_memory(federation, parameters),
        disk_mib=_disk(config, federation, parameters, upload),
        cores=os.cpu_count() or 1,
        mode=config.mode,
        key_holders=members.holders,
        threshold=members.threshold,
        hidden_unless=promise.hidden_unless,
        relied_on=promise.trust,
        ledgers="the run folder" if sites == Path() / "sites" else str(sites),
    )


def _parties(config: Config, terms: Terms) -> Parties:
    """What the sizes of messages depend on, for the largest group."""
    each_site = config.aggregation.custody in ("threshold", "shared")
    holders = len(terms.alphas) if each_site else 1
    threshold = threshold_of(holders)[0] if config.aggregation.custody == "threshold" else 1
    largest = max(map(len, terms.groups.values()))
    return Parties(largest, holders, threshold, terms.preset)


def _key(sites: Path, hospital: str) -> bytes:
    """A hospital's secret where it has one; a check makes none."""
    if (sites / hospital / "identity.key").exists():
        return secret(sites / hospital, "identity", os.urandom)
    return os.urandom(32)


def _parameters(config: Config, federation: Federation) -> dict[str, int]:
    names = {site.architecture for site in federation.sites} | {config.models.central}
    found = {}
    for name in names:
        backbone, features = build_backbone(name, config.data.size)
        task = federation.task
        network = Network(backbone, features, len(task.classes), task.natural_classes)
        found[name] = network.parameter_count
    return found


def _sites(
    config: Config,
    federation: Federation,
    terms: Terms,
    parameters: dict[str, int],
    sites: Path,
) -> tuple[SiteCheck, ...]:
    found = []
    for site in federation.sites:
        mechanism = terms.mechanisms[site.name]
        spent = terms.noise_plan.spending(site.name) if terms.noise_plan else None
        with _ledger(config, sites / site.name, site) as ledger:
            ledger.require(mechanism.event(), config.system.rounds)
            before = _spelled(ledger.spent().epsilon)
        group = next(name for name, members in terms.groups.items() if site.name in members)
        found.append(
            SiteCheck(
                name=site.name,
                group=group,
                architecture=site.architecture,
                parameters=parameters[site.architecture],
                unit=site.unit,
                patients=site.patients,
                teachers=mechanism.shards,
                gradient_noise=gradient_noise(mechanism.training)
                if isinstance(mechanism, TrainedOutput)
                else None,
                alpha=terms.alphas[site.name],
                epsilon=spent.epsilon if spent else "inf",
                epsilon_isolated=spent.epsilon_isolated if spent else "inf",
                spent_before=before,
                one_class=site.one_class,
            )
        )
    return tuple(found)


@contextmanager
def _ledger(config: Config, folder: Path, site: Site) -> Iterator[Ledger]:
    """The site's ledger, or an empty one that is thrown away: a check makes none."""
    with TemporaryDirectory() as elsewhere:
        kept = (folder / "ledger.db").exists()
        there = folder if kept else Path(elsewhere)
        with open_ledger(config, there, site.name, site.records) as ledger:
            yield ledger


def _groups(config: Config, federation: Federation, terms: Terms) -> tuple[GroupCheck, ...]:
    plan, ahead = terms.noise_plan, predictions(config, federation, terms)
    return tuple(
        GroupCheck(
            name=name,
            sites=len(sites),
            effective_contributors=effective([terms.alphas[site] for site in sites]),
            colluders=plan.colluders if plan else 0,
            signal_to_noise_at_most=ahead[name].at_most,
            noise_predicted=ahead[name].says,
        )
        for name, sites in terms.groups.items()
    )


def _spelled(epsilon: float) -> Epsilon:
    return "inf" if math.isinf(epsilon) else epsilon


def _memory(federation: Federation, parameters: dict[str, int]) -> int:
    """Interpreter and libraries, all images as floats, every network with its optimiser."""
    images = len(federation.natural_records) + sum(
        len(site.train) + len(site.test) for site in federation.sites
    )
    side = federation.naturals.images.shape[-1]
    networks = 16 * (sum(parameters[s.architecture] for s in federation.sites))
    return round(900 + (4 * images * side * side + networks) / 2**20)


def _disk(config: Config, federation: Federation, parameters: dict[str, int], upload: int) -> int:
    """Checkpoints of every round and baseline, and the transcript."""
    networks = sum(parameters[s.architecture] for s in federation.sites)
    networks += parameters[config.models.central]
    checkpoints = 4 * networks * (config.system.rounds + 1)
    transcript = 3 * upload * len(federation.sites) * config.system.rounds
    return math.ceil((checkpoints + transcript) / 2**20)

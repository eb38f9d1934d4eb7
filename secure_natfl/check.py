"""What a run will need, cost and promise, worked out before anything is trained or spent."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from secure_natfl.methods.plain_models import parameter_count
from secure_natfl.models import Network, build_backbone
from secure_natfl.prediction import gradient_noise, predictions
from secure_natfl.schedule import Schedule
from secure_natfl.seeds import Seeds
from secure_natfl.setup import check_architectures
from secure_natfl.site_state import open_ledger, secret, state_folder
from secure_natfl.summed.terms import agree_sums
from secure_natfl.system_tables import NatImg
from secure_natfl.systems.natimg_fl import NatImgFL
from secure_natfl.systems.summed import make_system
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
    notes: tuple[str, ...] = ()


def check(config: Config) -> Check:
    """Load the data, agree on the terms, count. Raises what a run would raise, spends nothing."""
    sites = state_folder(config, Path())
    if isinstance(config.system, NatImg):
        check_architectures(config)
    federation = build(config, lambda name: _key(sites, name))
    ahead = _ahead(config, federation)
    terms, parameters = ahead.schedule.agreed[0].terms, ahead.parameters
    noise = terms.noise_plan
    promise, members = PROMISES[config.mode], _parties(config, terms)
    bodies = [b for one in ahead.schedule.agreed for b in promise.upload(members, one.layout.size)]
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
        proxies_per_round=ahead.asked,
        proxies_left_over=len(federation.pool or ()) - config.system.rounds * ahead.asked,
        upload_bytes=upload,
        fp32_bytes=ahead.fp32_bytes,
        memory_mib=_memory(federation, parameters),
        disk_mib=_disk(config, federation, parameters, upload),
        cores=os.cpu_count() or 1,
        mode=config.mode,
        key_holders=members.holders,
        threshold=members.threshold,
        hidden_unless=promise.hidden_unless,
        relied_on=promise.trust,
        ledgers="the run folder" if sites == Path() / "sites" else str(sites),
        notes=federation.notes,
    )


@dataclass(frozen=True)
class _Ahead:
    """What a system asks for. asked: images per round; fp32_bytes: of what is sent per round."""

    schedule: Schedule
    parameters: dict[str, int]
    asked: int
    fp32_bytes: int


def _ahead(config: Config, federation: Federation) -> _Ahead:
    throwaway = Seeds.of_study(0)
    if not isinstance(config.system, NatImg):
        summed = make_system(config, federation, throwaway)
        agreed = agree_sums(config, federation, summed)
        sizes = {s.architecture: parameter_count(summed.answering(s)) for s in federation.sites}
        asked = sum(len(summed.asked(0, one.name)) for one in agreed.agreed)
        return _Ahead(agreed, sizes, asked, 4 * sum(one.layout.size for one in agreed.agreed))
    system = NatImgFL(config, federation, throwaway)
    layout = system.layout(config.proxies.per_round)
    groups = {site.name: system.group_of(site) for site in federation.sites}
    terms = agree(config, federation, layout, system.weights(), groups)
    return _Ahead(
        Schedule.single(terms, layout, config.system.rounds),
        _parameters(config, federation),
        config.proxies.per_round,
        4 * config.proxies.per_round * len(federation.task.classes),
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
            trained = isinstance(mechanism, TrainedOutput)
            ledger.require(mechanism.event(), config.system.rounds if trained else config.openings)
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
    images = len(federation.pool or ()) + sum(
        len(site.train) + len(site.test) for site in federation.sites
    )
    side = federation.naturals.images.shape[-1]
    networks = 16 * (sum(parameters[s.architecture] for s in federation.sites))
    return round(900 + (4 * images * side * side + networks) / 2**20)


def _disk(config: Config, federation: Federation, parameters: dict[str, int], upload: int) -> int:
    """Checkpoints of every round and baseline, and the transcript."""
    networks = sum(parameters[s.architecture] for s in federation.sites)
    networks += parameters.get(config.models.central, 0)
    checkpoints = 4 * networks * (config.system.rounds + 1)
    transcript = 3 * upload * len(federation.sites) * config.system.rounds
    return math.ceil((checkpoints + transcript) / 2**20)

"""From the configured mechanism to the plan of all sites' releases. Spends nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from protocols.client_gaussian import plan_clients
from protocols.errors import PrivacyError
from protocols.mechanisms import NoNoise
from protocols.noise_plan import NoisePlan
from protocols.training_plan import TrainingPlan
from secure_natfl import config as tables
from secure_natfl.config import Config
from secure_natfl.deep_training import trained_parameters
from secure_natfl.federation import Federation

PATIENTS_PER_SHARD = 3
"""Expected patients of a shard, at least: with fewer many shards would be empty."""

SPAN = 32.0
"""Largest logit that a model trained under noise sends; a larger one says no more."""


@dataclass(frozen=True)
class Sending:
    """What every site sends in a phase of a round.

    size: released integers. trained: site → parameters trained under noise, None for a head, or
    layers, of the central model. span: largest value sent of a model trained under noise. absent:
    sites per group, at most, that a round leaves out; noise counts them as dropped out. answers:
    whether these are answers on public images, rows by classes.
    """

    size: int
    trained: Mapping[str, int] | None = None
    span: float = SPAN
    absent: int = 0
    answers: bool = True


@dataclass(frozen=True)
class Planner:
    """The figures that every mechanism's plan is made of; one method for each mechanism.

    sending: what the plan is for. bits: width of a released integer. alphas, groups: per site.
    """

    config: Config
    federation: Federation
    sending: Sending
    bits: int
    alphas: Mapping[str, int]
    groups: Mapping[str, str]

    def silent(self, table: tables.NoNoise) -> Mapping[str, NoNoise]:
        """Site → its mechanism, without noise."""
        return NoNoise.for_sites(
            shards=teachers_of(self.config, self.federation),
            clip_norm=table.clip,
            size=self.sending.size,
            bits=self.bits,
        )

    def training(self, table: tables.DpSgd) -> TrainingPlan:
        """Noise in the training of one head, or network, per site."""
        sites, trained = self.federation.sites, self.sending.trained
        if trained is None:
            parameters = trained_parameters(
                self.config.models.central,
                self.config.data.size,
                len(self.federation.task.classes),
                table.layers,
            )
            trained = dict.fromkeys((site.name for site in sites), parameters)
        return TrainingPlan.calibrate(
            epsilon=table.epsilon,
            delta=table.delta,
            rounds=self.config.system.rounds,
            groups=self.groups,
            units={site.name: site.patients for site in sites},
            parameters=trained,
            clip_norm=table.gradient_clip,
            rate=table.rate,
            steps=table.steps,
            layers=table.layers,
            span=self.sending.span,
            size=self.sending.size,
            bits=self.bits,
        )

    def noise(self, table: tables.ShardTeachers | tables.ClientGaussian) -> NoisePlan:
        """Noise at release, a share from each site."""
        common: dict[str, Any] = {
            "epsilon": table.epsilon,
            "delta": table.delta,
            "rounds": self.config.openings,
            "alphas": self.alphas,
            "groups": self.groups,
            "colluders": table.colluders,
            "dropouts": table.dropouts + self.sending.absent,
            "clip_norm": table.clip,
            "size": self.sending.size,
            "bits": self.bits,
        }
        if isinstance(table, tables.ShardTeachers):
            shards = teachers_of(self.config, self.federation)
            return NoisePlan.calibrate(shards=shards, **common)
        answers = self.sending.answers
        try:
            return plan_clients(
                # Of an update no consensus by rows can be predicted: its size alone is known.
                rows=self.config.proxies.per_round if answers else self.sending.size,
                classes=len(self.federation.task.classes) if answers else 2,
                override=table.override,
                **common,
            )
        except PrivacyError as error:
            key = " (privacy.override = true)" if "override" in error.fix else ""
            fix = error.fix + key
            if not answers:
                fix = fix.replace("shard-teachers, which hide", "dp-sgd, which hides")
            raise PrivacyError(error.what, where=error.where, why=error.why, fix=fix) from None


def teachers_of(config: Config, federation: Federation) -> dict[str, int]:
    """Site → number of teachers: `privacy.shards`, or fewer where a shard would be left empty.

    Depends on declared figures alone.
    """
    table = sharded(config.privacy)
    if table is None:
        return {site.name: 1 for site in federation.sites}
    return {
        site.name: min(table.shards, site.patients // PATIENTS_PER_SHARD)
        for site in federation.sites
    }


def sharded(table: tables.Privacy) -> tables.ShardTeachers | tables.NoNoise | None:
    """The table, if a site has one speaking model per shard of its patients; None if one in all."""
    if isinstance(table, tables.ShardTeachers):
        return table
    return table if isinstance(table, tables.NoNoise) and table.speaking == "shards" else None


def check_patients(
    table: tables.ShardTeachers | tables.DpSgd | tables.ClientGaussian, federation: Federation
) -> None:
    """δ must be below one patient's share, and every site must fill two shards.

    Where a model is trained under noise, as few have no crowd to be learned from either.
    """
    for site in sorted(federation.sites, key=lambda site: site.patients, reverse=True):
        if table.delta >= 1 / site.patients:
            raise PrivacyError(
                f"δ = {table.delta:g} is not below 1/{site.patients} {site.unit}s",
                where=f"privacy.delta, {site.name}",
                why="such a δ allows to publish one of them whole",
                fix=f"set it to at most {0.1 / site.patients:.1g}",
            )
        least = 2 * PATIENTS_PER_SHARD
        if site.patients < least:
            raise PrivacyError(
                f"{site.patients} {site.unit}s are too few for two shards"
                if isinstance(table, tables.ShardTeachers)
                else f"{site.patients} {site.unit}(s) are too few to learn from under noise",
                where=site.name,
                why=f"a shard takes {PATIENTS_PER_SHARD} at least, or some stay empty"
                if isinstance(table, tables.ShardTeachers)
                else f"{least} are asked for at least",
                fix="leave the site out, or join it with another",
            )

"""From a study file to its cells: arm × grid point × seed × fold, most informative first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from protocols.chain import canonical, digest
from protocols.errors import ConfigError
from secure_natfl.config import Config, NatImg, NoNoise, Plain
from secure_natfl.study.file import Changes, StudyFile
from secure_natfl.toml_config import Table, parse, put, read

EPSILON, MECHANISM = "privacy.epsilon", "privacy.mechanism"
_KINDS = ("system.kind", "aggregation.kind", MECHANISM)
_COMPARISONS = {"local_only", "pooled"}

Point = tuple[tuple[str, str], ...]
"""(axis, value as text) of a grid point, in the order of the file."""


@dataclass(frozen=True, eq=False)
class Setting:
    """One arm at one grid point. `config` has neither seed nor fold yet."""

    arm: str
    point: Point
    config: Config

    @property
    def label(self) -> str:
        """Arm and point for people, such as "shards, ε = 8"."""
        return ", ".join([self.arm, *(f"{named(axis)} = {v}" for axis, v in self.point)]).replace(
            "ε = inf", "ε = ∞"
        )

    @property
    def epsilon(self) -> float:
        """The ε that the noise is calibrated for; ∞ without noise."""
        return float(getattr(self.config.privacy, "epsilon", math.inf))


@dataclass(frozen=True, eq=False)
class Cell:
    """One training with one fold held back; equal configurations are one cell.

    "federation" plays the run; "comparison" trains the local-only and pooled networks, which
    depend on neither noise nor encryption and so are shared by many settings.
    """

    kind: Literal["federation", "comparison"]
    config: Config

    @cached_property
    def id(self) -> str:
        """Names the cell's files: a digest of everything that can change its predictions."""
        return digest(canonical([self.kind, self.config.identity]))[:20]


@dataclass(frozen=True)
class Plan:
    """A study's settings, and the cells that they ask for."""

    study: StudyFile
    settings: tuple[Setting, ...]

    def federation(self, setting: Setting, seed: int, fold: int) -> Cell | None:
        """The cell of central and personalised models; None where neither is asked for."""
        if _COMPARISONS.issuperset(self.study.models):
            return None
        return Cell("federation", _at(setting.config, self.study, seed, fold))

    def comparison(self, setting: Setting, seed: int, fold: int) -> Cell | None:
        """The cell of the comparisons; None where none is asked for."""
        if _COMPARISONS.isdisjoint(self.study.models):
            return None
        return Cell("comparison", _at(_without_federation(setting.config), self.study, seed, fold))

    def of(self, setting: Setting, seed: int) -> list[Cell]:
        """All cells of a setting under one seed."""
        pairs = (
            (self.comparison(setting, seed, fold), self.federation(setting, seed, fold))
            for fold in range(self.study.folds)
        )
        return [cell for pair in pairs for cell in pair if cell is not None]

    def labels(self) -> dict[str, str]:
        """Cell id → the first setting that asks for it, its seed and its fold, for people."""
        found: dict[str, str] = {}
        for seed, setting in itertools.product(self.study.seeds, self.settings):
            for cell in self.of(setting, seed):
                what = setting.label if cell.kind == "federation" else "comparisons"
                fold = cell.config.data.fold + 1
                found.setdefault(cell.id, f"{what}, seed {seed}, fold {fold}")
        return found

    def cells(self) -> list[Cell]:
        """All cells once: every setting's first seed, whole, before any second seed."""
        pairs = itertools.product(self.study.seeds, self.settings)
        ordered = (cell for seed, setting in pairs for cell in self.of(setting, seed))
        return list({cell.id: cell for cell in ordered}.values())


def plan_of(study: StudyFile) -> Plan:
    """All settings of a study. ConfigError names the first cell that is impossible, and why."""
    base = read(study.base)
    return Plan(study, tuple(_settings(study, base)))


def _settings(study: StudyFile, base: Table) -> Iterator[Setting]:
    """Grid point by grid point, so that the arms of one point stand together."""
    axes = list(study.grid)
    seen = set()
    for values in itertools.product(*study.grid.values()):
        for arm, changes in study.arms.items():
            at = dict(zip(axes, values, strict=True))
            point = tuple((axis, spelt(changes.get(axis, value))) for axis, value in at.items())
            if (arm, point) in seen:
                continue
            seen.add((arm, point))
            setting = Setting(arm, point, _configured(study, base, at | changes, arm, point))
            yield setting


def _configured(study: StudyFile, base: Table, changes: Changes, arm: str, point: Point) -> Config:
    table = deepcopy(base)
    # What a study sets for itself; the base's own ledgers are never touched.
    table.pop("ledger", None)
    table.pop("run", None)
    place = f"study {study.name}, arm {arm}" + "".join(f", {a} = {v}" for a, v in point)
    try:
        apply(table, study.common | changes)
        return parse(table, place)
    except ConfigError as error:
        raise ConfigError(
            f"impossible cell: {error.what}", where=error.where, why=error.why, fix=error.fix
        ) from None


def apply(table: Table, changes: Changes) -> None:
    """Put `changes` into a configuration's table; an ε of "inf" takes the mechanism's noise away.

    Without noise the same shard teachers speak where there were some, else a network.
    """
    changes = dict(changes)
    silent = EPSILON in changes and spelt(changes[EPSILON]) == "inf"
    if silent:
        del changes[EPSILON]
    for key in sorted(changes, key=lambda key: key not in _KINDS):
        put(table, key, deepcopy(changes[key]))
    if not silent:
        return
    usual = Config.model_fields["privacy"].get_default().mechanism
    mechanism = table.get("privacy", {}).get("mechanism", usual)
    if mechanism != "none":
        put(table, MECHANISM, "none")
        speaking = "shards" if mechanism == "shard-teachers" else "network"
        table["privacy"].setdefault("speaking", speaking)


def named(axis: str) -> str:
    """An axis for people: the last part of its key, and ε by its letter."""
    return "ε" if axis == EPSILON else axis.rpartition(".")[2]


def spelt(value: Any) -> str:
    """A value of an axis as text; lists and tables by a short digest."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | dict):
        return digest(canonical(value))[:8]
    return str(value)


def _at(config: Config, study: StudyFile, seed: int, fold: int) -> Config:
    run = config.run.model_copy(update={"name": study.name, "seed": seed, "baselines": False})
    data = config.data.model_copy(update={"folds": study.folds, "fold": fold})
    speed = config.speed.model_copy(update={"threads": 1})
    return config.model_copy(update={"run": run, "data": data, "speed": speed})


def _without_federation(config: Config) -> Config:
    """Of a configuration only what the comparisons depend on."""
    system = NatImg(rounds=config.system.rounds, local_epochs=config.system.local_epochs)
    proxies = config.proxies.model_copy(update={"per_round": 1})
    changes = {"system": system, "proxies": proxies, "aggregation": Plain(kind="plain")}
    return config.model_copy(update=changes | {"privacy": NoNoise(mechanism="none")})

"""From a study file to its cells: arm × grid point × seed × fold, most informative first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from protocols.chain import canonical, digest
from protocols.errors import ConfigError
from secure_natfl.config import Config, Hospital, Ledger, NoNoise, Plain
from secure_natfl.study.file import (
    AGAINST,
    CLEAR,
    LEFT_OUT,
    MODELS,
    PRESET,
    REFUSED,
    SEEDS,
    Changes,
    Model,
    StudyFile,
)
from secure_natfl.system_tables import NatImg
from secure_natfl.toml_config import Table, parse, put, read

EPSILON, MECHANISM = "privacy.epsilon", "privacy.mechanism"
_HOSPITALS = "data.hospitals."
_KINDS = ("system.kind", "aggregation.kind", MECHANISM)
COMPARISONS = {"local_only", "pooled"}
OF_NEWCOMERS = {"fitted", "few_labels"}
_SILENT = {"shard-teachers": "shards", "dp-sgd": "head"}
"""Mechanism → what speaks without its noise."""

Point = tuple[tuple[str, str], ...]
"""(axis, value as text) of a grid point, in the order of the file."""


@dataclass(frozen=True, eq=False)
class Setting:
    """One arm at one grid point. `config` has neither seed nor fold yet.

    newcomers: hospitals that take no part, whose images its models are asked about nevertheless.
    against: the arm that it is compared with. clear, refused: of whole runs, whether sums are taken
    as they are, and whether the setting must be refused and is never played.
    """

    arm: str
    point: Point
    config: Config
    models: tuple[Model, ...]
    seeds: tuple[int, ...]
    newcomers: tuple[Hospital, ...]
    against: str
    clear: bool = False
    refused: bool = False

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
    depend on neither noise nor encryption and so are shared by many settings. "run" and "clear
    run" are whole runs. models: those of this kind that are asked for; newcomers: as of the
    setting.
    """

    kind: Literal["federation", "comparison", "run", "clear run"]
    config: Config
    models: tuple[Model, ...]
    newcomers: tuple[Hospital, ...] = ()

    @cached_property
    def id(self) -> str:
        """Names the cell's files: a digest of everything that can change its predictions."""
        asked = [sorted(self.models), [one.model_dump(mode="json") for one in self.newcomers]]
        return digest(canonical([self.kind, self.config.identity, *asked]))[:20]


@dataclass(frozen=True)
class Plan:
    """A study's settings, and the cells that they ask for."""

    study: StudyFile
    settings: tuple[Setting, ...]

    def federation(self, setting: Setting, seed: int, fold: int) -> Cell | None:
        """The cell of the models that come of the federation; None where none is asked for."""
        models = tuple(m for m in setting.models if m not in COMPARISONS)
        if not models:
            return None
        config = _at(setting.config, self.study, seed, fold)
        return Cell("federation", config, models, setting.newcomers)

    def comparison(self, setting: Setting, seed: int, fold: int) -> Cell | None:
        """The cell of the comparisons; None where none is asked for."""
        models = tuple(m for m in setting.models if m in COMPARISONS)
        if not models:
            return None
        config = _at(without_federation(setting.config), self.study, seed, fold)
        return Cell("comparison", config, models, setting.newcomers)

    @property
    def whole(self) -> bool:
        """Whether cells are whole runs, each with its usual split, and not folds."""
        return not self.study.folds

    def run_of(self, setting: Setting, seed: int) -> Cell:
        """The whole run of a setting under one seed."""
        config = _as_whole(_at(setting.config, self.study, seed, 0), seed, setting.models)
        return Cell("clear run" if setting.clear else "run", config, setting.models)

    def of(self, setting: Setting, seed: int) -> list[Cell]:
        """All cells of a setting under one seed."""
        if setting.refused:
            return []
        if self.whole:
            return [self.run_of(setting, seed)]
        pairs = (
            (self.comparison(setting, seed, fold), self.federation(setting, seed, fold))
            for fold in range(self.study.folds)
        )
        return [cell for pair in pairs for cell in pair if cell is not None]

    def labels(self) -> dict[str, str]:
        """Cell id → the first setting that asks for it, its seed and its fold, for people."""
        found: dict[str, str] = {}
        for seed, setting in self._played():
            for cell in self.of(setting, seed):
                what = "comparisons" if cell.kind == "comparison" else setting.label
                fold = "" if self.whole else f", fold {cell.config.data.fold + 1}"
                found.setdefault(cell.id, f"{what}, seed {seed}{fold}")
        return found

    def cells(self) -> list[Cell]:
        """All cells once: every setting's first seed, whole, before any second seed."""
        ordered = (cell for seed, setting in self._played() for cell in self.of(setting, seed))
        return list({cell.id: cell for cell in ordered}.values())

    def _played(self) -> Iterator[tuple[int, Setting]]:
        pairs = itertools.product(self.study.seeds, self.settings)
        return ((seed, setting) for seed, setting in pairs if seed in setting.seeds)


def plan_of(study: StudyFile) -> Plan:
    """All settings of a study. ConfigError names the first cell that is impossible, and why."""
    bases = {arm: read(changes.get(PRESET, study.base)) for arm, changes in study.arms.items()}
    return Plan(study, tuple(_settings(study, bases)))


def _settings(study: StudyFile, bases: Mapping[str, Table]) -> Iterator[Setting]:
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
            yield _setting(study, bases[arm], at | changes, arm, point)


def _setting(study: StudyFile, base: Table, changes: Changes, arm: str, point: Point) -> Setting:
    changes = dict(changes)
    models = tuple(changes.pop(MODELS, study.models))
    seeds = tuple(changes.pop(SEEDS, study.seeds))
    left_out = changes.pop(LEFT_OUT, [])
    # Arms of whole runs may differ in all they have: none is held against one that it is not like.
    against = changes.pop(AGAINST, next(iter(study.arms)) if study.folds else arm)
    clear, refused = (bool(changes.pop(key, False)) for key in (CLEAR, REFUSED))
    changes.pop(PRESET, None)
    config = _configured(study, base, changes, arm, point)
    inside = [one for one in config.data.hospitals if one.name not in left_out]
    newcomers = tuple(one for one in config.data.hospitals if one.name in left_out)
    if len(newcomers) < len(left_out) or not inside:
        raise ConfigError(
            f"{LEFT_OUT} = {left_out}",
            where=f"study {study.name}, arm {arm}",
            fix=f"name some of {', '.join(one.name for one in config.data.hospitals)}",
        )
    if OF_NEWCOMERS.intersection(models) and not newcomers:
        raise ConfigError(
            f"{' and '.join(sorted(OF_NEWCOMERS.intersection(models)))} with no newcomer",
            where=f"study {study.name}, arm {arm}",
            why="they are fitted to a hospital that took no part",
            fix=f"name one in {LEFT_OUT}, or leave them out",
        )
    if study.folds and not isinstance(config.system, NatImg):
        raise ConfigError(
            f"{config.system.kind} is studied by whole runs",
            where=f"study {study.name}, arm {arm}",
            fix="set folds = 0",
        )
    data = config.data.model_copy(update={"hospitals": inside})
    config = config.model_copy(update={"data": data})
    return Setting(arm, point, config, models, seeds, newcomers, against, clear, refused)


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

    Without noise the same shard teachers or heads speak where there were some, else a network.
    """
    changes = dict(changes)
    silent = EPSILON in changes and spelt(changes[EPSILON]) == "inf"
    if silent:
        del changes[EPSILON]
    for key in sorted(changes, key=lambda key: key not in _KINDS):
        if key.startswith(_HOSPITALS):
            _put_hospital(table, key, deepcopy(changes[key]))
        else:
            put(table, key, deepcopy(changes[key]))
    if not silent:
        return
    usual = Config.model_fields["privacy"].get_default().mechanism
    mechanism = table.get("privacy", {}).get("mechanism", usual)
    if mechanism != "none":
        put(table, MECHANISM, "none")
        table["privacy"].setdefault("speaking", _SILENT.get(mechanism, "network"))


def _put_hospital(table: Table, key: str, value: Any) -> None:
    """`data.hospitals.NAME.KEY`: of one hospital alone; another name adds a hospital."""
    name, _, inner = key.removeprefix(_HOSPITALS).partition(".")
    hospitals = table.setdefault("data", {}).setdefault("hospitals", [])
    found = next((one for one in hospitals if one.get("name") == name), None)
    if found is None:
        found = {"name": name}
        hospitals.append(found)
    put(found, inner, value)


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


def _as_whole(config: Config, seed: int, models: tuple[Model, ...]) -> Config:
    """Of a whole run: sites and test parts are cut anew with every seed."""
    data = config.data.model_copy(update={"split_seed": seed})
    run = config.run.model_copy(update={"baselines": bool(COMPARISONS.intersection(models))})
    return config.model_copy(update={"data": data, "run": run})


def without_federation(config: Config) -> Config:
    """Of a configuration only what the comparisons depend on."""
    system = NatImg(rounds=config.system.rounds, local_epochs=config.natimg.local_epochs)
    proxies = config.proxies.model_copy(update={"per_round": 1})
    changes = {"system": system, "proxies": proxies, "aggregation": Plain(kind="plain")}
    changes["ledger"] = Ledger()
    return config.model_copy(update=changes | {"privacy": NoNoise(mechanism="none")})

"""Everything that can be wrong with a study, found before its first cell runs."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np

from protocols.chain import canonical, digest
from protocols.errors import ConfigError, DataError, NatflError
from secure_natfl.config import Config, Hospital, PhantomHospital
from secure_natfl.data.records import Records
from secure_natfl.federation import Federation, assemble, cut, gather, halves
from secure_natfl.seeds import Seeds
from secure_natfl.setup import check_architectures
from secure_natfl.study.grid import Cell, Plan
from secure_natfl.systems.natimg_fl import NatImgFL
from secure_natfl.terms import agree


def check_plan(plan: Plan) -> dict[str, Federation]:
    """Cell id → its federation, for each setting's first cell of every kind; trains nothing.

    Raises what is wrong, with the setting it is wrong in: an architecture, images or labels that
    cannot be used, a patient at two sites, fewer patients than folds, a fold with one class, a
    group under its floor, a guarantee that cannot be given.
    """
    built: dict[str, Federation] = {}
    found: dict[str, Federation] = {}
    for setting in plan.settings:
        try:
            for cell in _first_of_each_kind(plan.of(setting, setting.seeds[0])):
                found[cell.id] = _federation(cell, built)
                if cell.kind == "federation":
                    _check_terms(cell.config, found[cell.id])
        except NatflError as error:
            where = f"{setting.label}: {error.where}" if error.where else setting.label
            raise type(error)(error.what, where=where, why=error.why, fix=error.fix) from None
    return found


def simulated(config: Config) -> bool:
    """Whether all images are phantoms, so that nobody's records are at stake."""
    return all(isinstance(hospital, PhantomHospital) for hospital in config.data.hospitals)


def _first_of_each_kind(cells: Iterable[Cell]) -> list[Cell]:
    found: dict[str, Cell] = {}
    for cell in cells:
        found.setdefault(cell.kind, cell)
    return list(found.values())


def _federation(cell: Cell, built: dict[str, Federation]) -> Federation:
    """The cell's federation; cells of the same images share one."""
    config = cell.config
    check_architectures(config)
    stated = [config.data.model_dump(mode="json"), config.proxies.model_dump(mode="json")]
    key = digest(canonical([*stated, config.system.rounds, config.uses_proxies]))
    if key not in built:
        _check_groups(config)
        hospitals, naturals = gather(config, lambda _: os.urandom(32))
        for records, table in zip(hospitals, config.data.hospitals, strict=True):
            check_folds(records, table, config)
        built[key] = assemble(config, hospitals, naturals)
    return built[key]


def check_folds(records: Records, table: Hospital, config: Config) -> None:
    """DataError for fewer patients than folds at a site, or a fold in which one class is missing.

    A hospital that has one class alone may take part; its AUROC is not defined in any fold.
    """
    parts = cut(records, table, config.data)
    for part in parts:
        if part.patient_count < config.data.folds:
            raise DataError(
                f"{part.patient_count} {part.unit}(s) cannot fill {config.data.folds} folds",
                where=part.name,
                fix="lower folds, or leave the site out",
            )
    if records.one_class():
        return
    for fold in range(config.data.folds):
        data = config.data.model_copy(update={"fold": fold})
        train, test = zip(*(halves(part, data) for part in parts), strict=True)
        for name, side in (("training", train), ("test", test)):
            labels = np.concatenate([part.labels for part in side])
            if not _tells_apart(labels):
                raise DataError(
                    f"the {name} part of fold {fold + 1} has one class",
                    where=records.name,
                    why="no AUROC is defined there",
                    fix="lower folds, or leave the hospital out",
                )


def _tells_apart(labels: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> bool:
    if labels.ndim == 1:
        return len(np.unique(labels)) > 1
    return bool(((labels == 1).any(0) & (labels == 0).any(0)).any())


def _check_groups(config: Config) -> None:
    """A hospital under two names in two groups would speak in both."""
    seen: dict[str, tuple[str, str]] = {}
    for hospital in config.data.hospitals:
        if isinstance(hospital, PhantomHospital):
            continue
        stated = hospital.model_dump(mode="json", include={"path", "source", "manifest"})
        name, group = seen.setdefault(digest(canonical(stated)), (hospital.name, hospital.group))
        if group != hospital.group:
            raise ConfigError(
                f"{name} and {hospital.name} are the same images in two groups",
                where="data.hospitals",
                why="a hospital enters one aggregate, or its noise does not cover it",
                fix=f"give both the group {group}, or leave one out",
            )


def _check_terms(config: Config, federation: Federation) -> None:
    """Agree as a run would: floors, noise, presets. Spends nothing."""
    system = NatImgFL(config, federation, Seeds.of_study(0))
    groups = {site.name: system.group_of(site) for site in federation.sites}
    agree(config, federation, system.layout(config.proxies.per_round), system.weights(), groups)

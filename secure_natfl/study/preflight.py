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
from secure_natfl.sources import load_hospital
from secure_natfl.study.grid import OF_NEWCOMERS, Cell, Plan
from secure_natfl.study.newcomers import DRAWS, check_late, drawn
from secure_natfl.systems.natimg_fl import NatImgFL
from secure_natfl.terms import agree

_FILES = {"kind", "path", "source", "manifest", "hospital"}
"""Of a hospital's table what says which images it has."""


def check_plan(plan: Plan) -> dict[str, Federation]:
    """Cell id → its federation, for each setting's first cell of every kind; trains nothing.

    Raises what is wrong, with the setting it is wrong in: an architecture, images or labels that
    cannot be used, a patient at two sites, fewer patients than folds, a fold with one class, a
    group under its floor, a guarantee that cannot be given; the same of hospitals that take no
    part, and that they are hospitals of their own with the same classes and enough of each.
    """
    built: dict[str, Federation] = {}
    found: dict[str, Federation] = {}
    for setting in plan.settings:
        try:
            for cell in _first_of_each_kind(plan.of(setting, setting.seeds[0])):
                found[cell.id] = _federation(cell.config, built)
                if cell.newcomers:
                    _check_newcomers(cell, found[cell.id], built)
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


def _federation(config: Config, built: dict[str, Federation]) -> Federation:
    """The configuration's federation; cells of the same images share one."""
    check_architectures(config)
    stated = [config.data.model_dump(mode="json"), config.proxies.model_dump(mode="json")]
    key = digest(canonical([*stated, config.system.rounds, config.uses_proxies]))
    if key not in built:
        _check_groups(config)
        hospitals, naturals = gather(config, _drawn_key)
        for records, table in zip(hospitals, config.data.hospitals, strict=True):
            check_folds(records, table, config)
        built[key] = assemble(config, hospitals, naturals)
    return built[key]


def _check_newcomers(cell: Cell, federation: Federation, built: dict[str, Federation]) -> None:
    """As its cell will meet them: the packs, their folds, their patients, the draws of labels."""
    config = cell.config
    inside = {_images(one): one.name for one in config.data.hospitals}
    for one in cell.newcomers:
        if _images(one) in inside:
            raise ConfigError(
                f"{one.name} has the images of {inside[_images(one)]}, which takes part",
                where="study.left_out",
                fix="leave out both, or a hospital of other patients",
            )
    data = config.data.model_copy(update={"hospitals": list(cell.newcomers)})
    late = _federation(config.model_copy(update={"data": data}), built)
    check_late(late, federation)
    if OF_NEWCOMERS.intersection(cell.models):
        for one in cell.newcomers:
            _check_draws(one, config)


def _check_draws(table: Hospital, config: Config) -> None:
    """DataError where a fold's training part holds no draw of labels to fit a model to."""
    records = load_hospital(table, config.data, _drawn_key)
    seeds = Seeds.of_study(int(config.run.seed))
    for fold in range(config.data.folds):
        data = config.data.model_copy(update={"fold": fold})
        train = [halves(part, data)[0] for part in cut(records, table, data)]
        labels = np.concatenate([part.labels for part in train])
        classes = np.arange(len(records.class_names))
        shown = labels == 1 if records.multi_label else labels[:, None] == classes
        patients = np.array([patient for part in train for patient in part.patients])
        for draw in range(DRAWS):
            rng = np.random.default_rng(seeds.integer("labels", table.name, draw))
            drawn(shown, patients, rng, table.name)


def _drawn_key(hospital: str) -> bytes:
    """Ids are compared within one check alone."""
    del hospital
    return os.urandom(32)


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
        name, group = seen.setdefault(_images(hospital), (hospital.name, hospital.group))
        if group != hospital.group:
            raise ConfigError(
                f"{name} and {hospital.name} are the same images in two groups",
                where="data.hospitals",
                why="a hospital enters one aggregate, or its noise does not cover it",
                fix=f"give both the group {group}, or leave one out",
            )


def _images(hospital: Hospital) -> str:
    """The same for two hospitals of the same files."""
    return digest(canonical(hospital.model_dump(mode="json", include=_FILES)))


def _check_terms(config: Config, federation: Federation) -> None:
    """Agree as a run would: floors, noise, presets. Spends nothing."""
    system = NatImgFL(config, federation, Seeds.of_study(0))
    groups = {site.name: system.group_of(site) for site in federation.sites}
    agree(config, federation, system.layout(config.proxies.per_round), system.weights(), groups)

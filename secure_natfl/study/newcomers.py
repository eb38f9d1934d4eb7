"""Hospitals that take no part: who answers for them, and models fitted to a few of their labels."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from protocols.errors import DataError
from secure_natfl.evaluation import TestPart, hospital_tests, predict
from secure_natfl.federation import Federation, joined
from secure_natfl.newcomers import fit_newcomer
from secure_natfl.results import Results, head_of
from secure_natfl.seeds import Seeds
from secure_natfl.study.cell_run import Job, start_of
from secure_natfl.study.grid import OF_NEWCOMERS
from secure_natfl.systems.natimg_fl import NatImgFL

LABELLED: Final = 20
"""Images that a newcomer labels, all of some patients drawn from its training part."""
DRAWS: Final = 5
_FEWEST: Final = 3
_TRIES: Final = 1000


def newcomers_of(job: Job, federation: Federation) -> Federation | None:
    """The hospitals that take no part, cut into the same folds; None where there are none."""
    if not job.cell.newcomers:
        return None
    config = job.cell.config
    data = config.data.model_copy(update={"hospitals": list(job.cell.newcomers)})
    found, _ = start_of(config.model_copy(update={"data": data}), job.folder)
    check_late(found, federation)
    return found


def check_late(late: Federation, federation: Federation) -> None:
    """DataError where hospitals that take no part have other classes, or patients of the rest."""
    if late.task.classes != federation.task.classes:
        raise DataError(
            f"the hospitals left out tell apart {', '.join(late.task.classes)}",
            why=f"those that take part tell apart {', '.join(federation.task.classes)}",
            fix="leave out hospitals of the same classes, in the same order",
        )
    inside = _patients(federation)
    for site, patients in _patients(late).items():
        for other, known in inside.items():
            if patients & known:
                raise DataError(
                    f"{len(patients & known)} patient(s) are also at {other}, which takes part",
                    where=site,
                    why="a model that was trained on them would be asked about them as a newcomer",
                    fix="leave out a hospital of other patients; where the same id means two "
                    "people, prefix the hospital's name",
                )


def _patients(federation: Federation) -> dict[str, set[str]]:
    return {s.name: {*s.train_patients, *s.test_patients} for s in federation.sites}


def newcomer_tests(late: Federation | None) -> dict[str, TestPart]:
    """Hospital that takes no part → its images of the fold that is held back."""
    return {} if late is None else hospital_tests(late)


def heads_of(system: NatImgFL, hospital: str, job: Job) -> list[int]:
    """The heads that answer for a hospital: its group's, or all where its group took no part."""
    groups = {one.name: one.group for one in job.cell.newcomers}
    if hospital not in groups:
        return [head_of(system, hospital)]
    if groups[hospital] in system.heads:
        return [system.heads.index(groups[hospital])]
    return list(range(len(system.heads)))


def fitted(job: Job, results: Results, late: Federation | None) -> dict[str, NDArray[Any]]:
    """Key "hospital:model" → probabilities [draws, n, C] of networks fitted to a few labels each.

    "fitted" has the central model's heads; "few_labels" has the same labels and public features
    alone. DataError where a newcomer's training part holds no such draw.
    """
    asked = sorted(OF_NEWCOMERS.intersection(job.cell.models))
    if late is None or not asked:
        return {}
    seeds = Seeds.of_study(int(job.cell.config.run.seed))
    central = results.state.central
    open_features = results.system.open_features(central)
    found: dict[str, NDArray[Any]] = {}
    for hospital, part in hospital_tests(late).items():
        sites = late.hospitals[hospital]
        train = joined([site.train for site in sites])
        patients = np.array([patient for site in sites for patient in site.train_patients])
        said: dict[str, list[NDArray[np.float64]]] = {model: [] for model in asked}
        for draw in range(DRAWS):
            rng = np.random.default_rng(seeds.integer("labels", hospital, draw))
            rows = drawn(train.targets.numpy() > 0, patients, rng, hospital)
            few, whose = train.at(torch.from_numpy(rows)), patients[rows].tolist()
            for model in asked:
                network = fit_newcomer(
                    central, open_features, few, whose, heads=model == "fitted"
                ).network
                said[model].append(predict(network, part))
        for model, each in said.items():
            found[f"{hospital}:{model}"] = np.stack(each).astype(np.float32)
    return found


def drawn(
    shown: NDArray[np.bool_],
    patients: NDArray[np.str_],
    rng: np.random.Generator,
    hospital: str = "",
) -> NDArray[np.int64]:
    """Rows of random patients, whole, until there are `LABELLED`.

    shown [N, C]: which class an image shows. A draw in which fewer than three images show a class,
    or fewer than three do not, is drawn again; DataError where none has so many.
    """
    for _ in range(_TRIES):
        rows: list[int] = []
        for patient in rng.permutation(np.unique(patients)):
            if len(rows) >= LABELLED:
                break
            rows += np.flatnonzero(patients == patient).tolist()
        count = shown[rows].sum(0)
        if min(count.min(), len(rows) - count.max()) >= _FEWEST:
            return np.array(rows, np.int64)
    raise DataError(
        f"no {LABELLED} images of whole patients have {_FEWEST} of every class",
        where=hospital,
        fix="leave out a hospital with more images of each class",
    )

"""Out-of-fold predictions: the folds of one setting and seed put together, image by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from secure_natfl.study.file import Model
from secure_natfl.study.folder import StudyFolder
from secure_natfl.study.grid import Cell

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Truth:
    """A hospital's images, in the order of their keys, and the fold that held each back.

    keys, units, fold: [n]; targets, known: [n, C]. A unit is a patient, or an image where no
    patients are known.
    """

    keys: Integers
    units: Integers
    fold: Integers
    targets: NDArray[np.float32]
    known: NDArray[np.float32]
    multi_label: bool
    unit: str

    @property
    def columns(self) -> Sequence[int]:
        """The classes that are scored: the second of two, or all."""
        classes = self.targets.shape[1]
        return [1] if classes == 2 and not self.multi_label else range(classes)


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """A hospital's truth, and model → probabilities [M, n, C] of its networks, with their sites."""

    truth: Truth
    models: Mapping[str, Floats]
    sites: Mapping[str, tuple[str, ...]]


def gathered(folder: StudyFolder, cells: Sequence[Cell]) -> dict[str, OutOfFold]:
    """Hospital → the predictions in `cells`: all folds of one setting and seed, each finished."""
    by_kind: dict[str, list[dict[str, NDArray[Any]]]] = {}
    folds: dict[str, list[int]] = {}
    for cell in cells:
        by_kind.setdefault(cell.kind, []).append(folder.arrays(cell))
        folds.setdefault(cell.kind, []).append(cell.config.data.fold)
    found: dict[str, OutOfFold] = {}
    for kind, parts in by_kind.items():
        for hospital in [name[:-5] for name in parts[0] if name.endswith(":keys")]:
            one = _joined(parts, folds[kind], hospital)
            before = found.get(hospital)
            if before is not None:
                one = OutOfFold(
                    one.truth, {**before.models, **one.models}, {**before.sites, **one.sites}
                )
            found[hospital] = one
    return found


def _joined(
    parts: Sequence[Mapping[str, NDArray[Any]]], folds: Sequence[int], hospital: str
) -> OutOfFold:
    def column(name: str, axis: int = 0) -> NDArray[Any]:
        return np.concatenate([part[f"{hospital}:{name}"] for part in parts], axis=axis)

    keys = column("keys")
    order = np.argsort(keys, kind="stable")
    fold = np.concatenate(
        [np.full(len(p[f"{hospital}:keys"]), f) for p, f in zip(parts, folds, strict=True)]
    )
    first = parts[0]
    truth = Truth(
        keys[order],
        column("units")[order],
        fold[order].astype(np.int64),
        column("targets")[order],
        column("known")[order],
        bool(first[f"{hospital}:multi_label"]),
        "patient" if first[f"{hospital}:patients"] else "image",
    )
    models, sites = {}, {}
    for model in get_args(Model):
        if f"{hospital}:{model}" in first:
            models[model] = column(model, axis=1)[:, order].astype(np.float64)
            names = first.get(f"{hospital}:{model}:sites")
            sites[model] = () if names is None else tuple(str(name) for name in names)
    return OutOfFold(truth, models, sites)

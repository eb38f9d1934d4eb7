"""What the privacy-utility study works on: frozen public features, folds, simulated sites.

One public network, pre-trained on natural images alone, turns every image into features once.
Hospitals, sites and splits are those of the preset `xray-hospitals`; a fold's test images are
nobody's training images, and no patient (at guangzhou: no group of near-duplicates) is in two
folds or two sites.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from protocols.chain import digest
from secure_natfl.data.arrays import to_float
from secure_natfl.data.npz import PackSource
from secure_natfl.data.records import Records, Unit
from secure_natfl.data.splits import folds, simulate_sites
from secure_natfl.pretraining import pretrained
from secure_natfl.training import Naturals, features_of

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Settings = dict[str, Any]
"""A method's hyper-parameters by name."""

FOLDS = 5
_MOST_IMAGES = 4
_BACKBONE = "test_resnet"
# A constant input, small so that the bias takes little of a clipped gradient.
_BIAS = 0.1


@dataclass(frozen=True, eq=False)
class Cohort:
    """A site's training units. `features` [I, d], `labels` [I] in {0, 1}, `unit` [I], in order.

    A unit is a patient with at most four images, or an image where no patients are known.
    """

    features: Floats
    labels: Integers
    unit: Integers
    units: int

    @cached_property
    def means(self) -> Floats:
        """[units, I]: row u averages over the images of unit u."""
        members = (self.unit == np.arange(self.units)[:, None]).astype(np.float64)
        return np.asarray(members / members.sum(1, keepdims=True))


@dataclass(frozen=True, eq=False)
class Fold:
    """Rows held back, and the three sites' training units from all others."""

    test: Integers
    sites: tuple[Cohort, ...]


@dataclass(frozen=True, eq=False)
class Hospital:
    """All images of a hospital on frozen features, standardised by the natural images."""

    name: str
    records: Records
    features: Floats
    sites: int

    @cached_property
    def truth(self) -> NDArray[np.bool_]:
        """Whether each image shows pneumonia."""
        return np.asarray(self.records.labels == 1)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of features and labels: which data a figure belongs to."""
        return digest(self.features.tobytes() + self.records.labels.tobytes())

    def folds(self, seed: int) -> tuple[Fold, ...]:
        """Five patient-disjoint folds, and in each the preset's number of simulated sites."""
        found = []
        for test in folds(self.records, FOLDS, seed):
            train = np.setdiff1d(np.arange(len(self.records)), test)
            numbered = _numbered(self.records, train)
            parts = simulate_sites(numbered, self.sites, seed)
            found.append(Fold(test, tuple(self._cohort(part) for part in parts)))
        return tuple(found)

    def _cohort(self, part: Records) -> Cohort:
        """Units of one site; `part`'s images are row numbers."""
        rows = part.images.reshape(len(part), -1).view(np.int64)[:, 0]
        _, unit = np.unique(np.array(part.patients), return_inverse=True)
        rank = np.zeros(len(unit), np.int64)
        for u in range(part.patient_count):
            members = np.flatnonzero(unit == u)
            rank[members] = np.arange(len(members))
        kept = np.argsort(unit, kind="stable")
        kept = kept[rank[kept] < _MOST_IMAGES]
        return Cohort(self.features[rows[kept]], part.labels[kept], unit[kept], part.patient_count)


@dataclass(frozen=True, eq=False)
class Public:
    """What everybody has: natural images as features [P, d], in the hospitals' units."""

    features: Floats

    def rows(self, count: int) -> Integers:
        """The proxies that are asked: `count` natural images, the same at all sites."""
        return np.random.default_rng(0).choice(len(self.features), count, replace=False)


def load(data: Path) -> tuple[Public, dict[str, Hospital]]:
    """The proxy set and the hospitals guangzhou and nih below `data`, on one public network."""
    preset = tomllib.loads((files("secure_natfl.presets") / "xray-hospitals.toml").read_text())
    size = preset["data"]["size"]
    proxies = PackSource(data / preset["proxies"]["path"], name="proxies").load()
    naturals = Naturals(
        torch.from_numpy(to_float(proxies.images, size)), torch.from_numpy(proxies.labels)
    )
    epochs = preset["models"]["pretrain_epochs"]
    network = pretrained(_BACKBONE, naturals, size=size, classes=2, epochs=epochs)
    raw = features_of(network.backbone, naturals.images).double().numpy()
    mean, deviation = raw.mean(0), raw.std(0).clip(1e-6)

    def lifted(features: Floats) -> Floats:
        scaled = (features - mean) / (deviation * np.sqrt(features.shape[1]))
        return np.hstack([scaled, np.full((len(scaled), 1), _BIAS)])

    hospitals = {}
    for table in preset["data"]["hospitals"]:
        if table.get("sites", 1) < 2:
            continue
        unit: Unit = table["unit"]
        source = PackSource(data / table["path"], table["source"], unit, name=table["name"])
        records = source.load()
        images = torch.from_numpy(to_float(records.images, size))
        found = lifted(features_of(network.backbone, images).double().numpy())
        hospitals[table["name"]] = Hospital(table["name"], records, found, table["sites"])
    return Public(lifted(raw)), hospitals


def _numbered(records: Records, rows: Integers) -> Records:
    """`records` at `rows`, each image replaced by its row number, so that parts keep track."""
    images = rows.astype("<i8").view(np.uint8).reshape(-1, 1, 8)
    return Records(
        images,
        records.labels[rows],
        records.class_names,
        tuple(records.patients[row] for row in rows),
        records.unit,
        records.name,
    )

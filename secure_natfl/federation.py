"""Who takes part and with what: sites with their private examples, and the public natural images.

Built once from the configuration, before anything is trained or spent. Every check on data that
needs all parties at once stands here; in a real federation each site runs its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from protocols.chain import digest
from protocols.errors import DataError
from secure_natfl.config import Config, Data, sites_of
from secure_natfl.data.arrays import to_float
from secure_natfl.data.overlap import check_overlap
from secure_natfl.data.records import Records, Unit, align
from secure_natfl.data.splits import check_disjoint, folds, simulate_sites, split
from secure_natfl.sources import SiteKey, load_hospital, load_proxies
from secure_natfl.training import Examples, Naturals


@dataclass(frozen=True)
class Task:
    """What is told apart: the classes of the private images and of the natural ones."""

    classes: tuple[str, ...]
    multi_label: bool
    natural_classes: int


@dataclass(frozen=True, eq=False)
class Site:
    """A hospital's site: its private examples and what it declares in public.

    Declared: name, hospital, group, architecture, unit, number of patients. Everything else is
    private and never enters a message. `train_patients` and `test_patients` give the patient of
    each example.
    """

    name: str
    hospital: str
    group: str
    architecture: str
    unit: Unit
    train: Examples = field(repr=False)
    test: Examples = field(repr=False)
    records: Records = field(repr=False)
    test_patients: tuple[str, ...] = field(repr=False)
    one_class: bool

    @property
    def train_patients(self) -> tuple[str, ...]:
        """The patient of each training example."""
        return self.records.patients

    @property
    def patients(self) -> int:
        """Number of training patients (images, where the unit is the image); declared in public."""
        return self.records.patient_count


@dataclass(frozen=True, eq=False)
class Federation:
    """All parties of a run, and the labelled natural images that are public to them."""

    task: Task
    sites: tuple[Site, ...]
    naturals: Naturals = field(repr=False)
    natural_records: Records = field(repr=False)

    @property
    def groups(self) -> dict[str, list[Site]]:
        """Group → its sites, in order of appearance."""
        found: dict[str, list[Site]] = {}
        for site in self.sites:
            found.setdefault(site.group, []).append(site)
        return found

    @property
    def hospitals(self) -> dict[str, list[Site]]:
        """Hospital → its sites."""
        found: dict[str, list[Site]] = {}
        for site in self.sites:
            found.setdefault(site.hospital, []).append(site)
        return found

    @property
    def unit(self) -> Unit:
        """The weakest unit of any site: "image" as soon as one site knows no patients."""
        return "image" if any(site.unit == "image" for site in self.sites) else "patient"

    @property
    def proxy_digest(self) -> str:
        """SHA-256 of the whole proxy set, as all parties must see it."""
        images = self.natural_records.images
        return digest(repr(images.shape).encode() + images.tobytes())


def build(config: Config, site_key: SiteKey) -> Federation:
    """Load, align, split and check. DataError says which hospital, file or key is at fault."""
    return assemble(config, *gather(config, site_key))


def gather(config: Config, site_key: SiteKey) -> tuple[list[Records], Records]:
    """All images of every hospital, in the configuration's order, and the proxies; none shared."""
    hospitals = [
        load_hospital(hospital, config.data, site_key) for hospital in config.data.hospitals
    ]
    hospitals = align(hospitals)
    naturals = load_proxies(config.proxies, config.data)
    _check_enough(config, naturals)
    for records in hospitals:
        check_overlap(naturals.images, records)
    return hospitals, naturals


def assemble(config: Config, hospitals: Sequence[Records], naturals: Records) -> Federation:
    """The federation of images that were gathered: its sites, and each one's two parts."""
    sites = [
        site
        for records, number in zip(hospitals, range(len(hospitals)), strict=True)
        for site in _sites(config, number, records)
    ]
    check_disjoint(_parts(sites))
    first = hospitals[0]
    task = Task(first.class_names, first.multi_label, int(naturals.labels.max()) + 1)
    public = Naturals(
        torch.from_numpy(to_float(naturals.images, config.data.size)),
        torch.from_numpy(naturals.labels),
    )
    return Federation(task, tuple(site for site, _ in sites), public, naturals)


def examples(records: Records, size: int) -> Examples:
    """Records as tensors: single labels one-hot; unknown labels masked."""
    labels = torch.from_numpy(records.labels)
    if not records.multi_label:
        targets = torch.nn.functional.one_hot(labels, len(records.class_names)).float()
        known = torch.ones_like(targets)
    else:
        targets, known = (labels == 1).float(), (labels >= 0).float()
    images = torch.from_numpy(to_float(records.images, size))
    return Examples(images, targets, known, records.multi_label)


def joined(parts: Sequence[Examples]) -> Examples:
    """Several sites' examples as one: for the pooled baseline and a hospital's test part."""
    return Examples(
        torch.cat([part.images for part in parts]),
        torch.cat([part.targets for part in parts]),
        torch.cat([part.known for part in parts]),
        parts[0].multi_label,
    )


def class_shares(one: Examples) -> Tensor:
    """Share of each class among the known labels: [C]."""
    return (one.targets * one.known).sum(0) / one.known.sum(0).clamp_min(1)


def _sites(config: Config, number: int, records: Records) -> list[tuple[Site, Records]]:
    table, data = config.data.hospitals[number], config.data
    names = sites_of(table)
    made = []
    for i, (name, part) in enumerate(zip(names, cut(records, table.sites, data), strict=True)):
        train, test = halves(part, data)
        if len(train) < 2:
            raise DataError(
                "one training image is too few",
                where=name,
                fix="leave the site out, or join it with another",
            )
        site = Site(
            name=name,
            hospital=table.name,
            group=table.group,
            architecture=table.architectures[i % len(table.architectures)],
            unit=records.unit,
            train=examples(train, data.size),
            test=examples(test, data.size),
            records=train,
            test_patients=test.patients,
            one_class=part.one_class(),
        )
        made.append((site, test))
    return made


def cut(records: Records, sites: int, data: Data) -> Sequence[Records]:
    """A hospital's images site by site: simulated sites share no patient."""
    return simulate_sites(records, sites, data.split_seed) if sites > 1 else [records]


def halves(records: Records, data: Data) -> tuple[Records, Records]:
    """A site's training and test part: one split, or all folds but one against that one."""
    if not data.folds:
        return split(records, data.test_fraction, data.split_seed)
    test = folds(records, data.folds, data.split_seed)[data.fold]
    train = np.setdiff1d(np.arange(len(records)), test)
    return records.take(train), records.take(test)


def _parts(sites: Sequence[tuple[Site, Records]]) -> dict[str, Records]:
    parts: dict[str, Records] = {}
    for site, test in sites:
        parts[f"{site.name} (training)"] = site.records
        parts[f"{site.name} (test)"] = test
    return parts


def _check_enough(config: Config, naturals: Records) -> None:
    asked = config.system.rounds * config.proxies.per_round
    if naturals.labels.ndim != 1 or len(np.unique(naturals.labels)) < 2:
        raise DataError("the proxy set needs one label per image and two classes", where="proxies")
    if asked > len(naturals):
        raise DataError(
            f"{config.system.rounds} rounds × {config.proxies.per_round} images are more than the "
            f"{len(naturals)} of the proxy set",
            where="proxies.per_round",
            why="no image is asked twice",
            fix=f"lower it to {len(naturals) // config.system.rounds}",
        )

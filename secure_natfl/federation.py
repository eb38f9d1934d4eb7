"""Who takes part and with what: sites with their private examples, and the public images.

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
from protocols.errors import ConfigError, DataError
from secure_natfl.config import Config, Data, Hospital, sites_of
from secure_natfl.data.arrays import Channels, resize_masks, to_float
from secure_natfl.data.overlap import check_overlap
from secure_natfl.data.partitions import Uneven, uneven_sites
from secure_natfl.data.records import Form, Records, Unit, align
from secure_natfl.data.splits import check_disjoint, folds, simulate_sites, split
from secure_natfl.sources import SiteKey, load_hospital, load_proxies
from secure_natfl.training import Examples, Naturals


@dataclass(frozen=True)
class Task:
    """What is told apart: the classes of the private images and of the natural ones.

    natural_classes: 0 where no public images are asked. Of masks the first class is the background.
    """

    classes: tuple[str, ...]
    form: Form
    natural_classes: int
    name: str = "main"

    @property
    def multi_label(self) -> bool:
        """Whether an image may show several classes at once."""
        return self.form == "multi"


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
    task: Task
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
    """All parties of a run, and the public images that the system asks, if it asks any.

    tasks: name → task, in order of appearance. naturals, pool: the public images as tensors, none
    of them and `None` where the system asks no image.
    """

    tasks: dict[str, Task]
    sites: tuple[Site, ...]
    naturals: Naturals = field(repr=False)
    pool: Records | None = field(repr=False)

    @property
    def task(self) -> Task:
        """The one task of all sites, for systems that learn one. DataError where there are more."""
        if len(self.tasks) > 1:
            raise DataError(
                f"the hospitals have {len(self.tasks)} tasks: {', '.join(self.tasks)}",
                where="data.hospitals",
                why="this system learns one",
                fix="give all the same task, or take a system of several, such as unimed",
            )
        return next(iter(self.tasks.values()))

    @property
    def natural_records(self) -> Records:
        """The public images as they were stored. DataError where the system asks none."""
        if self.pool is None:
            raise DataError("no public images were loaded", where="proxies")
        return self.pool

    @property
    def notes(self) -> tuple[str, ...]:
        """What is no fault but should be known, a sentence each; `natfl check` prints them."""
        grey = [s.hospital for s in self.sites if s.records.colour and s.train.images.shape[1] == 1]
        return tuple(
            f"{name}: colour images are shown to networks in grey; data.channels = 3 keeps colour."
            for name in dict.fromkeys(grey)
        )

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
        """SHA-256 of the whole proxy set, as all parties must see it; of nothing without one."""
        if self.pool is None:
            return digest(b"")
        images = self.pool.images
        return digest(repr(images.shape).encode() + images.tobytes())


def build(config: Config, site_key: SiteKey) -> Federation:
    """Load, align, split and check. DataError says which hospital, file or key is at fault."""
    return assemble(config, *gather(config, site_key))


def gather(config: Config, site_key: SiteKey) -> tuple[list[Records], Records | None]:
    """All images of every hospital, in the configuration's order, and the proxies; none shared.

    Proxies are loaded only where the system asks public images.
    """
    _check_network_input(config)
    tables = config.data.hospitals
    hospitals = _aligned(tables, [load_hospital(table, config.data, site_key) for table in tables])
    if not config.uses_proxies:
        return hospitals, None
    naturals = load_proxies(config.proxies, config.data)
    _check_enough(config, naturals)
    for records in hospitals:
        check_overlap(naturals.images, records)
    return hospitals, naturals


def assemble(config: Config, hospitals: Sequence[Records], naturals: Records | None) -> Federation:
    """The federation of images that were gathered: its sites, and each one's two parts."""
    tasks: dict[str, Task] = {}
    natural_classes = 0 if naturals is None else int(naturals.labels.max()) + 1
    sites: list[tuple[Site, Records]] = []
    for table, records in zip(config.data.hospitals, hospitals, strict=True):
        task = Task(records.class_names, records.form, natural_classes, table.task)
        sites += _sites(config.data, table, tasks.setdefault(table.task, task), records)
    check_disjoint(_parts(sites))
    _check_shapes([site for site, _ in sites])
    public = _naturals(naturals, config.data)
    federation = Federation(tasks, tuple(site for site, _ in sites), public, naturals)
    _check_answers(config, federation)
    return federation


def examples(records: Records, size: int, channels: Channels = 1) -> Examples:
    """Records as tensors: classes of images and of pixels one-hot; what is unknown is masked."""
    images = torch.from_numpy(to_float(records.images, size, channels))
    if records.form == "multi":
        labels = torch.from_numpy(records.labels)
        return Examples(images, (labels == 1).float(), (labels >= 0).float(), multi_label=True)
    masks = records.form == "mask"
    stored = resize_masks(records.labels, size) if masks else records.labels
    labels = torch.from_numpy(stored)
    # Classes follow the image's number, in front of height and width; −1 is no class of its own.
    one_hot = torch.nn.functional.one_hot(labels.clamp_min(0), len(records.class_names))
    known = (labels >= 0).unsqueeze(1) if masks else (labels >= 0).unsqueeze(-1)
    targets = (one_hot.movedim(-1, 1) * known).float()
    everywhere = known.float().expand_as(targets).clone()
    return Examples(images, targets.contiguous(), everywhere, multi_label=False)


def joined(parts: Sequence[Examples]) -> Examples:
    """Several sites' examples as one: for the pooled baseline and a hospital's test part."""
    return Examples(
        torch.cat([part.images for part in parts]),
        torch.cat([part.targets for part in parts]),
        torch.cat([part.known for part in parts]),
        parts[0].multi_label,
    )


def class_shares(one: Examples) -> Tensor:
    """Share of each class among the known labels, of masks among the known pixels: [C]."""
    over = [0, *range(2, one.targets.ndim)]
    return (one.targets * one.known).sum(over) / one.known.sum(over).clamp_min(1)


def _aligned(tables: Sequence[Hospital], hospitals: Sequence[Records]) -> list[Records]:
    """The hospitals in their order, those of one task with the same classes in the same order."""
    found: list[Records] = list(hospitals)
    for task in dict.fromkeys(table.task for table in tables):
        rows = [i for i, table in enumerate(tables) if table.task == task]
        for i, records in zip(rows, align([hospitals[i] for i in rows]), strict=True):
            found[i] = records
    return found


def _naturals(naturals: Records | None, data: Data) -> Naturals:
    if naturals is None:
        nothing = torch.zeros(0, data.channels, data.size, data.size)
        return Naturals(nothing, torch.zeros(0, dtype=torch.int64))
    images = torch.from_numpy(to_float(naturals.images, data.size, data.channels))
    return Naturals(images, torch.from_numpy(naturals.labels))


def _sites(data: Data, table: Hospital, task: Task, records: Records) -> list[tuple[Site, Records]]:
    names = sites_of(table)
    made = []
    for i, (name, part) in enumerate(zip(names, cut(records, table, data), strict=True)):
        train, test = halves(part, data)
        _check_training(train, name)
        site = Site(
            name=name,
            hospital=table.name,
            group=table.group,
            architecture=table.architectures[i % len(table.architectures)],
            task=task,
            unit=records.unit,
            train=examples(train, data.size, data.channels),
            test=examples(test, data.size, data.channels),
            records=train,
            test_patients=test.patients,
            one_class=part.one_class(),
        )
        made.append((site, test))
    return made


def cut(records: Records, table: Hospital, data: Data) -> Sequence[Records]:
    """A hospital's images site by site, as its table says: simulated sites share no patient."""
    if table.sites == 1:
        return [records]
    if table.partition == "random":
        return simulate_sites(records, table.sites, data.split_seed)
    how = Uneven(table.partition, table.concentration, table.classes_per_site, data.folds)
    return uneven_sites(records, table.sites, how, data.split_seed)


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


def _check_training(train: Records, site: str) -> None:
    if len(train) < 2:
        raise DataError(
            "one training image is too few",
            where=site,
            fix="leave the site out, join it with another, or cut its hospital into fewer sites",
        )
    if train.form == "mask" and not (train.labels > 0).any():
        raise DataError(
            f"no training mask marks anything but {train.class_names[0]}",
            where=site,
            fix="leave the site out, or correct its masks",
        )


def _check_shapes(sites: Sequence[Site]) -> None:
    """Sites of one task show networks inputs of one shape."""
    first: dict[str, Site] = {}
    for site in sites:
        other = first.setdefault(site.task.name, site)
        here, there = (tuple(one.train.images.shape[1:]) for one in (site, other))
        if here != there:
            raise DataError(
                f"the shape of an input differs from that at {other.name}",
                where=site.name,
                why=f"{'×'.join(map(str, here))}, not {'×'.join(map(str, there))}",
                fix="set the same slices and depth, or a task of its own",
            )


def _check_network_input(config: Config) -> None:
    if config.system.kind == "natimg-fl" and config.data.channels != 1:
        raise ConfigError(
            "natimg-fl's networks take grey images",
            where="data.channels",
            fix="leave it at 1, or take another system",
        )


def _check_answers(config: Config, federation: Federation) -> None:
    """What is answered on natural images is one row of one task's classes for each."""
    if config.system.kind != "natimg-fl":
        return
    if federation.sites[0].train.images.ndim > 4:
        raise ConfigError(
            "natimg-fl's networks take images, not volumes",
            where="data.hospitals",
            fix='set slices = "middle" or "all"',
        )
    if federation.task.form == "mask":
        raise ConfigError(
            "natimg-fl tells images apart, not pixels",
            where="data.hospitals",
            why="the hospitals' labels are masks",
            fix='set target = "labels", or take a system that averages, such as fedavg',
        )


def _check_enough(config: Config, naturals: Records) -> None:
    asked = config.system.rounds * config.proxies.per_round if config.system.asks_proxies else 0
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

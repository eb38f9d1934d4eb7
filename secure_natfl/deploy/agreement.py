"""What every party works out for itself from the enrolment list, from declared figures alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import cast

from protocols.chain import canonical, digest
from protocols.errors import ConfigError, ProtocolError
from protocols.messages import Group
from protocols.policy import Enrolment
from protocols.quantize import Layout
from secure_natfl.config import Config, RemoteHospital
from secure_natfl.data.arrays import to_float
from secure_natfl.data.records import Form, Records, Unit
from secure_natfl.deploy.enrolled import Enrolled
from secure_natfl.deploy.letter import MOST_PARTS
from secure_natfl.federation import Federation, Site, Task
from secure_natfl.seeds import Seeds
from secure_natfl.sources import load_proxies
from secure_natfl.systems.natimg_fl import NatImgFL
from secure_natfl.terms import Terms, agree
from secure_natfl.training import Naturals


@dataclass(frozen=True)
class Declared:
    """A site as the others know it: what it declares in public, and no private part at all."""

    name: str
    hospital: str
    group: str
    architecture: str
    task: Task
    unit: Unit
    patients: int


@dataclass(frozen=True, eq=False)
class Agreement:
    """The federation as declared, the system, and the terms that the enrolment names."""

    config: Config
    federation: Federation
    system: NatImgFL
    layout: Layout
    terms: Terms
    seeds: Seeds

    @property
    def layout_id(self) -> str:
        """The digest by which plans name the layout."""
        return digest(canonical([[s.name, s.rows, s.columns] for s in self.layout.segments]))

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups of every round."""
        return tuple(
            Group(
                name=group,
                participants=tuple(sites),
                alphas=tuple(self.terms.alphas[site] for site in sites),
                least=self.terms.least[group],
            )
            for group, sites in self.terms.groups.items()
        )

    def with_own(self, site: Site) -> Agreement:
        """The same, as this site sees it: its own private part in place of what it declared."""
        sites = tuple(site if one.name == site.name else one for one in self.federation.sites)
        federation = replace(self.federation, sites=sites)
        system = NatImgFL(self.config, federation, self.seeds)
        return replace(self, federation=federation, system=system)


def agreement(config: Config, seeds: Seeds) -> Agreement:
    """Load the public images, agree on weights and noise; spends nothing.

    ConfigError for a configuration that names anything but remote hospitals of one task, or more
    of them than one letter can speak of.
    """
    _check_letters(config)
    federation = declared(config)
    system = NatImgFL(config, federation, seeds)
    layout = system.layout(config.proxies.per_round)
    groups = {site.name: system.group_of(site) for site in federation.sites}
    terms = agree(config, federation, layout, system.weights(), groups)
    return Agreement(config, federation, system, layout, terms, seeds)


def agreed(enrolled: Enrolled) -> Agreement:
    """The same for a signed list; ProtocolError where it does not come to the list's own terms."""
    found = agreement(enrolled.config, public_seeds(enrolled.nonce))
    check_agreed(found, enrolled.enrolment)
    return found


def check_agreed(found: Agreement, enrolment: Enrolment) -> None:
    """The proxies and terms of a list are those that this party comes to by itself."""
    for what, stated, own in (
        ("public images", enrolment.proxies, found.federation.proxy_digest),
        ("weights and noise", enrolment.terms, found.terms.digest),
        ("preset", enrolment.preset, found.terms.preset),
        ("mode", enrolment.mode, found.config.mode),
    ):
        if stated != own:
            raise ProtocolError(
                f"the enrolment list names other {what}",
                where="enrolment",
                why=f"{stated[:16]} there, {own[:16]} here",
                fix="compare versions and the public images with the other parties",
            )


def public_seeds(nonce: str) -> Seeds:
    """Streams for what all parties must draw alike; noise and keys are the operating system's."""
    root = hashlib.sha256(f"secure_natfl session {nonce}".encode()).digest()
    return Seeds(root, seeded=False)


def declared(config: Config) -> Federation:
    """The federation without any private part."""
    naturals = load_proxies(config.proxies, config.data)
    tables = [_remote(table) for table in config.data.hospitals]
    first = tables[0]
    form: Form = "multi" if first.multi_label else "single"
    if any((t.classes, t.multi_label) != (first.classes, first.multi_label) for t in tables):
        raise ConfigError(
            "the hospitals declare different classes",
            where="data.hospitals",
            fix="give all the same classes in the same order",
        )
    task = Task(tuple(first.classes), form, int(naturals.labels.max()) + 1, first.task)
    sites = tuple(
        Declared(t.name, t.name, t.group, t.architectures[0], task, t.unit, t.patients)
        for t in tables
    )
    # Planning reads what is declared and nothing else; a private part is not there to be read.
    return Federation(
        {task.name: task}, cast(tuple[Site, ...], sites), public_images(config, naturals), naturals
    )


def public_images(config: Config, records: Records) -> Naturals:
    """The natural images as tensors."""
    import torch

    images = to_float(records.images, config.data.size, config.data.channels)
    return Naturals(torch.from_numpy(images), torch.from_numpy(records.labels))


def _check_letters(config: Config) -> None:
    """A key holder opens all sums of a round by one letter: a share per site, a request per sum."""
    tables = [_remote(table) for table in config.data.hospitals]
    parts = len(tables) + len({table.group for table in tables})
    if parts > MOST_PARTS:
        raise ConfigError(
            f"{len(tables)} hospitals are too many for one deployed session",
            where="data.hospitals",
            why=f"opening takes letters of {parts} parts, and {MOST_PARTS} is the most",
            fix="make several federations of them",
        )


def _remote(table: object) -> RemoteHospital:
    if not isinstance(table, RemoteHospital):
        raise ConfigError(
            "a deployed federation names no images",
            where="data.hospitals",
            why="each site names its own in its site.toml",
            fix='give every hospital kind = "remote", patients, unit and classes',
        )
    return table

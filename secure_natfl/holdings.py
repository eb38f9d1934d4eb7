"""Who holds what: the class counts of simulated sites, for the report's picture.

How many images of a class a hospital has is its own affair, and no message carries it. Phantoms
and sites cut from one pack are nobody's hospital: only theirs are shown.
"""

from __future__ import annotations

from secure_natfl.config import Config, Hospital, MedmnistHospital, PackHospital, PhantomHospital
from secure_natfl.data.records import Records
from secure_natfl.federation import Federation
from secure_natfl.report.model import Holding


def holdings(config: Config, federation: Federation) -> tuple[Holding, ...]:
    """The training part of each simulated site, class by class; other sites are left out.

    Called by the run's report once, after the last round.
    """
    tables = config.site_names()
    return tuple(
        Holding(
            site=site.name,
            task=site.task.name,
            counted="pixels" if site.task.form == "mask" else "images",
            counts=_counts(site.records),
        )
        for site in federation.sites
        if is_simulated(tables[site.name])
    )


def is_simulated(table: Hospital) -> bool:
    """Whether a hospital's sites are phantoms, or parts of one pack."""
    if isinstance(table, PhantomHospital):
        return True
    return table.sites > 1 and isinstance(table, PackHospital | MedmnistHospital)


def _counts(records: Records) -> dict[str, int]:
    """Images of each class; of masks the area that each class takes, in pixels."""
    if records.form != "mask":
        return records.counts()
    areas = records.areas().sum(axis=0)
    return {name: int(area) for name, area in zip(records.class_names, areas, strict=True)}

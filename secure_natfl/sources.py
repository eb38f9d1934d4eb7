"""From a table of the configuration to records: one line per kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from protocols.errors import DataError
from secure_natfl.config import (
    Data,
    DicomHospital,
    FolderHospital,
    Hospital,
    MedmnistHospital,
    PackHospital,
    PhantomHospital,
    Proxies,
)
from secure_natfl.data.dicom import DicomSource
from secure_natfl.data.folder import FolderSource
from secure_natfl.data.manifest import Manifest
from secure_natfl.data.natural import LabelledFolder, TorchvisionSource
from secure_natfl.data.npz import MedmnistSource, PackSource
from secure_natfl.data.phantoms import PhantomSource
from secure_natfl.data.records import Records
from secure_natfl.data.synthetic import natural_images

SiteKey = Callable[[str], bytes]
"""Hospital → its own secret, under which patient ids are hashed."""


def load_hospital(hospital: Hospital, data: Data, site_key: SiteKey) -> Records:
    """All images of one hospital, under its configured name; DataError says what is wrong."""
    records = _source(hospital, data, site_key)
    return records.take(np.arange(len(records)), hospital.name)


def load_proxies(proxies: Proxies, data: Data) -> Records:
    """The public set: at most `proxies.images` of the source, chosen with a fixed seed."""
    rng = np.random.default_rng(0)
    if proxies.kind == "made":
        return natural_images(proxies.images, data.size, rng)
    path = Path(data.root) / proxies.path
    if proxies.kind == "npz":
        records = PackSource(path, name="proxies").load()
    elif proxies.kind == "medmnist":
        records = MedmnistSource(path, name="proxies").load()
    elif proxies.kind == "folder":
        records = LabelledFolder(path, data.size).load()
    else:
        records = TorchvisionSource(proxies.kind, path, proxies.download).load()
    if len(records) <= proxies.images:
        return records
    return records.take(np.sort(rng.choice(len(records), proxies.images, replace=False)))


def _source(hospital: Hospital, data: Data, site_key: SiteKey) -> Records:
    if isinstance(hospital, PhantomHospital):
        return PhantomSource(
            hospital.hospital, hospital.images, data.size, hospital.positive_rate, data.split_seed
        ).load()
    path = Path(data.root) / hospital.path
    if isinstance(hospital, PackHospital):
        return PackSource(path, hospital.source, hospital.unit, name=hospital.name).load()
    if isinstance(hospital, MedmnistHospital):
        return MedmnistSource(path, tuple(hospital.classes), name=hospital.name).load()
    if isinstance(hospital, FolderHospital):
        return _folder(hospital, data, path)
    return _dicom(hospital, data, path, site_key)


def _folder(hospital: FolderHospital, data: Data, path: Path) -> Records:
    others = (hospital.patient_column,) if hospital.patient_column else ()
    manifest = Manifest(
        Path(data.root) / hospital.manifest,
        other_columns=others,
        uncertain=hospital.uncertain,
        missing=hospital.missing,
    )
    return FolderSource(path, manifest, data.size, hospital.patient_column, hospital.name).load()


def _dicom(hospital: DicomHospital, data: Data, path: Path, site_key: SiteKey) -> Records:
    if bool(hospital.manifest) == bool(hospital.label_tag):
        raise DataError(
            "a DICOM hospital needs either manifest or label_tag",
            where=f"data.hospitals.{hospital.name}",
            fix="give exactly one of them",
        )
    manifest = None
    if hospital.manifest:
        manifest = Manifest(Path(data.root) / hospital.manifest)
    return DicomSource(
        path,
        data.size,
        site_key(hospital.name),
        manifest,
        hospital.label_tag,
        tuple(hospital.classes),
        hospital.frames,
        name=hospital.name,
    ).load()

"""From a table of the configuration to records: one line per kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from protocols.errors import DataError
from secure_natfl.config import (
    Data,
    DicomHospital,
    FolderHospital,
    Hospital,
    MedmnistHospital,
    NiftiHospital,
    PackHospital,
    PhantomHospital,
    Proxies,
    RemoteHospital,
)
from secure_natfl.data.dicom import DicomSource
from secure_natfl.data.folder import FolderSource
from secure_natfl.data.manifest import Manifest
from secure_natfl.data.masks import Coding, check_marked
from secure_natfl.data.natural import LabelledFolder, TorchvisionSource
from secure_natfl.data.nifti import NiftiSource
from secure_natfl.data.npz import MedmnistSource, PackSource
from secure_natfl.data.phantoms import PhantomSource
from secure_natfl.data.records import Records
from secure_natfl.data.synthetic import natural_images

SiteKey = Callable[[str], bytes]
"""Hospital → its own secret, under which patient ids are hashed."""


def load_hospital(hospital: Hospital, data: Data, site_key: SiteKey) -> Records:
    """All images of one hospital, under its configured name; DataError says what is wrong."""
    records = _source(hospital, data, site_key)
    if records.form == "mask":
        check_marked(records.labels, hospital.name)
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
        records = LabelledFolder(path, data.size, data.channels).load()
    else:
        records = TorchvisionSource(proxies.kind, path, proxies.download).load()
    if len(records) <= proxies.images:
        return records
    return records.take(np.sort(rng.choice(len(records), proxies.images, replace=False)))


def _source(hospital: Hospital, data: Data, site_key: SiteKey) -> Records:
    if isinstance(hospital, PhantomHospital):
        return PhantomSource(
            hospital.hospital,
            hospital.images,
            data.size,
            hospital.positive_rate,
            data.split_seed,
            hospital.target,
        ).load()
    if isinstance(hospital, RemoteHospital):
        raise DataError(
            "this hospital's images are not here",
            where=f"data.hospitals.{hospital.name}",
            fix='play it with `natfl deploy`, or name its images in place of kind = "remote"',
        )
    path = Path(data.root) / hospital.path
    if isinstance(hospital, PackHospital):
        return PackSource(
            path,
            hospital.source,
            hospital.unit,
            name=hospital.name,
            target=hospital.target,
            class_names=tuple(hospital.classes),
            bits=tuple(hospital.bits),
        ).load()
    if isinstance(hospital, MedmnistHospital):
        return MedmnistSource(path, tuple(hospital.classes), name=hospital.name).load()
    if isinstance(hospital, FolderHospital):
        return _folder(hospital, data, path)
    if isinstance(hospital, NiftiHospital):
        return _nifti(hospital, data, path)
    return _dicom(hospital, data, path, site_key)


def _folder(hospital: FolderHospital, data: Data, path: Path) -> Records:
    manifest = replace(
        _manifest(hospital, data), uncertain=hospital.uncertain, missing=hospital.missing
    )
    return FolderSource(
        path,
        manifest,
        data.size,
        hospital.patient_column,
        hospital.name,
        data.channels,
        _coding(hospital),
    ).load()


def _nifti(hospital: NiftiHospital, data: Data, path: Path) -> Records:
    if len(hospital.window) == 1 or (hospital.window and hospital.window[1] <= 0):
        raise DataError(
            "a window has a centre and a width above 0",
            where=f"data.hospitals.{hospital.name}.window",
            fix="give both, as [-600, 1500], or neither",
        )
    return NiftiSource(
        path,
        _manifest(hospital, data),
        data.size,
        hospital.patient_column,
        hospital.name,
        hospital.slices,
        hospital.depth,
        tuple(hospital.window),
        _coding(hospital),
    ).load()


def _manifest(hospital: FolderHospital | NiftiHospital, data: Data) -> Manifest:
    return Manifest(
        Path(data.root) / hospital.manifest,
        class_names=tuple(hospital.classes),
        other_columns=(hospital.patient_column,) if hospital.patient_column else (),
        mask_column=hospital.mask_column,
    )


def _coding(hospital: FolderHospital | NiftiHospital) -> Coding | None:
    """How masks are stored, where the manifest lists masks."""
    if not hospital.mask_column:
        return None
    return Coding(tuple(hospital.classes), tuple(hospital.values))


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

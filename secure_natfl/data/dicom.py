"""A folder of DICOM files. Patient ids are read here, hashed here, and go nowhere else."""

import hashlib
import hmac
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray

from protocols.errors import DataError
from secure_natfl.data.dicom_pixels import Frames, Window, read_frames, read_header, read_text
from secure_natfl.data.manifest import Manifest
from secure_natfl.data.records import Records, Unit

Read = list[tuple[NDArray[np.uint8], str]]


@dataclass(frozen=True)
class DicomSource:
    """DICOM files with labels from a manifest, or from an element of each file.

    With `manifest`, its `file` column names the files relative to `folder`. With `label_tag` (a
    DICOM keyword such as "BodyPartExamined") every `*.dcm` below `folder` is read, and the
    element's text is the class. Exactly one of the two is given. `class_names` fixes the classes
    of `label_tag`; without it they are the sorted values found.

    Ids are an HMAC-SHA256 of PatientID under `site_key` (≥ 16 bytes, the site's own): equal for
    equal patients of this site, meaningless elsewhere. With `unit = "image"` each file counts by
    itself and PatientID is not read. `size`, `frames`, `window`: see `dicom_pixels.read_frames`.
    """

    folder: Path
    size: int
    site_key: bytes = field(repr=False)
    manifest: Manifest | None = None
    label_tag: str = ""
    class_names: tuple[str, ...] = ()
    frames: Frames = "middle"
    window: Window | None = None
    unit: Unit = "patient"
    name: str = ""

    def load(self) -> Records:
        """All frames. Raises DataError naming the first file that cannot be used."""
        if (self.manifest is None) == (not self.label_tag):
            raise DataError(
                "labels are needed from a manifest or from label_tag",
                where=str(self.folder),
                fix="give exactly one of the two",
            )
        if len(self.site_key) < 16:
            raise DataError("the site's key is too short", where=self.name, why="under 16 bytes")
        read, labels, names = self._by_list(self.manifest) if self.manifest else self._by_tag()
        counts = [len(images) for images, _ in read]
        return Records(
            np.concatenate([images for images, _ in read]),
            np.repeat(labels, counts, axis=0),
            names,
            tuple(np.repeat([patient for _, patient in read], counts).tolist()),
            self.unit,
            self.name or self.folder.name,
        )

    def _by_list(self, manifest: Manifest) -> tuple[Read, NDArray[np.int64], tuple[str, ...]]:
        rows = manifest.read()
        read: Read = []
        for index, row in enumerate(rows.cells):
            path = self.folder / row["file"]
            read.append(self._read(path, read_header(path, rows.where(index))))
        return read, rows.labels, rows.class_names

    def _by_tag(self) -> tuple[Read, NDArray[np.int64], tuple[str, ...]]:
        paths = sorted(path for path in self.folder.rglob("*.dcm") if path.is_file())
        if not paths:
            raise DataError("no *.dcm file was found", where=str(self.folder))
        read: Read = []
        values: list[str] = []
        for path in paths:
            dataset = read_header(path)
            values.append(self._class_of(dataset, path))
            read.append(self._read(path, dataset))
        names = self.class_names or tuple(sorted(set(values)))
        return read, np.array([names.index(v) for v in values], dtype=np.int64), names

    def _class_of(self, dataset: pydicom.Dataset, path: Path) -> str:
        value = read_text(dataset, self.label_tag, path)
        if not value or (self.class_names and value not in self.class_names):
            raise DataError(
                f"{self.label_tag} holds no known class" if value else f"no {self.label_tag}",
                where=str(path),
                why=f"classes are {', '.join(self.class_names)}" if self.class_names else "",
                fix="correct the element, or label by a manifest",
            )
        return value

    def _read(self, path: Path, dataset: pydicom.Dataset) -> tuple[NDArray[np.uint8], str]:
        identity = self._identity(path, dataset)
        mac = hmac.new(self.site_key, identity.encode(), hashlib.sha256)
        return read_frames(dataset, path, self.size, self.frames, self.window), mac.hexdigest()

    def _identity(self, path: Path, dataset: pydicom.Dataset) -> str:
        if self.unit == "image":
            return f"file {path.relative_to(self.folder)}"
        patient = read_text(dataset, "PatientID", path)
        if not patient:
            raise DataError(
                "PatientID is empty",
                where=str(path),
                why="the unit of protection is the patient",
                fix='fill it in, or set unit = "image"',
            )
        return f"patient {patient}"

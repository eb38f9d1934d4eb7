"""A folder of images described by a CSV manifest."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protocols.errors import DataError
from secure_natfl.data.manifest import Manifest, Rows
from secure_natfl.data.records import Records


@dataclass(frozen=True)
class FolderSource:
    """Images that Pillow reads, named by the manifest relative to `folder`.

    Every image becomes grey of `size`×`size` pixels, aspect not kept. `patient_column` names the
    manifest's column of patient ids; empty means that none are known, and the unit is the image.
    """

    folder: Path
    manifest: Manifest
    size: int
    patient_column: str = "patient"
    name: str = ""

    def load(self) -> Records:
        """All images. Raises DataError naming file and CSV line of the first that is at fault."""
        rows = self.manifest.read()
        images = np.empty((len(rows.lines), self.size, self.size), dtype=np.uint8)
        for index, row in enumerate(rows.cells):
            images[index] = read_grey(self.folder / row["file"], self.size, rows.where(index))
        return Records(
            images,
            rows.labels,
            rows.class_names,
            self._patients(rows),
            "patient" if self.patient_column else "image",
            self.name or self.folder.name,
        )

    def _patients(self, rows: Rows) -> tuple[str, ...]:
        if self.patient_column:
            return rows.column(self.patient_column)
        return tuple(f"{self.folder.name}/{row['file']}" for row in rows.cells)


def read_grey(path: Path, size: int, listed_at: str = "") -> NDArray[np.uint8]:
    """One image as uint8 size×size; 16-bit and float images are stretched from darkest to lightest.

    Raises DataError naming `path` and the place that lists it when it is missing or unreadable.
    """
    listed = f"listed at {listed_at}" if listed_at else ""
    if not path.is_file():
        raise DataError("no such image", where=str(path), why=listed, fix="restore or unlist it")
    try:
        with Image.open(path) as image:
            grey = _stretched(image) if image.mode[0] in "IF" else image.convert("L")
            small = grey.resize((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
    # Pillow's readers raise SyntaxError and ValueError for damaged files, too.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            "the image cannot be read",
            where=str(path),
            why="; ".join(part for part in (_cause(error), listed) if part),
            fix="restore the file or take it off the list",
        ) from error
    return np.asarray(small, dtype=np.uint8)


def _cause(error: Exception) -> str:
    # Pillow repeats the whole path in this one.
    return "not an image" if "cannot identify" in str(error) else str(error)


def _stretched(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float32)
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) * (255 / max(high - low, 1e-6))
    return Image.fromarray(scaled.astype(np.uint8))

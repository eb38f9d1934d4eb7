"""A folder of images described by a CSV manifest."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protocols.errors import DataError
from secure_natfl.data.arrays import Channels, resize_masks
from secure_natfl.data.manifest import Manifest, Rows
from secure_natfl.data.masks import Coding, check_fits, read_mask
from secure_natfl.data.records import Records


@dataclass(frozen=True)
class FolderSource:
    """Images that Pillow reads, named by the manifest relative to `folder`.

    Every image becomes `size`×`size` pixels, aspect not kept, grey or in colour by `channels`.
    `patient_column` names the manifest's column of patient ids; empty means that none are known,
    and the unit is the image. Where the manifest lists masks, `masks` says what they hold.
    """

    folder: Path
    manifest: Manifest
    size: int
    patient_column: str = "patient"
    name: str = ""
    channels: Channels = 1
    masks: Coding | None = None

    def load(self) -> Records:
        """All images. Raises DataError naming file and CSV line of the first that is at fault."""
        rows = self.manifest.read()
        images = [
            read_image(self.folder / row["file"], self.size, rows.where(index), self.channels)
            for index, row in enumerate(rows.cells)
        ]
        return Records(
            np.stack(images),
            rows.labels if self.masks is None else self._masks(rows, self.masks),
            rows.class_names if self.masks is None else self.masks.class_names,
            patients_of(rows, self.patient_column, self.folder),
            "patient" if self.patient_column else "image",
            self.name or self.folder.name,
        )

    def _masks(self, rows: Rows, coding: Coding) -> NDArray[np.int64]:
        read = []
        for index, (row, file) in enumerate(zip(rows.cells, rows.masks, strict=True)):
            path = self.folder / file
            mask = read_mask(path, coding, rows.where(index))
            with Image.open(self.folder / row["file"]) as image:
                check_fits(mask, (image.height, image.width), f"{path}, {rows.where(index)}")
            read.append(resize_masks(mask[None], self.size))
        return np.concatenate(read)


def patients_of(rows: Rows, column: str, folder: Path) -> tuple[str, ...]:
    """The patient of each row by `column`; where that is empty, each file counts by itself."""
    if column:
        return rows.column(column)
    return tuple(f"{folder.name}/{row['file']}" for row in rows.cells)


def read_grey(path: Path, size: int, listed_at: str = "") -> NDArray[np.uint8]:
    """One image as uint8 size×size; see `read_image`."""
    return read_image(path, size, listed_at, 1)


def read_image(path: Path, size: int, listed_at: str, channels: Channels) -> NDArray[np.uint8]:
    """One image as uint8 size×size, or size×size×3 for three channels.

    16-bit and float images are stretched from darkest to lightest. Raises DataError naming `path`
    and the place that lists it when it is missing or unreadable.
    """
    listed = f"listed at {listed_at}" if listed_at else ""
    if not path.is_file():
        raise DataError("no such image", where=str(path), why=listed, fix="restore or unlist it")
    try:
        with Image.open(path) as image:
            shown = _stretched(image) if image.mode[0] in "IF" else image
            shown = shown.convert("L" if channels == 1 else "RGB")
            small = shown.resize((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
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

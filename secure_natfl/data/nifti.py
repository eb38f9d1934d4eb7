"""NIfTI volumes listed in a manifest, by nibabel: slices as images, or volumes whole."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from protocols.errors import DataError
from secure_natfl.data.arrays import resize, resize_masks, weights_of
from secure_natfl.data.folder import patients_of
from secure_natfl.data.manifest import Manifest, Rows
from secure_natfl.data.masks import Coding, check_fits
from secure_natfl.data.records import Records

Slices = Literal["middle", "all", "volume"]
Volume = NDArray[Any]


@dataclass(frozen=True)
class NiftiSource:
    """Volumes (*.nii, *.nii.gz) named by the manifest relative to `folder`.

    Every volume is turned to the axes right-anterior-superior first, so that slices are axial and
    lie as a reader sees them: the patient's front above, the right side on the left. `slices` takes
    the middle one, each as an image of the same patient, or the volume of `depth` slices, resampled
    by area or linearly. Slices become `size`×`size`; the spacing of voxels is not kept.

    `window`: centre and width of the values that are shown (Hounsfield units of CT); empty: from
    the 0.5th to the 99.5th percentile of each volume. Where the manifest lists masks, `masks` says
    what they hold; a label of a volume is that of all its slices.
    """

    folder: Path
    manifest: Manifest
    size: int
    patient_column: str = ""
    name: str = ""
    slices: Slices = "middle"
    depth: int = 32
    window: tuple[float, ...] = ()
    masks: Coding | None = None

    def load(self) -> Records:
        """All volumes. Raises DataError naming the file and manifest line that is at fault."""
        rows = self.manifest.read()
        read = [self._read(rows, index) for index in range(len(rows.lines))]
        counts = [len(images) for images, _ in read]
        patients = patients_of(rows, self.patient_column, self.folder)
        return Records(
            np.concatenate([images for images, _ in read]),
            np.repeat(rows.labels, counts, axis=0)
            if self.masks is None
            else np.concatenate([masks for _, masks in read]),
            rows.class_names if self.masks is None else self.masks.class_names,
            tuple(np.repeat(patients, counts).tolist()),
            "patient" if self.patient_column else "image",
            self.name or self.folder.name,
        )

    def _read(self, rows: Rows, index: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images K×S×S (or 1×depth×S×S) of one row, and its masks; without masks none."""
        path = self.folder / rows.cells[index]["file"]
        stored = read_volume(path, rows.where(index))
        shown = self._chosen(np.rint(255 * self._shown(stored.astype(np.float32))))
        images = np.rint(resize(shown.astype(np.uint8), self.size)).clip(0, 255).astype(np.uint8)
        if self.masks is None:
            return self._shaped(images), np.empty(0, dtype=np.int64)
        path = self.folder / rows.masks[index]
        labelled = read_volume(path, rows.where(index))
        check_fits(labelled, stored.shape, f"{path}, {rows.where(index)}")
        mask = self._chosen(
            self.masks.decode(labelled, f"{path}, {rows.where(index)}"), nearest=True
        )
        return self._shaped(images), self._shaped(resize_masks(mask, self.size))

    def _shown(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values as brightness from 0 to 1."""
        if self.window:
            centre, width = self.window
            low, high = centre - width / 2, centre + width / 2
        else:
            low, high = np.percentile(values, (0.5, 99.5))
        shown = np.clip((values - low) / max(float(high - low), 1e-6), 0, 1)
        return np.asarray(shown, dtype=np.float32)

    def _chosen(self, volume: Volume, *, nearest: bool = False) -> Volume:
        """The slices K×H×W that are used."""
        if self.slices == "middle":
            return volume[len(volume) // 2 :][:1]
        if self.slices == "all":
            return volume
        if nearest:
            centres = (np.arange(self.depth) + 0.5) * (len(volume) / self.depth)
            return np.asarray(volume[centres.astype(np.int64)])
        return _resampled(volume, self.depth)

    def _shaped(self, slices: Volume) -> Volume:
        """A whole volume is one image."""
        return slices[None] if self.slices == "volume" else slices


def read_volume(path: Path, listed_at: str) -> Volume:
    """Voxels D×H×W of the NIfTI file at `path`, slices from the feet up, scaled as its header says.

    Raises DataError naming the file when it is missing, damaged, no volume, or holds NaN.
    """
    # Imported here: nibabel comes with an extra.
    try:
        nibabel: Any = importlib.import_module("nibabel")
    except ImportError:
        raise DataError(
            "NIfTI needs nibabel", where=str(path), fix="pip install secure_natfl[medical]"
        ) from None
    where = f"{path}, listed at {listed_at}"
    if not path.is_file():
        raise DataError("no such volume", where=where, fix="restore it or take it off the list")
    try:
        image = nibabel.as_closest_canonical(nibabel.load(path))
        voxels = np.squeeze(np.asarray(image.dataobj))
    # A damaged file can fail in any layer: inflation, header, scaling.
    except Exception as error:
        why = (str(error).splitlines() or [repr(error)])[0]
        raise DataError("not a readable NIfTI file", where=where, why=why) from error
    if voxels.ndim != 3 or min(voxels.shape) < 2:
        raise DataError(f"no volume: it has the shape {voxels.shape}", where=where)
    if not np.isfinite(voxels).all():
        raise DataError("the volume holds NaN or infinity", where=where, fix="fill such voxels")
    # Right, anterior, superior → superior, then front above, then the right side on the left.
    return np.ascontiguousarray(voxels.transpose(2, 1, 0)[:, ::-1, ::-1])


def _resampled(volume: Volume, depth: int) -> Volume:
    """`depth` slices, by area when there are fewer than before, else linearly."""
    flat = volume.reshape(len(volume), -1).astype(np.float32)
    return np.asarray((weights_of(len(volume), depth) @ flat).reshape(depth, *volume.shape[1:]))

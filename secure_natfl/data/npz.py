"""Images from npz files: packs with hospitals and clusters, and MedMNIST."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols.errors import DataError
from secure_natfl.data.masks import Coding
from secure_natfl.data.records import Records, Unit

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class PackSource:
    """One hospital of a pack: an npz file that holds several.

    Keys read: `images`, what `target` names, `class_names`, and where present `source` (index
    into `source_names`) and `cluster` or `group`. `hospital` picks one of `source_names`; empty
    takes all. Ids come from `cluster`, which joins a patient's images with their near-duplicates,
    so that a split by it separates both; without it from `group`.

    `target`: the array that is learnt. `labels` holds indices into the file's `class_names`, or
    N×C of 1, 0 and −1. Another array may hold words (its classes are those found in the whole
    file, sorted), numbers from 0, which `class_names` names, or masks N×H×W, coded as in
    `masks.Coding`.

    `unit = "patient"` is the caller's statement that the pack's groups are patients; a file cannot
    show it. `where` keeps rows whose value of a further key equals the given one, for example
    `{"view": "PA"}`. Read before any split; nothing is unpickled.
    """

    path: Path
    hospital: str = ""
    unit: Unit = "image"
    where: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    target: str = "labels"
    class_names: tuple[str, ...] = ()
    bits: tuple[int, ...] = ()

    def load(self) -> Records:
        """The chosen rows. Raises DataError for a missing file, key or hospital, or no row left."""
        needed = {"images", self.target} | ({"class_names"} if self.target == "labels" else set())
        arrays = read_npz(self.path, needed)
        _check_rows(self.path, arrays, "images", self.target, "source", "cluster", "group")
        labels, class_names = self._labels(arrays)
        rows = np.flatnonzero(self._keep(arrays))
        name = self.name or self.hospital or self.path.name.partition(".")[0]
        if len(rows) == 0:
            raise DataError("no image is left", where=str(self.path), why=f"filter {self.where}")
        ids = arrays.get("cluster", arrays.get("group", np.arange(len(arrays["images"]))))
        return Records(
            arrays["images"][rows],
            labels[rows],
            class_names,
            # Cluster numbers are unique within one file only.
            tuple(f"{self.path.name}:{i}" for i in ids[rows]),
            self.unit,
            name,
        )

    def _labels(self, arrays: Arrays) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """The target of every row of the file, and its classes."""
        stored, where = arrays[self.target], f"{self.path}, {self.target}"
        if stored.dtype.kind == "U":
            names = self.class_names or tuple(sorted(set(stored.tolist())))
            unknown = sorted(set(stored.tolist()) - set(names))
            if unknown:
                raise DataError(
                    f"no class for {', '.join(map(repr, unknown))}",
                    where=where,
                    fix="add to classes what the array holds",
                )
            return np.array([names.index(v) for v in stored.tolist()], dtype=np.int64), names
        if stored.ndim > 2:
            return Coding(self.class_names, bits=self.bits).decode(stored, where), self.class_names
        own = arrays.get("class_names", ()) if self.target == "labels" else ()
        names = self.class_names or tuple(str(n) for n in own)
        if not names:
            raise DataError("its numbers have no names", where=where, fix="name them in classes")
        return stored.astype(np.int64), names

    def _keep(self, arrays: Arrays) -> NDArray[np.bool_]:
        keep = np.ones(len(arrays["images"]), dtype=np.bool_)
        if self.hospital:
            keep &= self._of_hospital(arrays)
        for key, value in self.where.items():
            if key not in arrays or len(arrays[key]) != len(keep):
                raise DataError(f"no column {key!r} to filter by", where=str(self.path))
            keep &= arrays[key].astype(np.str_) == value
        return keep

    def _of_hospital(self, arrays: Arrays) -> NDArray[np.bool_]:
        names = [str(n) for n in arrays.get("source_names", np.array([], dtype=np.str_))]
        if self.hospital not in names or "source" not in arrays:
            raise DataError(
                f"no hospital {self.hospital!r}",
                where=str(self.path),
                why=f"it holds {', '.join(names) or 'no hospital names'}",
                fix="choose one of these",
            )
        return np.asarray(arrays["source"] == names.index(self.hospital), dtype=np.bool_)


@dataclass(frozen=True)
class MedmnistSource:
    """A MedMNIST file (`train_images`, `train_labels`, and the same for `val`, `test`).

    The three parts are joined: this project splits by itself. Labels N×1 give class indices,
    N×C with C > 1 gives multi-label. Without `class_names` classes are numbered. The files carry
    no patients, so the unit is the image. (Yang et al., Scientific Data 10:41, 2023.)
    """

    path: Path
    class_names: tuple[str, ...] = ()
    name: str = ""

    def load(self) -> Records:
        """All images. Raises DataError for a missing file or part, or labels without a class."""
        parts = ("train", "val", "test")
        arrays = read_npz(self.path, {f"{p}_{k}" for p in parts for k in ("images", "labels")})
        for part in parts:
            _check_rows(self.path, arrays, f"{part}_images", f"{part}_labels")
        images, labels = (self._joined(arrays, key) for key in ("images", "labels"))
        labels = labels.reshape(len(labels), -1).astype(np.int64)
        multi = labels.shape[1] > 1
        classes = labels.shape[1] if multi else int(labels.max()) + 1
        return Records(
            images,
            labels if multi else labels[:, 0],
            self.class_names or tuple(str(i) for i in range(classes)),
            tuple(f"{self.path.name}:{i}" for i in range(len(images))),
            "image",
            self.name or self.path.stem,
        )

    def _joined(self, arrays: Arrays, key: str) -> NDArray[Any]:
        parts = [arrays[f"{part}_{key}"] for part in ("train", "val", "test")]
        if len({part.shape[1:] for part in parts}) > 1:
            raise DataError(f"parts differ in the shape of {key}", where=str(self.path))
        return np.concatenate(parts)


def _check_rows(path: Path, arrays: Arrays, *keys: str) -> None:
    """Raises DataError unless those of `keys` that are present have equally many rows."""
    counts = {key: len(np.atleast_1d(arrays[key])) for key in keys if key in arrays}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{key} {count}" for key, count in counts.items())
        raise DataError("arrays differ in length", where=str(path), why=listed)


def read_npz(path: Path, required: set[str]) -> Arrays:
    """The arrays of `path`, which must hold the `required` keys; never unpickles.

    Raises DataError when the file is missing, no npz, holds Python objects, or lacks a key.
    """
    if not path.is_file():
        raise DataError("no such file", where=str(path), fix="check the path in the configuration")
    try:
        # Opened here first: numpy leaves a damaged archive's file open, and reads other formats.
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
    # A damaged archive can fail in any layer: zip, inflation, array header.
    except Exception as error:
        raise DataError(
            "not a readable npz file",
            where=str(path),
            why=(str(error).splitlines() or [repr(error)])[0],
        ) from error
    missing = sorted(required - arrays.keys())
    if missing:
        raise DataError(f"lacks {', '.join(missing)}", where=str(path), fix="use another format")
    return arrays

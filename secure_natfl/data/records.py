"""One hospital's images with labels and patients: what every source gives and every split takes."""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from protocols.errors import DataError

Unit = Literal["patient", "image"]


@dataclass(frozen=True, eq=False)
class Records:
    """Images, labels and patients of one hospital or pool; checked when made, never empty.

    `images`: uint8, N×H×W (grey) or N×H×W×3 (RGB). `labels`: int64, N class indices, or N×C with
    1 = present, 0 = absent, −1 = unknown (masked in losses and scores). `patients`: one id per
    image; splits are made by it and it never leaves the site (`repr` omits it). `unit` says what
    an id stands for: a patient, or an image (joined with its near-duplicates where known).

    Raises DataError naming the hospital when shapes, types or label values do not fit.
    """

    images: NDArray[np.uint8] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    class_names: tuple[str, ...]
    patients: tuple[str, ...] = field(repr=False)
    unit: Unit
    name: str

    def __post_init__(self) -> None:
        reason = self._image_fault() or self._label_fault()
        if reason:
            raise DataError("records cannot be used", where=self.name, why=reason)

    def _image_fault(self) -> str:
        shape = self.images.shape
        if self.images.dtype != np.uint8:
            return f"images are {self.images.dtype}, not uint8"
        if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] != 3):
            return f"images have shape {shape}, not N×H×W or N×H×W×3"
        if 0 in shape:
            return "there is no image"
        if len(self.patients) != shape[0]:
            return f"{shape[0]} images but {len(self.patients)} patient ids"
        return "" if all(self.patients) else "a patient id is empty"

    def _label_fault(self) -> str:
        count, classes = len(self.images), len(self.class_names)
        if self.labels.dtype != np.int64:
            return f"labels are {self.labels.dtype}, not int64"
        if classes == 0 or len(set(self.class_names)) != classes:
            return "class names are missing or repeated"
        if self.labels.shape not in ((count,), (count, classes)):
            return f"labels have shape {self.labels.shape} for {count} images, {classes} classes"
        low, high = (-1, 1) if self.multi_label else (0, classes - 1)
        if int(self.labels.min()) < low or int(self.labels.max()) > high:
            return f"a label lies outside {low}…{high}"
        return ""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def multi_label(self) -> bool:
        """Whether an image may show several classes at once (`labels` is N×C)."""
        return self.labels.ndim == 2

    @property
    def patient_count(self) -> int:
        """Number of different patients (or images, by `unit`): the n of δ < 1/n."""
        return len(set(self.patients))

    def counts(self) -> dict[str, int]:
        """Images that show each class, by class name; unknown labels are not counted."""
        if self.multi_label:
            sums = (self.labels == 1).sum(axis=0)
        else:
            sums = np.bincount(self.labels, minlength=len(self.class_names))
        return {name: int(total) for name, total in zip(self.class_names, sums, strict=True)}

    def one_class(self) -> bool:
        """Whether no class can be told from another here, so that AUROC is "n/a".

        Single-label: all images share a class. Multi-label: no class has both a 1 and a 0.
        """
        if not self.multi_label:
            return bool((self.labels == self.labels[0]).all())
        both = (self.labels == 1).any(axis=0) & (self.labels == 0).any(axis=0)
        return not bool(both.any())

    def take(self, indices: NDArray[np.int64] | Sequence[int], name: str = "") -> "Records":
        """The images at `indices` (in that order), as records of the same hospital or of `name`."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Records(
            self.images[chosen],
            self.labels[chosen],
            self.class_names,
            tuple(self.patients[i] for i in chosen),
            self.unit,
            name or self.name,
        )

    def patients_digest(self, key: bytes) -> str:
        """Hex HMAC-SHA256 of the set of patients under the site's own `key`.

        The site's ledger stores it to recognise the same patients in a later run; without `key`
        nobody can test whether a given patient is among them. Independent of order and repeats.
        """
        if len(key) < 16:
            raise DataError("the site's key is too short", where=self.name, why="under 16 bytes")
        mac = hmac.new(key, digestmod=hashlib.sha256)
        for patient in sorted(set(self.patients)):
            encoded = patient.encode()
            mac.update(len(encoded).to_bytes(8, "big") + encoded)
        return mac.hexdigest()


class Source(Protocol):
    """Where images come from; `load` reads everything and checks it."""

    def load(self) -> Records:
        """All images of this source. Raises DataError on the first file that cannot be used."""


def align(records_list: Sequence[Records]) -> list[Records]:
    """The same records with the first one's class order everywhere; called before any training.

    Classes are matched by name, never by index. Raises DataError naming the hospital and the
    classes that differ, or the hospital that mixes single-label with multi-label.
    """
    if not records_list:
        raise DataError("no hospital was given", fix="name at least one source")
    return [_aligned(records, records_list[0]) for records in records_list]


def _aligned(records: Records, first: Records) -> Records:
    missing = [name for name in first.class_names if name not in records.class_names]
    extra = [name for name in records.class_names if name not in first.class_names]
    if missing or extra:
        faults = [f"lacks {', '.join(missing)}"] if missing else []
        faults += [f"adds {', '.join(extra)}"] if extra else []
        raise DataError(
            f"class list differs from that of {first.name}",
            where=records.name,
            why=" and ".join(faults),
            fix="give every hospital the same class names",
        )
    if records.multi_label != first.multi_label:
        raise DataError(
            f"label form differs from that of {first.name}",
            where=records.name,
            why="one is single-label, the other multi-label",
            fix="use one column per class everywhere, or one label column everywhere",
        )
    if records.class_names == first.class_names:
        return records
    order = [records.class_names.index(name) for name in first.class_names]
    # argsort inverts the permutation: class order[j] becomes class j.
    labels = records.labels[:, order] if records.multi_label else np.argsort(order)[records.labels]
    return Records(
        records.images, labels, first.class_names, records.patients, records.unit, records.name
    )

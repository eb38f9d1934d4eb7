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
Form = Literal["single", "multi", "mask"]
"""One class of an image, several at once, or one of each pixel."""


@dataclass(frozen=True, eq=False)
class Records:
    """Images, labels and patients of one hospital or pool; checked when made, never empty.

    `images`: uint8, N×H×W (grey), N×H×W×3 (RGB) or N×D×H×W (volumes, W ≥ 16). `labels`: int64, N
    class indices; or N×C with 1 = present, 0 = absent, −1 = unknown; or masks as large as the
    images, N×H×W or N×D×H×W, with a class index at each pixel, 0 the background and −1 unknown.
    What is unknown is left out of losses and scores. `patients`: one id per image; splits are made
    by it and it never leaves the site (`repr` omits it). `unit` says what an id stands for: a
    patient, or an image (joined with its near-duplicates where known).

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
        if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] != 3 and shape[3] < 16):
            return f"images have shape {shape}, not N×H×W, N×H×W×3 or N×D×H×W"
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
        if self.labels.shape not in ((count,), (count, classes), self.space):
            return f"labels have shape {self.labels.shape} for {count} images, {classes} classes"
        if self.form == "mask" and classes < 2:
            return "a mask tells a background and at least one further class apart"
        low = 0 if self.form == "single" else -1
        high = 1 if self.form == "multi" else classes - 1
        if int(self.labels.min()) < low or int(self.labels.max()) > high:
            return f"a label lies outside {low}…{high}"
        return ""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def form(self) -> Form:
        """One class of an image, several, or one of each pixel; by the shape of `labels`."""
        if self.labels.ndim > 2:
            return "mask"
        return "multi" if self.labels.ndim == 2 else "single"

    @property
    def multi_label(self) -> bool:
        """Whether an image may show several classes at once (`labels` is N×C)."""
        return self.form == "multi"

    @property
    def colour(self) -> bool:
        """Whether images are RGB."""
        return self.images.ndim == 4 and self.images.shape[3] == 3

    @property
    def space(self) -> tuple[int, ...]:
        """N×H×W, or N×D×H×W of volumes: the shape of `images` without colour."""
        return self.images.shape[:3] if self.colour else self.images.shape

    @property
    def patient_count(self) -> int:
        """Number of different patients (or images, by `unit`): the n of δ < 1/n."""
        return len(set(self.patients))

    def counts(self) -> dict[str, int]:
        """Images that show each class, by class name; unknown labels are not counted."""
        if self.form == "multi":
            sums = (self.labels == 1).sum(axis=0)
        elif self.form == "single":
            sums = np.bincount(self.labels, minlength=len(self.class_names))
        else:
            sums = (self.areas() > 0).sum(axis=0)
        return {name: int(total) for name, total in zip(self.class_names, sums, strict=True)}

    def areas(self) -> NDArray[np.int64]:
        """Pixels of each class in each mask: N×C; unknown ones are not counted."""
        flat = self.labels.reshape(len(self), -1)
        classes = range(len(self.class_names))
        return np.stack([(flat == c).sum(axis=1) for c in classes], axis=1)

    def main_classes(self) -> NDArray[np.int64]:
        """The class of each image, N (multi-label: N×C); of a mask its largest in front, or 0."""
        if self.form != "mask":
            return self.labels
        front = self.areas()[:, 1:]
        return np.where(front.any(axis=1), 1 + front.argmax(axis=1), 0)

    def one_class(self) -> bool:
        """Whether no class can be told from another here, so that AUROC is "n/a".

        Single-label: all images share a class. Multi-label: no class has both a 1 and a 0. Masks:
        all pixels share a class.
        """
        if self.form == "single":
            return bool((self.labels == self.labels[0]).all())
        if self.form == "mask":
            return int((self.areas().sum(axis=0) > 0).sum()) < 2
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

    Called for the hospitals of one task. Classes are matched by name, never by index. Raises
    DataError naming the hospital and the classes that differ, or the hospital whose labels have
    another form or, of masks, another background.
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
            fix="give every hospital the same class names, or a task of its own",
        )
    _check_form(records, first)
    if records.class_names == first.class_names:
        return records
    order = [records.class_names.index(name) for name in first.class_names]
    # argsort inverts the permutation: class order[j] becomes class j, and the last, −1, stays.
    inverse = np.append(np.argsort(order), -1)
    labels = records.labels[:, order] if records.multi_label else inverse[records.labels]
    return Records(
        records.images, labels, first.class_names, records.patients, records.unit, records.name
    )


_SPOKEN: dict[Form, str] = {"single": "single-label", "multi": "multi-label", "mask": "masks"}


def _check_form(records: Records, first: Records) -> None:
    if records.form != first.form:
        raise DataError(
            f"label form differs from that of {first.name}",
            where=records.name,
            why=f"one has {_SPOKEN[records.form]}, the other {_SPOKEN[first.form]}"
            if "mask" in (records.form, first.form)
            else "one is single-label, the other multi-label",
            fix="use one form everywhere, or a task of its own for each",
        )
    if records.form == "mask" and records.class_names[0] != first.class_names[0]:
        raise DataError(
            f"the background is not that of {first.name}",
            where=records.name,
            why=f"{records.class_names[0]} comes first here, {first.class_names[0]} there",
            fix="name the background first at every hospital",
        )

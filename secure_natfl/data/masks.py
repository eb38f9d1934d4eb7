"""Masks as they are stored, and the class indices that they stand for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protocols.errors import DataError

UNKNOWN: Final = 255
"""What "not labelled" is in a stored mask, unless a class is stored so."""


@dataclass(frozen=True)
class Coding:
    """How classes are stored in a mask.

    class_names: the background first. values: what each class is stored as; empty: 0, 1, 2, ….
    bits: of a bit field, what each class but the background has in its pixels, a later class drawn
    over an earlier one, so that 2 + 4 = 6 joins two marks; empty where the mask is no bit field.
    """

    class_names: tuple[str, ...]
    values: tuple[int, ...] = ()
    bits: tuple[int, ...] = ()

    def decode(self, stored: NDArray[Any], where: str) -> NDArray[np.int64]:
        """Class indices of `stored`, of its shape, −1 where unknown.

        Raises DataError at `where` for a value that no class has, or a list of another length than
        that of the classes.
        """
        self._check(where)
        if self.bits:
            classes = np.zeros(stored.shape, dtype=np.int64)
            for index, bit in enumerate(self.bits):
                classes[(stored.astype(np.int64) & bit) > 0] = index + 1
            return classes
        values = self.values or tuple(range(len(self.class_names)))
        codes = {UNKNOWN: -1} | {value: index for index, value in enumerate(values)}
        found, inverse = np.unique(stored, return_inverse=True)
        strange = [value for value in found.tolist() if value not in codes]
        if strange:
            raise DataError(
                f"the mask holds {_listed(strange)}",
                where=where,
                why=f"its classes are {_named(self.class_names, values)}, unknown is {UNKNOWN}",
                fix="correct the mask, or say in `values` how each class is stored",
            )
        indices = np.array([codes[value] for value in found.tolist()], dtype=np.int64)
        return np.asarray(indices[inverse].reshape(stored.shape))

    def _check(self, where: str) -> None:
        classes = len(self.class_names)
        if classes < 2:
            raise DataError(
                "a mask has a background and at least one further class",
                where=where,
                fix='name them all in order, as classes = ["background", "lung"]',
            )
        for name, given, wanted in (
            ("values", self.values, classes),
            ("bits", self.bits, classes - 1),
        ):
            if given and (len(given) != wanted or len(set(given)) != wanted):
                raise DataError(
                    f"{name} has {len(given)} entries for {classes} classes",
                    where=where,
                    fix=f"give {wanted} different ones",
                )


def read_mask(path: Path, coding: Coding, listed_at: str) -> NDArray[np.int64]:
    """The mask image at `path` as class indices H×W; palette images count by their indices.

    Raises DataError naming the file, and the place that lists it, when it is missing, unreadable,
    in colour, or holds a value that no class has.
    """
    where = f"{path}, listed at {listed_at}"
    if not path.is_file():
        raise DataError("no such mask", where=where, fix="restore it, or take the row off the list")
    try:
        with Image.open(path) as image:
            stored = np.asarray(image)
    # Pillow's readers raise SyntaxError and ValueError for damaged files, too.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError("the mask cannot be read", where=where, fix="restore the file") from error
    if stored.ndim != 2:
        raise DataError(
            "the mask is in colour",
            where=where,
            why="one number a pixel says its class",
            fix="save it in grey or with a palette",
        )
    return coding.decode(stored, where)


def check_fits(mask: NDArray[Any], shape: Sequence[int], where: str) -> None:
    """DataError unless a mask has the shape of its image."""
    if mask.shape != tuple(shape):
        raise DataError(
            f"the mask is {_size(mask.shape)}, the image {_size(shape)}",
            where=where,
            fix="give each image a mask of its own size",
        )


def check_marked(masks: NDArray[np.int64], where: str) -> None:
    """DataError where a whole hospital's masks mark nothing but background."""
    if not (masks > 0).any():
        unknown = bool((masks < 0).any())
        raise DataError(
            "no mask marks anything but background",
            where=where,
            why=f"{UNKNOWN} was read as unknown" if unknown else "",
            fix=f"set values = [0, {UNKNOWN}] if it is a class" if unknown else "check the masks",
        )


def _size(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _listed(values: Sequence[int | float]) -> str:
    return ", ".join(f"{value:g}" for value in values[:8]) + (", …" if len(values) > 8 else "")


def _named(names: Sequence[str], values: Sequence[int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))

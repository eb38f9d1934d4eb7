"""Subgroups by a column of an npz pack (view, sex, …), found again by the image itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from protocols.errors import DataError
from secure_natfl.config import Config, PackHospital
from secure_natfl.data.arrays import to_float
from secure_natfl.data.npz import read_npz
from secure_natfl.study.cell import keys_of
from secure_natfl.study.grid import Plan

Columns = dict[str, NDArray[np.str_]]


class Subgroups:
    """The named columns of all packs of a study; files are read once."""

    def __init__(self, columns: list[str]) -> None:
        self._columns = columns
        self._read: dict[tuple[Path, int], tuple[NDArray[np.int64], Columns]] = {}

    def check(self, plan: Plan) -> None:
        """DataError for a column that no pack of the study has."""
        packs = {
            Path(setting.config.data.root) / hospital.path
            for setting in plan.settings
            for hospital in setting.config.data.hospitals
            if isinstance(hospital, PackHospital)
        }
        known = {name for pack in packs for name in read_npz(pack, {"images"})}
        for column in self._columns:
            if column not in known:
                raise DataError(
                    f"no pack has a column {column!r}",
                    where="subgroups",
                    fix=f"name one of {', '.join(sorted(known)) or 'none: there is no npz pack'}",
                )

    def of(self, config: Config, hospital: str, keys: NDArray[np.int64]) -> Columns:
        """Column → value of each image in `keys`, "" where unknown; none for other data."""
        (table,) = [one for one in config.data.hospitals if one.name == hospital]
        if not self._columns or not isinstance(table, PackHospital):
            return {}
        path = Path(config.data.root) / table.path
        if (path, config.data.size) not in self._read:
            self._read[path, config.data.size] = self._of_pack(path, config.data.size)
        known, columns = self._read[path, config.data.size]
        place = np.searchsorted(known, keys).clip(max=len(known) - 1)
        there = known[place] == keys
        return {name: np.where(there, values[place], "") for name, values in columns.items()}

    def _of_pack(self, path: Path, size: int) -> tuple[NDArray[np.int64], Columns]:
        arrays = read_npz(path, {"images"})
        keys = keys_of(torch.from_numpy(to_float(arrays["images"], size)))
        order = np.argsort(keys)
        present = [name for name in self._columns if name in arrays]
        return keys[order], {name: arrays[name][order].astype(np.str_) for name in present}

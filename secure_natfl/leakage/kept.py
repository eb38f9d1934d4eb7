"""What an attack keeps on disk: criteria before anything is played, then arm after arm.

RUN/attacks/criteria.json          every row's criteria, as stated first, and each try at an arm
RUN/attacks/<tier>/<row>/<arm>.*   what an arm scored, and at what cost
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attacks.rows import Budget, Measured, Row
from protocols.errors import RunFolderError
from secure_natfl import __version__
from secure_natfl.leakage.record import Criteria
from secure_natfl.run_folder import load_arrays, save_arrays, write

_BASELINE, _TRIES = "baseline:", "tries"


@dataclass(frozen=True)
class Played:
    """An arm's scores with what they cost."""

    measured: Measured
    budget: Budget
    seconds: float


class Kept:
    """The folder `RUN/attacks`; arms that were played are taken from it and not played again."""

    def __init__(self, run: Path, tier: str) -> None:
        self.folder, self._tier = run / "attacks", tier

    def state(self, criteria: Iterable[Criteria]) -> None:
        """Write criteria down, before any of their arms is played.

        Raises RunFolderError where a row was stated otherwise before: its arms may have been seen.
        """
        stated = self._stated()
        for row in criteria:
            fresh = row.model_dump(mode="json")
            before = stated.setdefault(row.id, fresh)
            if {name: one for name, one in before.items() if name != _TRIES} != fresh:
                raise RunFolderError(
                    f"the criteria of {row.id} are not those that were stated first",
                    where=str(self._file),
                    why="criteria that follow results prove nothing",
                    fix="move the folder away and play all arms anew",
                )
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._write(stated)

    def begin(self, row: str, arm: str, budget: Budget) -> None:
        """Note, before an arm is played, what it may spend and by which version; tries add up."""
        stated = self._stated()
        tries = stated[row].setdefault(_TRIES, [])
        tries.append({"tier": self._tier, "arm": arm, **asdict(budget), "version": __version__})
        self._write(stated)

    @property
    def _file(self) -> Path:
        return self.folder / "criteria.json"

    def _stated(self) -> dict[str, dict[str, Any]]:
        rows = json.loads(self._file.read_text("utf-8")) if self._file.exists() else []
        return {one["id"]: one for one in rows}

    def _write(self, stated: dict[str, dict[str, Any]]) -> None:
        write(self._file, json.dumps(list(stated.values()), indent=2).encode())

    def holds(self, row: Row) -> bool:
        """Whether any arm of a row was played."""
        return any(self._stem(row.id, arm).with_suffix(".json").exists() for arm in row.arms)

    def all(self, rows: Iterable[Row]) -> dict[tuple[str, str], Played]:
        """All arms of these rows that were played, by (row, arm)."""
        found = {(row.id, arm): self.load(row.id, arm) for row in rows for arm in row.arms}
        return {key: one for key, one in found.items() if one is not None}

    def load(self, row: str, arm: str) -> Played | None:
        """An arm that was played, or None."""
        stem = self._stem(row, arm)
        if not stem.with_suffix(".json").exists():
            return None
        cost = json.loads(stem.with_suffix(".json").read_text("utf-8"))
        arrays = load_arrays(stem.with_suffix(".npz"))
        measured = Measured(
            arm=arm,
            scores=arrays["scores"],
            baselines={
                name.removeprefix(_BASELINE): values
                for name, values in arrays.items()
                if name.startswith(_BASELINE)
            },
            clusters=arrays["clusters"],
            members=arrays.get("members"),
            extra=cost["extra"],
            pictures=arrays.get("pictures"),
        )
        return Played(measured, Budget(**cost["budget"]), cost["seconds"])

    def save(self, row: str, played: Played) -> None:
        """Keep an arm; it counts as played once both files are there."""
        found = played.measured
        stem = self._stem(row, found.arm)
        stem.parent.mkdir(parents=True, exist_ok=True)
        optional = {"members": found.members, "pictures": found.pictures}
        save_arrays(
            stem.with_suffix(".npz"),
            scores=np.asarray(found.scores, np.float64),
            clusters=np.asarray(found.clusters, np.int64),
            **{_BASELINE + name: values for name, values in found.baselines.items()},
            **{name: values for name, values in optional.items() if values is not None},
        )
        cost = {
            "arm": found.arm,
            "budget": asdict(played.budget),
            "seconds": played.seconds,
            "extra": {name: float(value) for name, value in found.extra.items()},
        }
        write(stem.with_suffix(".json"), json.dumps(cost, indent=2).encode())

    def _stem(self, row: str, arm: str) -> Path:
        return self.folder / self._tier / row / re.sub(r"[^A-Za-z0-9]+", "-", arm)

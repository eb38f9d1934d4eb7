"""A study's folder: whose it is, which cells are done, and whose ledgers it charges."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols.errors import LedgerError, RunFolderError
from secure_natfl.run_folder import load_arrays, write
from secure_natfl.study.file import StudyFile
from secure_natfl.study.grid import Cell

Record = dict[str, Any]
"""What is noted of a cell: costs, guarantee, and what it ran on."""


@dataclass(frozen=True)
class StudyFolder:
    """`path`/cells holds two files per finished cell, `path`/work the runs that are not finished.

    ledgers: one folder per cell, since cells run side by side and a ledger has one writer. text: of
    `study.toml`, written once nobody else plays the study.
    """

    path: Path
    ledgers: Path
    text: str = field(default="", compare=False, repr=False)

    @classmethod
    def check(cls, path: Path, study: StudyFile, *, resume: bool) -> None:
        """What `open` raises, without touching anything; for a dry run."""
        path = path.resolve()
        with _speaking(path):
            _check_owner(_ledgers(path, study), _stated(path, study, resume=resume))

    @classmethod
    def open(cls, path: Path, study: StudyFile, text: str, *, resume: bool) -> StudyFolder:
        """Make the folder, or take it up; finished cells that the study still has are kept.

        RunFolderError: it holds something else, or a study that was not asked to be resumed.
        LedgerError: the ledgers that the study names belong to somebody else.
        """
        path, identity = path.resolve(), path.resolve() / "study.json"
        ledgers = _ledgers(path, study)
        with _speaking(path):
            stated = _stated(path, study, resume=resume)
            _check_owner(ledgers, stated)
            if stated is None:
                stated = {"study": study.name, "owner": os.urandom(16).hex()}
                path.mkdir(parents=True, exist_ok=True)
                write(identity, json.dumps(stated, indent=2).encode())
            (path / "cells").mkdir(exist_ok=True)
            (path / "shared").mkdir(exist_ok=True)
            ledgers.mkdir(parents=True, exist_ok=True)
            if not (ledgers / "owner").exists():
                write(ledgers / "owner", stated["owner"].encode())
        return cls(path, ledgers, text)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While it lasts no other process runs this study, and `study.toml` says what is run."""
        with (self.path / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunFolderError(
                    "the study is running in another process",
                    where=str(self.path),
                    fix="wait until it ends, or stop it",
                ) from None
            with _speaking(self.path):
                write(self.path / "study.toml", self.text.encode())
            yield

    def hospital_key(self, hospital: str) -> bytes:
        """The secret under which all cells hash a hospital's patient ids."""
        owner = (self.ledgers / "owner").read_bytes()
        return hashlib.sha256(owner + hospital.encode()).digest()

    @property
    def shared(self) -> Path:
        """Networks that many cells have in common; taken away when a study ends."""
        return self.path / "shared"

    def work(self, cell: Cell) -> Path:
        """Where the cell's run keeps its steps until it is finished."""
        return self.path / "work" / cell.id

    def done(self, cell: Cell) -> bool:
        """Whether the cell is finished."""
        return (self.path / "cells" / f"{cell.id}.json").exists()

    def finish(self, cell: Cell, arrays: dict[str, NDArray[Any]], record: Record) -> None:
        """Write a cell's files; the second makes it count."""
        file = self.path / "cells" / f"{cell.id}.npz"
        part = file.with_suffix(".part")
        with part.open("wb") as out:
            np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
            out.flush()
            os.fsync(out.fileno())
        part.replace(file)
        write(file.with_suffix(".json"), json.dumps(record, indent=1).encode())

    def arrays(self, cell: Cell) -> dict[str, NDArray[Any]]:
        """A finished cell's predictions and truth."""
        return load_arrays(self.path / "cells" / f"{cell.id}.npz")

    def record(self, cell: Cell) -> Record:
        """What was noted of a finished cell."""
        found: Record = json.loads((self.path / "cells" / f"{cell.id}.json").read_text())
        return found


@contextmanager
def _speaking(path: Path) -> Iterator[None]:
    """Turn what a disk or a damaged study.json says into one clear line."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            "the study folder cannot be written",
            where=str(path),
            why=error.strerror or str(error),
            fix="free space, or choose another --out; --resume takes the study up again",
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            "study.json is damaged", where=str(path), why=str(error), fix="start a new folder"
        ) from None


def _ledgers(path: Path, study: StudyFile) -> Path:
    return Path(study.ledger).resolve() if study.ledger != "auto" else path / "ledgers"


def _stated(path: Path, study: StudyFile, *, resume: bool) -> dict[str, str] | None:
    """What study.json says; None where a new folder may be made."""
    if not (path / "study.json").exists():
        _check_new(path, resume=resume)
        return None
    stated: dict[str, str] = json.loads((path / "study.json").read_text())
    _check_same(path, study, stated, resume=resume)
    return stated


def _check_new(path: Path, *, resume: bool) -> None:
    if resume:
        raise RunFolderError(
            "there is no study to resume", where=str(path), fix="leave out --resume"
        )
    if path.exists() and any(file.suffix != ".part" for file in path.iterdir()):
        raise RunFolderError(
            "the folder holds other files", where=str(path), fix="choose another --out"
        )


def _check_same(path: Path, study: StudyFile, stated: Any, *, resume: bool) -> None:
    if stated["study"] != study.name:
        raise RunFolderError(
            f"the folder holds the study {stated['study']}",
            where=str(path),
            fix="choose another --out",
        )
    if not resume:
        raise RunFolderError(
            "the folder holds this study already",
            where=str(path),
            fix="add --resume to take it up or to extend it, or choose another --out",
        )


def _check_owner(ledgers: Path, stated: dict[str, str] | None) -> None:
    """A study charges ledgers of its own: hundreds of cells would use up any other's budget."""
    mark = ledgers / "owner"
    if stated is not None and mark.exists() and mark.read_text() == stated["owner"]:
        return
    if ledgers.exists() and any(ledgers.iterdir()):
        raise LedgerError(
            "these ledgers belong to somebody else",
            where=str(ledgers),
            why="a study spends a budget many times over",
            fix="name an empty folder in ledger, or leave the key out",
        )

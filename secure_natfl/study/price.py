"""What the search itself cost: privacy by the study's ledgers, and time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from protocols.accounting import Event, compose
from protocols.ledger_file import LedgerFile
from secure_natfl.study.folder import StudyFolder
from secure_natfl.study.grid import Cell


@dataclass(frozen=True)
class Price:
    """What all cells together took of one site's worst patient, under one relation and unit.

    epsilon: of the `noised` releases, at `delta`. exact: releases without noise, which nothing
    bounds. unit: "" for the unit of the site's own patient set.
    """

    site: str
    relation: str
    unit: str
    noised: int
    exact: int
    epsilon: float
    delta: float


def prices(folder: StudyFolder, cells: Mapping[str, Cell], folds: int, delta: float) -> list[Price]:
    """Per site and relation, from every ledger on disk, those of cells that failed included.

    A patient trains in all folds but the one that holds it back: the price is the worst fold's. Of
    whole runs (`folds` = 0) it counts as trained on in all.
    `cells`: by id; a ledger of a cell that is no longer planned counts for every patient.
    """
    charged: dict[tuple[str, str, str], list[tuple[int | None, Event]]] = defaultdict(list)
    for path in sorted(folder.ledgers.glob("*/*/ledger.db")):
        cell = cells.get(path.parent.parent.name)
        fold = None if cell is None or not folds else cell.config.data.fold
        for event in _events(path):
            charged[path.parent.name, event.relation, event.unit].append((fold, event))
    return [_price(key, events, folds, delta) for key, events in sorted(charged.items())]


def _events(path: Path) -> list[Event]:
    file = LedgerFile(path, {})
    try:
        return [Event.from_line(line["event"]) for line in file.lines if "erased" not in line]
    finally:
        file.close()


def _price(
    key: tuple[str, str, str],
    charged: list[tuple[int | None, Event]],
    folds: int,
    delta: float,
) -> Price:
    noised = [(fold, event) for fold, event in charged if event.rho < math.inf]
    spent = [
        compose([event for fold, event in noised if fold is None or fold != out], delta).epsilon
        for out in range(max(folds, 1))
    ]
    return Price(*key, len(noised), len(charged) - len(noised), max(spent), delta)

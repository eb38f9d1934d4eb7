"""What the search itself cost: privacy by the study's ledgers, hospital by hospital."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from protocols.accounting import Event, compose
from protocols.chain import canonical, digest
from protocols.ledger_file import LedgerFile
from secure_natfl.study.folder import StudyFolder
from secure_natfl.study.grid import Cell


@dataclass(frozen=True)
class Price:
    """What all cells together took of one hospital's worst patient, under one relation and unit.

    epsilon: of the `noised` releases, at `delta`. exact: releases without noise, which nothing
    bounds. Both count one site per cell. unit: "" for the unit of the sites' own patient sets.
    """

    hospital: str
    relation: str
    unit: str
    noised: int
    exact: int
    epsilon: float
    delta: float


@dataclass
class _Charged:
    """One cell at one hospital: its cut and fold ("" and None where it counts for every patient),
    and what each of the hospital's sites was charged there.
    """

    cut: str
    fold: int | None
    sites: dict[str, list[Event]]

    def noised(self, delta: float) -> list[Event]:
        """The releases under noise of the site that they cost most."""
        each = [
            [event for event in events if event.rho < math.inf] for events in self.sites.values()
        ]
        return max(each, key=lambda events: compose(events, delta).epsilon)

    def exact(self) -> int:
        """The releases without noise of the site that has most of them."""
        return max(sum(e.rho == math.inf for e in events) for events in self.sites.values())


def prices(folder: StudyFolder, cells: Mapping[str, Cell], folds: int, delta: float) -> list[Price]:
    """Per hospital and relation, from every ledger on disk, those of cells that failed included.

    A patient is at one of a hospital's sites in every cell, at others where arms cut the hospital
    otherwise: each cell counts with its worst site. Among cells of the same cut a patient trains
    in all folds but one, and the worst fold counts; of whole runs (`folds` = 0) in all. `cells`:
    by id; a ledger of a cell that is no longer planned counts for every patient.
    """
    charged: dict[tuple[str, str, str], dict[str, _Charged]] = defaultdict(dict)
    hospitals = {one.name for cell in cells.values() for one in cell.config.data.hospitals}
    for path in sorted(folder.ledgers.glob("*/*/ledger.db")):
        id_, site = path.parent.parent.name, path.parent.name
        hospital, cut, fold = _whose(site, cells.get(id_), hospitals, folds)
        for event in _events(path):
            found = charged[hospital, event.relation, event.unit]
            one = found.setdefault(id_, _Charged(cut, fold, {}))
            one.sites.setdefault(site, []).append(event)
    return [
        _price(key, list(found.values()), folds, delta) for key, found in sorted(charged.items())
    ]


def _whose(
    site: str, cell: Cell | None, hospitals: set[str], folds: int
) -> tuple[str, str, int | None]:
    """A site's hospital, and the cut and fold in which the cell has its patients."""
    table = None if cell is None else cell.config.site_names().get(site)
    if cell is None or table is None:
        name = re.sub(r"-\d+$", "", site)
        return name if name in hospitals else site, "", None
    if not folds:
        return table.name, "", None
    data = cell.config.data
    stated = table.model_dump(mode="json", exclude={"group", "task", "architectures"})
    return table.name, digest(canonical([stated, data.split_seed, data.folds])), data.fold


def _events(path: Path) -> list[Event]:
    file = LedgerFile(path, {})
    try:
        return [Event.from_line(line["event"]) for line in file.lines if "erased" not in line]
    finally:
        file.close()


def _price(key: tuple[str, str, str], charged: list[_Charged], folds: int, delta: float) -> Price:
    noised = [(one, one.noised(delta)) for one in charged]
    # Most folds cost the same; a sum of many kinds of steps takes seconds.
    distinct = {frozenset(Counter(each).items()): each for each in _trained_on(noised, folds)}
    epsilon = max(compose(events, delta).epsilon for events in distinct.values())
    exact = sum(one.exact() for one in charged)
    return Price(*key, sum(len(events) for _, events in noised), exact, epsilon, delta)


def _trained_on(noised: list[tuple[_Charged, list[Event]]], folds: int) -> Iterator[list[Event]]:
    """What one patient may have paid for: every cut holds them back in a fold of its own."""
    cuts = sorted({one.cut for one, _ in noised if one.cut})
    for out in itertools.product(range(folds), repeat=len(cuts)):
        held_back = set(zip(cuts, out, strict=True))
        yield [e for one, events in noised if (one.cut, one.fold) not in held_back for e in events]

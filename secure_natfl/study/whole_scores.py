"""Figures of whole runs over seeds, and arms against one another, seed by seed.

Each seed cuts sites and test parts anew and trains anew, so that intervals are Student's, over
seeds: of a mean, or of the paired differences of two arms. They cover the split and the training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats

from secure_natfl.report.model import Interval
from secure_natfl.study.folder import Record, StudyFolder
from secure_natfl.study.grid import Plan, Setting

MARGIN: Final = 0.005
"""Half a point: two arms that differ by no more are called alike; fixed before any run."""

Kind = tuple[str, str, str]
"""(hospital, model, metric); the hospital is "" for the mean over all sites."""


@dataclass(frozen=True)
class Figure:
    """A model's figure. site: "" for the mean over the hospital's, each by its test images.

    seed: None for the mean over `seeds`, whose interval is None where there is one seed.
    """

    setting: Setting
    hospital: str
    site: str
    model: str
    metric: str
    seed: int | None
    seeds: int
    value: float
    interval: Interval | None


@dataclass(frozen=True)
class Contrast:
    """What a setting is ahead of another by, on the seeds of both; p of the paired t-test.

    interval and p: None on one seed; p also where no seed shows a difference.
    """

    setting: Setting
    against: str
    hospital: str
    model: str
    metric: str
    seeds: int
    difference: float
    interval: Interval | None
    p: float | None

    @property
    def alike(self) -> str:
        """Whether half a point holds: for the whole interval, for the mean alone, or not.

        One seed says nothing of it.
        """
        if self.interval is None:
            return "one seed"
        if max(-self.interval.low, self.interval.high) <= MARGIN:
            return "interval"
        return "mean" if abs(self.difference) <= MARGIN else "no"


class Runs:
    """The finished runs of a study."""

    def __init__(self, folder: StudyFolder, plan: Plan) -> None:
        self.plan = plan
        self.records: dict[Setting, dict[int, Record]] = {}
        for setting in plan.settings:
            cells = {} if setting.refused else {s: plan.run_of(setting, s) for s in setting.seeds}
            done = {seed: folder.record(cell) for seed, cell in cells.items() if folder.done(cell)}
            if done:
                self.records[setting] = done

    def figures(self) -> Iterator[Figure]:
        """Means over seeds, seed by seed, and site by site."""
        for setting, records in self.records.items():
            by_seed = {seed: means(record["figures"]) for seed, record in records.items()}
            for kind in dict.fromkeys(kind for found in by_seed.values() for kind in found):
                values = {seed: found[kind] for seed, found in by_seed.items() if kind in found}
                yield from _over_seeds(setting, kind, "", values)
            each: dict[tuple[Kind, str], dict[int, float]] = {}
            for seed, record in records.items():
                for one in record["figures"]:
                    kind = one["hospital"], one["model"], one["metric"]
                    each.setdefault((kind, one["site"]), {})[seed] = one["value"]
            for (kind, site), values in each.items():
                yield from _over_seeds(setting, kind, site, values)

    def contrasts(self) -> Iterator[Contrast]:
        """Every setting beside the arm that it is against, at the same point."""
        for setting, mine in self.records.items():
            other = self._against(setting)
            seeds = [seed for seed in mine if other and seed in self.records[other]]
            if other is None or not seeds:
                continue
            pairs = [
                (means(mine[seed]["figures"]), means(self.records[other][seed]["figures"]))
                for seed in seeds
            ]
            for kind in pairs[0][0]:
                apart = [one[kind] - two[kind] for one, two in pairs if kind in one and kind in two]
                if apart:
                    yield _contrast(setting, kind, apart)

    def same_sums(self, setting: Setting) -> bool | None:
        """Whether the same integers were opened as of `against`, seed by seed; None if unknown."""
        other = self._against(setting)
        mine = self.records[setting]
        theirs = {} if other is None or other.clear else self.records[other]
        both = [(mine[seed], theirs[seed]) for seed in mine if seed in theirs]
        return all(a["sums_sha256"] == b["sums_sha256"] for a, b in both) if both else None

    def _against(self, setting: Setting) -> Setting | None:
        found = (s for s in self.records if s.arm == setting.against and s.point == setting.point)
        other = next(found, None)
        return None if other is setting else other


def means(figures: Sequence[Record]) -> Mapping[Kind, float]:
    """Mean figures of one run, of each hospital and of all sites, weighted by test images."""
    sums: dict[Kind, tuple[float, int]] = {}
    for one in figures:
        for hospital in ("", one["hospital"]):
            kind = hospital, one["model"], one["metric"]
            total, images = sums.get(kind, (0.0, 0))
            sums[kind] = total + one["images"] * one["value"], images + one["images"]
    return {kind: total / images for kind, (total, images) in sums.items()}


def interval(values: Sequence[float]) -> Interval | None:
    """The mean with Student's 95 % interval; None of one value."""
    if len(values) < 2:
        return None
    mean = float(np.mean(values))
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return Interval(value=mean, low=mean - half, high=mean + half)


def _over_seeds(
    setting: Setting, kind: Kind, site: str, values: Mapping[int, float]
) -> Iterator[Figure]:
    hospital, model, metric = kind
    where = (setting, hospital, site, model, metric)
    found = list(values.values())
    yield Figure(*where, None, len(found), float(np.mean(found)), interval(found))
    for seed, value in values.items():
        yield Figure(*where, seed, 1, value, None)


def _contrast(setting: Setting, kind: Kind, apart: Sequence[float]) -> Contrast:
    hospital, model, metric = kind
    found, mean = interval(apart), float(np.mean(apart))
    p = None
    if found is not None and np.ptp(apart) > 0:
        p = float(stats.ttest_1samp(apart, 0.0).pvalue)
    where = (setting, setting.against, hospital, model, metric)
    return Contrast(*where, len(apart), mean, found, p)

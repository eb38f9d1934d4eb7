"""From finished cells to figures: scores with intervals, paired tests, gaps between subgroups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocols.chain import digest
from secure_natfl.report.model import Interval
from secure_natfl.study.folder import StudyFolder
from secure_natfl.study.grid import COMPARISONS, Cell, Plan, Setting
from secure_natfl.study.predictions import Floats, OutOfFold, gathered
from secure_natfl.study.scores import Difference, curve, difference, interval, resamples
from secure_natfl.study.subgroups import Subgroups

_FEDERATED = ("central", "personalised")
_CONTROLS = ("noise_proxies", "in_domain_proxies")
_BEST = "best local model"
_REFERENCES = {
    "central": ("local_only", "pooled", "max(local_only, pooled)", _BEST, *_CONTROLS),
    "personalised": ("local_only",),
    "fitted": (_BEST, "few_labels"),
}
"""Model → what it is compared with in its own setting."""


@dataclass(frozen=True)
class Score:
    """AUROC of a model at a hospital. seed: None for the mean over `seeds`; site: "" for the mean
    over the hospital's sites. auroc is None on one class.
    """

    setting: Setting
    hospital: str
    model: str
    site: str
    seed: int | None
    seeds: int
    auroc: Interval | None
    n: int
    unit: str


@dataclass(frozen=True)
class Test:
    """A paired comparison on the same images, seeds and resamples."""

    __test__ = False

    setting: Setting
    hospital: str
    name: str
    seeds: int
    difference: Difference


@dataclass(frozen=True)
class Gap:
    """Best minus worst AUROC among the values of one column, with those values."""

    setting: Setting
    hospital: str
    model: str
    column: str
    values: dict[str, Interval | None]
    gap: Interval


class Analysis:
    """All curves of a study's finished cells; a setting and seed counts once all its folds are in.

    Each curve is computed once, however many settings share it.
    """

    def __init__(self, folder: StudyFolder, plan: Plan, subgroups: Subgroups) -> None:
        self.folder, self.plan, self.subgroups = folder, plan, subgroups
        self._planned: dict[tuple[Setting, int], list[Cell]] = {}
        self._found: dict[tuple[str, ...], dict[str, OutOfFold]] = {}
        self._weights: dict[str, Floats] = {}
        self._curves: dict[tuple[str, ...], Floats | None] = {}
        self.seeds = {
            setting: [s for s in setting.seeds if all(map(folder.done, self._cells(setting, s)))]
            for setting in plan.settings
        }

    @property
    def settings(self) -> list[Setting]:
        """Those of which at least one seed is whole."""
        return [setting for setting, seeds in self.seeds.items() if seeds]

    def hospitals(self, setting: Setting) -> list[str]:
        """All hospitals that take part, in the configuration's order."""
        return [hospital.name for hospital in setting.config.data.hospitals]

    def predicted(self, setting: Setting) -> list[str]:
        """These, and the hospitals that were left out."""
        return [*self.hospitals(setting), *(one.name for one in setting.newcomers)]

    def models(self, setting: Setting, hospital: str) -> list[str]:
        """The models that were predicted with."""
        return list(self._of(setting, self.seeds[setting][0])[hospital].models)

    def scores(self) -> Iterator[Score]:
        """Every model's figures: over all seeds, seed by seed, and site by site."""
        for setting in self.settings:
            for hospital in self.predicted(setting):
                for model in self.models(setting, hospital):
                    yield from self._scores(setting, hospital, model)

    def tests(self) -> Iterator[Test]:
        """What is compared with what was fixed beforehand; see `comparisons`."""
        for setting in self.settings:
            for hospital in self.predicted(setting):
                yield from self._within(setting, hospital)
                yield from self._between(setting, hospital)

    def gaps(self) -> Iterator[Gap]:
        """Gaps between subgroups, where the study names columns and the data has them."""
        for setting in self.settings:
            for hospital in self.hospitals(setting):
                for model in self.models(setting, hospital):
                    yield from self._gaps(setting, hospital, model)

    def mean(
        self, setting: Setting, hospital: str, model: str, seeds: Sequence[int] | None = None
    ) -> Floats | None:
        """A model's curve [1 + B], the mean over sites and seeds."""
        chosen = self.seeds[setting] if seeds is None else seeds
        found = [self._curve(setting, seed, hospital, model) for seed in chosen]
        usable = [one for one in found if one is not None]
        return np.asarray(np.mean(usable, axis=0)) if usable else None

    def _scores(self, setting: Setting, hospital: str, model: str) -> Iterator[Score]:
        seeds = self.seeds[setting]
        one = self._of(setting, seeds[0])[hospital]
        n = len(np.unique(one.truth.units))

        def score(values: Floats | None, site: str, seed: int | None) -> Score:
            found = None if values is None else interval(values)
            return Score(setting, hospital, model, site, seed, len(seeds), found, n, one.truth.unit)

        yield score(self.mean(setting, hospital, model), "", None)
        for seed in seeds:
            yield score(self._curve(setting, seed, hospital, model), "", seed)
        if len(one.sites[model]) > 1:
            for number, site in enumerate(one.sites[model]):
                each = [self._curve(setting, s, hospital, model, number) for s in seeds]
                usable = [values for values in each if values is not None]
                yield score(np.mean(usable, axis=0) if usable else None, site, None)

    def _within(self, setting: Setting, hospital: str) -> Iterator[Test]:
        """Against the comparisons of the same setting."""
        curves = {m: self.mean(setting, hospital, m) for m in self.models(setting, hospital)}
        known = {model: values for model, values in curves.items() if values is not None}
        references: dict[str, Floats] = {
            model: known[model] for model in ("local_only", "pooled") if model in known
        }
        if len(references) == 2:
            references["max(local_only, pooled)"] = np.maximum(*references.values())
        if "local_only" in known and hospital not in self.hospitals(setting):
            references[_BEST] = self._best_local(setting, hospital)
        references |= {m: known[m] for m in (*_CONTROLS, "few_labels") if m in known}
        for model, names in _REFERENCES.items():
            for name in names if model in known else ():
                if name in references:
                    says = f"{model} − {name}"
                    yield from self._test(setting, hospital, says, known[model], references[name])

    def _best_local(self, setting: Setting, hospital: str) -> Floats:
        """The best of all sites' own models at a hospital that took no part: curve [1 + B].

        It is picked anew in each resample, to its advantage.
        """
        one = self._of(setting, self.seeds[setting][0])[hospital]
        found = []
        for number in range(len(one.sites["local_only"])):
            each = [
                self._curve(setting, seed, hospital, "local_only", number)
                for seed in self.seeds[setting]
            ]
            found.append(np.mean([c for c in each if c is not None], axis=0))
        return np.asarray(np.max(found, axis=0))

    def _between(self, setting: Setting, hospital: str) -> Iterator[Test]:
        """Against another arm at the same point, on the seeds that both have.

        A hospital that took part is not compared with itself as one that did not.
        """
        first = setting.against
        fits = [s for s in self.settings if s.arm == first and s.point == setting.point]
        if setting.arm == first or not fits:
            return
        if not all(hospital in self.hospitals(one) for one in (setting, fits[0])):
            return
        seeds = [seed for seed in self.seeds[setting] if seed in self.seeds[fits[0]]]
        one, two = (self._of(s, self.seeds[s][0])[hospital].truth.keys for s in (setting, fits[0]))
        if not seeds or not np.array_equal(one, two):
            return
        for model in _FEDERATED:
            if model in self.models(setting, hospital) and model in self.models(fits[0], hospital):
                mine = self.mean(setting, hospital, model, seeds)
                theirs = self.mean(fits[0], hospital, model, seeds)
                if mine is not None and theirs is not None:
                    name = f"{model}: {setting.arm} − {first}"
                    yield from self._test(setting, hospital, name, mine, theirs, len(seeds))

    def _test(
        self,
        setting: Setting,
        hospital: str,
        name: str,
        values: Floats,
        reference: Floats,
        seeds: int = 0,
    ) -> Iterator[Test]:
        found = difference(values, reference)
        if found is not None:
            yield Test(setting, hospital, name, seeds or len(self.seeds[setting]), found)

    def _gaps(self, setting: Setting, hospital: str, model: str) -> Iterator[Gap]:
        seeds = self.seeds[setting]
        one = self._of(setting, seeds[0])[hospital]
        columns = self.subgroups.of(setting.config, hospital, one.truth.keys)
        for column, values in columns.items():
            curves = {}
            for value in sorted(set(values.tolist()) - {""}):
                each = [
                    self._curve(setting, s, hospital, model, None, (column, value), values == value)
                    for s in seeds
                ]
                usable = [c for c in each if c is not None]
                if usable:
                    curves[value] = np.mean(usable, axis=0)
            if len(curves) > 1:
                stacked = np.stack(list(curves.values()))
                gap = interval(stacked.max(0) - stacked.min(0))
                if gap is not None:
                    found = {value: interval(values) for value, values in curves.items()}
                    yield Gap(setting, hospital, model, column, found, gap)

    def _curve(
        self,
        setting: Setting,
        seed: int,
        hospital: str,
        model: str,
        site: int | None = None,
        subgroup: tuple[str, str] = ("", ""),
        rows: NDArray[np.bool_] | None = None,
    ) -> Floats | None:
        kind = "comparison" if model in COMPARISONS else "federation"
        ids = [cell.id for cell in self._cells(setting, seed) if cell.kind == kind]
        key = (*ids, hospital, model, str(site), *subgroup)
        if key not in self._curves:
            one = self._of(setting, seed)[hospital]
            weights = self._resamples(setting, seed, hospital)
            if rows is not None:
                weights = weights * rows
            networks = one.models[model] if site is None else one.models[model][site : site + 1]
            found = [curve(p, one.truth, weights) for p in networks]
            usable = [values for values in found if values is not None]
            self._curves[key] = np.mean(usable, axis=0) if usable else None
        return self._curves[key]

    def _resamples(self, setting: Setting, seed: int, hospital: str) -> Floats:
        one = self._of(setting, seed)[hospital]
        key = hospital + digest(one.truth.keys.tobytes() + one.truth.units.tobytes())
        if key not in self._weights:
            self._weights[key] = resamples(one.truth.units)
        return self._weights[key]

    def _of(self, setting: Setting, seed: int) -> dict[str, OutOfFold]:
        cells = self._cells(setting, seed)
        key = tuple(cell.id for cell in cells)
        if key not in self._found:
            self._found[key] = gathered(self.folder, cells)
        return self._found[key]

    def _cells(self, setting: Setting, seed: int) -> list[Cell]:
        if (setting, seed) not in self._planned:
            self._planned[setting, seed] = self.plan.of(setting, seed)
        return self._planned[setting, seed]

"""`study.html`: the study as one self-contained page in the reports' visual language."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from protocols.errors import DataError
from secure_natfl import __version__
from secure_natfl.report import formats
from secure_natfl.report.figures import Plate
from secure_natfl.report.render import pages
from secure_natfl.study import figures
from secure_natfl.study.advice import MARGIN, Advice, Worst
from secure_natfl.study.analysis import Gap, Score, Test
from secure_natfl.study.grid import COMPARISONS, Plan, Setting
from secure_natfl.study.preflight import simulated
from secure_natfl.study.price import Price
from secure_natfl.study.scores import RESAMPLES
from secure_natfl.study.tables import Cost


@dataclass(frozen=True)
class Ended:
    """What became of the cells, and what they cost.

    failed: (cell, fault); left: cells that time did not suffice for.
    """

    plan: Plan
    costs: list[Cost]
    prices: list[Price]
    cpu_seconds: float
    cells: int
    done: int
    failed: list[tuple[str, str]]
    left: int
    command: str


@dataclass(frozen=True)
class Findings(Ended):
    """All that the page of a study by folds shows."""

    scores: list[Score]
    tests: list[Test]
    gaps: list[Gap]
    worst: list[Worst]
    advice: Advice


def study_html(found: Findings, attacks: dict[str, float]) -> str:
    """The page. attacks: setting's label → attack advantage, 0 to 1, where it was measured."""
    study = found.plan.study
    overall = [s for s in found.scores if s.seed is None and not s.site]
    return (
        pages()
        .get_template("study.html.j2")
        .render(
            found=found,
            study=study,
            simulated=any(map(_split, found.plan.settings)),
            phantoms=all(simulated(s.config) for s in found.plan.settings),
            curves=[
                plate
                for model in ("central", "personalised")
                if (plate := figures.over_epsilon(found.scores, model)) is not None
            ],
            fronts=_fronts(found, attacks),
            by_hospital=_by_hospital(overall),
            unscored=_unscored(overall),
            label=_label,
            left_out=any(setting.newcomers for setting in found.plan.settings),
            tests=found.tests,
            margin=MARGIN,
            resamples=RESAMPLES,
            infinity=math.inf,
            version=__version__,
            created=formats.moment(datetime.now(UTC)),
            duration=formats.duration,
        )
    )


def attack_figures(folder: Path, settings: Sequence[Setting]) -> dict[str, float]:
    """Setting's label → advantage, from `attacks.csv` (columns arm, the axes, advantage) if there.

    DataError for a line that belongs to no setting, or an advantage outside 0 to 1.
    """
    file = folder / "attacks.csv"
    if not file.exists():
        return {}
    found = {}
    with file.open(encoding="utf-8", newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines), start=2):
            fits = [s for s in settings if _fits(s, row)]
            advantage = _share(row.get("advantage") or "")
            if len(fits) != 1 or advantage is None:
                raise DataError(
                    "no attack figure of this study",
                    where=f"{file}, line {number}",
                    fix="give arm, every axis, and an advantage from 0 to 1",
                )
            found[fits[0].label] = advantage
    return found


def _split(setting: Setting) -> bool:
    """Whether parties of a setting are made: phantoms, or parts of one hospital."""
    return simulated(setting.config) or any(h.sites > 1 for h in setting.config.data.hospitals)


def _share(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None


def _fits(setting: Setting, row: dict[str, str]) -> bool:
    return setting.arm == row.get("arm") and all(row.get(a) == v for a, v in setting.point)


def _fronts(found: Findings, attacks: dict[str, float]) -> list[Plate]:
    """Against attack advantage where it was measured, else against bytes and seconds."""
    if len(found.worst) < 2:
        return []
    cost = {cost.setting: cost for cost in found.costs}

    def advantage(setting: Setting) -> float | None:
        return attacks.get(setting.label)

    def sent(setting: Setting) -> float | None:
        return cost[setting].upload_bytes + cost[setting].download_bytes

    def taken(setting: Setting) -> float | None:
        return cost[setting].seconds

    axes = (
        [("advantage", "attack advantage", lambda x: f"{x:.3f}", advantage)]
        if attacks
        else [
            ("bytes", "bytes per site, all rounds", formats.data_size, sent),
            ("seconds", "seconds of a cell", formats.duration, taken),
        ]
    )
    spots = [(key, label, spell, figures.spots_of(found.worst, f)) for key, label, spell, f in axes]
    return [
        figures.pareto(f"front-{k}", name, spell, s)
        for k, name, spell, s in spots
        if len({price for _, price, _ in s}) > 1
    ]


def _label(score: Score) -> str:
    """What a line of the results is of."""
    if any(score.hospital == one.name for one in score.setting.newcomers):
        return f"{score.setting.label}: took no part"
    if score.model in COMPARISONS:
        return "All settings that train alike"
    return score.setting.label


def _unscored(scores: Sequence[Score]) -> list[str]:
    """Hospitals at which no AUROC is defined."""
    scored = {score.hospital for score in scores if score.auroc is not None}
    return sorted({score.hospital for score in scores} - scored)


def _by_hospital(scores: Sequence[Score]) -> dict[str, list[Score]]:
    """The comparisons of several settings are one line where they are one training."""
    found: dict[str, list[Score]] = {}
    seen = set()
    for score in scores:
        if score.auroc is None:
            continue
        same = (score.hospital, score.model, score.auroc, score.n)
        if score.model in COMPARISONS and repr(same) in seen:
            continue
        seen.add(repr(same))
        found.setdefault(score.hospital, []).append(score)
    return found

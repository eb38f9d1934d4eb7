"""`study.html`: the study as one self-contained page in the reports' visual language."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
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
from secure_natfl.study.guarantee import by_guarantee
from secure_natfl.study.preflight import simulated
from secure_natfl.study.price import Price
from secure_natfl.study.scores import RESAMPLES
from secure_natfl.study.tables import Cost

_SHARED = (
    " Settings share some work, such as own networks that no noise touches: its time counts for the"
    " first cell that needs it."
)

_Axis = tuple[str, str, Callable[[float], str], Callable[[Setting], float | None], str]
"""Key, label, how a price is spelt, the price of a setting, and a last sentence."""


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
    fronts, level = _fronts(found, attacks)
    return (
        pages()
        .get_template("study.html.j2")
        .render(
            found=found,
            study=study,
            simulated=any(map(_split, found.plan.settings)),
            phantoms=all(simulated(s.config) for s in found.plan.settings),
            curves=_curves(found),
            meanings=by_guarantee(found.plan.settings),
            fronts=fronts,
            level=level,
            by_hospital=_by_hospital(overall),
            unscored=_unscored(overall),
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


def _curves(found: Findings) -> list[Plate]:
    """A figure per model and guarantee: ε of one stands on no axis with ε of another."""
    plates = []
    for number, given in enumerate(by_guarantee(found.plan.settings)):
        for model in ("central", "personalised"):
            key = f"epsilon-{model}{number or ''}"
            plates.append(figures.over_epsilon(key, found.scores, model, given))
    return [plate for plate in plates if plate is not None]


def _fronts(found: Findings, attacks: dict[str, float]) -> tuple[list[Plate], list[str]]:
    """Figures against attack advantage, bytes and CPU time; and prices that are all the same."""
    if len(found.worst) < 2:
        return [], []
    cost = {cost.setting: cost for cost in found.costs}

    def advantage(setting: Setting) -> float | None:
        return attacks.get(setting.label)

    def sent(setting: Setting) -> float | None:
        return cost[setting].upload_bytes + cost[setting].download_bytes

    def taken(setting: Setting) -> float | None:
        return cost[setting].cpu_seconds

    axes: tuple[_Axis, ...] = (
        ("advantage", "attack advantage", lambda x: f"{x:.3f}", advantage, ""),
        ("bytes", "bytes per site, all rounds", formats.data_size, sent, ""),
        ("seconds", "CPU time of a cell", formats.duration, taken, _SHARED),
    )
    plates, level = [], []
    for key, label, spell, price, note in axes:
        spots = figures.spots_of(found.worst, price)
        if len({price for _, price, _ in spots}) > 1:
            plates.append(figures.pareto(f"front-{key}", label, spell, spots, note))
        elif spots:
            every = len(spots) == len(found.worst)
            where = "every setting" if every else ", ".join(name for name, *_ in spots)
            level.append(f"{label}: {spell(spots[0][1])} for {where}")
    return plates, level


def _unscored(scores: Sequence[Score]) -> list[str]:
    """Hospitals at which no AUROC is defined."""
    scored = {score.hospital for score in scores if score.auroc is not None}
    return sorted({score.hospital for score in scores} - scored)


def _by_hospital(scores: Sequence[Score]) -> dict[str, list[tuple[str, Score]]]:
    """Hospital → what each line is of, and its figures.

    A comparison is one line where it is one training, named by the arms that share it.
    """
    alike: dict[str, list[Score]] = {}
    for score in scores:
        if score.auroc is not None:
            same = (score.hospital, score.model, score.auroc, score.n, score.seeds)
            key = same if score.model in COMPARISONS else (*same, score.setting.label)
            alike.setdefault(repr(key), []).append(score)
    found: dict[str, list[tuple[str, Score]]] = {}
    for shared in alike.values():
        found.setdefault(shared[0].hospital, []).append((_label(shared), shared[0]))
    return found


def _label(shared: Sequence[Score]) -> str:
    """What a line is of: scores of one setting, or of one comparison that several share."""
    score = shared[0]
    if any(score.hospital == one.name for one in score.setting.newcomers):
        return f"{score.setting.label}: took no part"
    if score.model not in COMPARISONS:
        return score.setting.label
    first, *others = dict.fromkeys(one.setting.arm for one in shared)
    if len(others) > 2:
        return f"Trained alike for {first} and {len(others)} more arms"
    return f"Trained for {', '.join([first, *others])}"

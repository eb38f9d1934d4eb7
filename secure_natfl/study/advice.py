"""Which setting to take: a rule that is fixed here, before any study is looked at.

The worst hospital decides. Taken is the smallest ε whose central model is, at its worst hospital,
no more than `MARGIN` below the best setting of all, by a one-sided paired 95 % bound; where none
is, the noised setting with the best worst hospital. Choosing on the images that the figures come
from makes the chosen figure look a little better than it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from secure_natfl.report.formats import signed
from secure_natfl.study.analysis import Analysis
from secure_natfl.study.grid import Setting
from secure_natfl.study.predictions import Floats
from secure_natfl.study.scores import difference

MARGIN = 0.05
_MODELS = ("central", "personalised")


@dataclass(frozen=True)
class Worst:
    """A setting's central model (else the personalised ones) where it is worst."""

    setting: Setting
    hospital: str
    model: str
    values: Floats
    """[1 + B]: the lowest hospital's AUROC, on the sample and in every resample."""

    @property
    def auroc(self) -> float:
        """On the sample."""
        return float(self.values[0])


@dataclass(frozen=True)
class Advice:
    """What to take (None where nothing can be said), and why, one sentence each."""

    chosen: Worst | None
    reasons: tuple[str, ...]


def worst_of(analysis: Analysis) -> list[Worst]:
    """Every finished setting at its worst hospital, among hospitals with both classes.

    Settings of other hospitals, or of other sites, than the first one's are not weighed against it.
    """
    found, first = [], analysis.plan.settings[0].config.data.hospitals
    for setting in analysis.settings:
        if setting.config.data.hospitals != first:
            continue
        hospitals = analysis.hospitals(setting)
        known = {m for h in hospitals for m in analysis.models(setting, h)}
        model = next((m for m in _MODELS if m in known), None)
        if model is None:
            continue
        curves = {h: analysis.mean(setting, h, model) for h in hospitals}
        scored = {h: v for h, v in curves.items() if v is not None}
        if scored:
            low = min(scored, key=lambda h: scored[h][0])
            lowest = np.min(np.stack(list(scored.values())), axis=0)
            found.append(Worst(setting, low, model, lowest))
    return found


def advise(analysis: Analysis, worst: Sequence[Worst]) -> Advice:
    """The rule of this module on what is finished."""
    if not worst:
        return Advice(None, ("No setting has all its folds yet.",))
    best = max(worst, key=lambda one: one.auroc)
    planned = len(analysis.plan.settings)
    reasons = [
        f"{len(analysis.settings)} of {planned} settings have a seed with all its folds.",
        f"The best worst hospital of all settings is {best.hospital} with {best.auroc:.3f}, "
        f"under {best.setting.label}.",
    ]
    noised = [one for one in worst if one.setting.epsilon < math.inf]
    if not noised:
        return Advice(None, (*reasons, "No setting has noise: nothing protects a patient."))
    near = [one for one in noised if _loss(one, best) <= MARGIN]
    if near:
        chosen = min(near, key=lambda one: (one.setting.epsilon, -one.auroc))
        reasons.append(
            f"{chosen.setting.label} has the smallest ε that loses at most {MARGIN} against it: "
            f"{chosen.auroc:.3f} at {chosen.hospital}, "
            + (
                "the best itself."
                if chosen is best
                else f"a loss of {_loss(chosen, best):.3f} at most (one-sided 95 %)."
            )
        )
    else:
        chosen = max(noised, key=lambda one: one.auroc)
        reasons.append(
            f"No finite ε of this study is shown to lose at most {MARGIN} against it. The best of "
            f"them is {chosen.setting.label}: {chosen.auroc:.3f} at {chosen.hospital}, a loss of "
            f"up to {_loss(chosen, best):.3f} (one-sided 95 %)."
        )
    return Advice(chosen, (*reasons, *_against_local(analysis, chosen)))


def _loss(one: Worst, best: Worst) -> float:
    """How far below the best setting it may be; ∞ where the two cannot be compared."""
    if one is best:
        return 0.0
    found = difference(one.values, best.values)
    return math.inf if found is None else max(0.0, -found.lower)


def _against_local(analysis: Analysis, chosen: Worst) -> list[str]:
    """Whether a hospital would do better alone."""
    reasons = []
    for hospital in analysis.hospitals(chosen.setting):
        mine = analysis.mean(chosen.setting, hospital, chosen.model)
        alone = None
        if "local_only" in analysis.models(chosen.setting, hospital):
            alone = analysis.mean(chosen.setting, hospital, "local_only")
        found = None if mine is None or alone is None else difference(mine, alone)
        if found is None:
            continue
        if found.upper < 0:
            says = "training alone is better there"
        elif found.lower > 0:
            says = "the federation is better there"
        else:
            says = "neither is shown to be better there"
        reasons.append(
            f"At {hospital} its {chosen.model} model stands {signed(found.value)} from local "
            f"training ({signed(found.lower)} to {signed(found.upper)}, each bound one-sided "
            f"95 %): "
            f"{says}."
        )
    return reasons

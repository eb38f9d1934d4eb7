"""Which setting to take: a rule that is fixed here, before any study is looked at.

The worst hospital decides. Among settings whose ε is of the same (`guarantee`) that one is taken
with the smallest ε whose central model is, at its worst hospital, no more than `MARGIN` below the
best setting of all, by a one-sided paired 95 % bound; where none is, the one with the best worst
hospital. Choosing on the images that the figures come from makes the chosen figure look a little
better than it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from secure_natfl.report.formats import signed
from secure_natfl.study.analysis import Analysis
from secure_natfl.study.grid import Setting
from secure_natfl.study.guarantee import Guarantee, by_guarantee
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
class Choice:
    """What to take of the settings whose ε is of the same, and why, one sentence each.

    shown: whether it is shown to lose no more than `MARGIN`; else it is the best of them, no more.
    """

    given: Guarantee
    chosen: Worst
    shown: bool
    why: tuple[str, ...]


@dataclass(frozen=True)
class Advice:
    """A choice for every guarantee (none where nothing can be said), and what holds of all."""

    choices: tuple[Choice, ...]
    general: tuple[str, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Everything, one sentence each."""
        return (*self.general, *(reason for choice in self.choices for reason in choice.why))


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
        return Advice((), ("No setting has all its folds yet.",))
    best = max(worst, key=lambda one: one.auroc)
    planned = len(analysis.plan.settings)
    general = (
        f"{len(analysis.settings)} of {planned} settings have a seed with all its folds.",
        f"The best worst hospital of all settings is {best.hospital} with {best.auroc:.3f}, "
        f"under {best.setting.label}.",
    )
    of = {one.setting: one for one in worst}
    alike = by_guarantee(of)
    if not alike:
        return Advice((), (*general, "No setting has noise: nothing protects a patient."))
    choices = (
        _choice(analysis, given, [of[setting] for setting in settings], best)
        for given, settings in alike.items()
    )
    return Advice(tuple(choices), general)


def _choice(analysis: Analysis, given: Guarantee, noised: Sequence[Worst], best: Worst) -> Choice:
    near = [one for one in noised if _loss(one, best) <= MARGIN]
    if near:
        chosen = min(near, key=lambda one: (one.setting.epsilon, -one.auroc))
        says = (
            f"{chosen.setting.label} has the smallest ε that loses at most {MARGIN} against "
            f"{best.setting.label}: {chosen.auroc:.3f} at {chosen.hospital}, "
            + (
                "the best itself."
                if chosen is best
                else f"a loss of {_loss(chosen, best):.3f} at most (one-sided 95 %)."
            )
        )
    else:
        chosen = max(noised, key=lambda one: one.auroc)
        says = (
            f"No finite ε of this kind is shown to lose at most {MARGIN} against "
            f"{best.setting.label}. The best of them is {chosen.setting.label}: "
            f"{chosen.auroc:.3f} at {chosen.hospital}, a loss of up to "
            f"{_loss(chosen, best):.3f} (one-sided 95 %)."
        )
    meant = f"ε of {chosen.setting.arm} is of {given.words}."
    return Choice(given, chosen, bool(near), (meant, says, *_against_local(analysis, chosen)))


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

"""What an attacker learns on images of its own first: which way to go, and how far to believe it.

An attack that has not been seen to beat its prior there does not leave it. Networks trained for
longer are another matter than fresh ones, and the attacker knows which it has, so it decides for
each stage of training by itself wherever enough was rehearsed of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import numpy as np

from attacks.gradients.laboratory import Trial
from attacks.rows import Floats

_SURE: Final = 2.0
_CHEAP, _DEAR = 48, 16
_ENOUGH: Final = 12

Choice = TypeVar("Choice")


def rehearsals(targets: int, *, cheap: bool) -> int:
    """How many clients of its own an attacker plays before so many targets; more if `cheap`."""
    return min(max(targets // 4, 4), _CHEAP) if cheap else min(max(targets // 10, 4), _DEAR)


def convincing(gains: Floats) -> bool:
    """Whether gains over the prior [n] are above 0 by two standard errors of their mean."""
    return bool(gains.mean() > _SURE * gains.std(ddof=1) / np.sqrt(len(gains)))


def by_stage(
    trials: Sequence[Trial], choose: Callable[[list[int]], Choice]
) -> Callable[[Trial], Choice]:
    """What to do with a trial, from what was rehearsed with networks of its stage.

    choose: rows of `trials` → what is best on them. Stages with too few of them, or with none, are
    given what is best on all.
    """
    general = choose(list(range(len(trials))))
    special = {}
    for stage in {trial.stage for trial in trials}:
        rows = [at for at, trial in enumerate(trials) if trial.stage == stage]
        if _ENOUGH <= len(rows) < len(trials):
            special[stage] = choose(rows)
    return lambda trial: special.get(trial.stage, general)

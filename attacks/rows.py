"""Rows of the attack table: what is attacked, how it is scored, and when that counts as a leak."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from attacks.threat import Capability

Floats = NDArray[np.float64]
Statistic = Literal["gain", "auc", "rate"]
Tier = Literal["fast", "full"]


@dataclass(frozen=True)
class Budget:
    """What an attacker may spend on one arm; the same for every arm of a row.

    targets: private images or sites attacked. seconds: wall clock after which an optimisation
    stops with the best it has. restarts and iterations of optimisation attacks.
    """

    targets: int
    seconds: float
    restarts: int = 8
    iterations: int = 1000


@dataclass(frozen=True, eq=False)
class Measured:
    """What an attack scored on one arm, one entry per trial; failed trials are in it.

    scores: float64[trials], higher is worse for privacy. baselines: name → float64[trials], what
    who has not seen the observation reaches (prior, mean image, permuted observation); for rates
    `chance` is the probability of success by guessing. clusters: int64[trials], trials that are
    resampled together (a client, a patient, a model). members: bool[trials] where the statistic
    is an area. extra: further figures that are shown and not judged. pictures: float[n, 3, H, W]
    in [0, 1], private originals, what the attack made of them, and the best baseline's image.
    """

    arm: str
    scores: Floats
    baselines: Mapping[str, Floats]
    clusters: NDArray[np.int64]
    members: NDArray[np.bool_] | None = None
    extra: Mapping[str, float] = field(default_factory=dict)
    pictures: Floats | None = None


Play = Callable[[str, Budget, np.random.Generator], Measured]
"""Attacks one arm within a budget; `random` is the attacker's own."""


@dataclass(frozen=True)
class Row:
    """One line of the table, fixed before any defended arm is looked at.

    view: what the adversary sees, in words. metric: what `scores` are. margin: the effect below
    which a leak is called undetected. control_margin: what the lower bound must exceed on
    `arms[0]`, the positive control, for any verdict but INCONCLUSIVE.
    """

    id: str
    title: str
    view: str
    needs: frozenset[Capability]
    metric: str
    statistic: Statistic
    margin: float
    control_margin: float
    arms: tuple[str, ...]
    play: Play = field(repr=False, compare=False)
    tier: Tier = "full"

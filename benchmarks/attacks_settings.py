"""The settings of both sides of `benchmarks.attacks`: two grids of equal size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from attacks.gradients.inversions import INVERTING, SMOOTH, WARM, Inversion, invert
from attacks.gradients.laboratory import Observation
from attacks.gradients.matching import Penalties
from benchmarks.attacks_breaching import guessed

Attack = Callable[[Observation, Tensor, int], Tensor]
"""(observation, true labels, seed) → images; ours never looks at the labels."""


@dataclass(frozen=True)
class Setting:
    """One setting of a side: `play` with a number of steps, the steps of its grid, and those of a
    short run that tells how long a step takes."""

    name: str
    play: Callable[[int], Attack]
    steps: int
    sample: int


def ours(attack: Inversion, restarts: int, steps: int) -> Attack:
    """Our attack, with labels read off the gradient."""

    def run(seen: Observation, labels: Tensor, seed: int) -> Tensor:
        del labels
        generator = torch.Generator().manual_seed(seed)
        prior = torch.rand(16, *seen.knowledge.shape, generator=generator)
        return invert(
            attack,
            seen,
            prior,
            restarts=restarts,
            steps=steps,
            seconds=math.inf,
            generator=generator,
        ).images

    return run


def theirs(config: str, overrides: Sequence[str], trials: int, steps: int) -> Attack:
    """breaching's attack with the true labels."""
    extra = [f"restarts.num_trials={trials}", f"optim.max_iterations={steps}"]

    def run(seen: Observation, labels: Tensor, seed: int) -> Tensor:
        return guessed(seen, labels, config, [*overrides, *extra], seed)

    return run


def _our(attack: Inversion, restarts: int, steps: int) -> Setting:
    name = f"{attack.name}, {restarts} restarts, {steps} steps"
    return Setting(name, partial(ours, attack, restarts), steps, 20)


def _their(config: str, overrides: Sequence[str], trials: int, steps: int) -> Setting:
    words = " ".join([config, *overrides])
    name = f"{words}, {trials} trials, {steps} iterations"
    return Setting(name, partial(theirs, config, overrides, trials), steps, 4)


_MORE = replace(INVERTING, penalties=Penalties(variation=0.01))
OURS = (
    _our(SMOOTH, 1, 60),
    _our(SMOOTH, 1, 120),
    _our(SMOOTH, 2, 120),
    _our(SMOOTH, 4, 150),
    _our(WARM, 2, 150),
    _our(_MORE, 4, 300),
)
_TV = "regularization.total_variation.scale"
_COSINE = ("optim.optimizer=L-BFGS", "optim.signed=null", "optim.step_size=1", "optim.boxed=False")
THEIRS = (
    _their("invertinggradients", (*_COSINE, f"{_TV}=0.01"), 1, 5),
    _their("invertinggradients", (*_COSINE, f"{_TV}=0.01"), 1, 15),
    _their("invertinggradients", (*_COSINE, f"{_TV}=0.001"), 1, 15),
    _their("deepleakage", ("attack_type=optimization",), 1, 15),
    _their("invertinggradients", (f"{_TV}=0.01",), 1, 300),
    _their("invertinggradients", (f"{_TV}=0.01",), 1, 1000),
)

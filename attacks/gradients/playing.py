"""How an arm of a row is played: rehearse, guess every target, and only then score.

Before an arm is attacked, the attacker plays it on images of its own: it keeps the way that does
best there, and draws its guesses back to its prior as far as that helped there, so that noise it
cannot overcome leaves it at the mean image. What it then guesses is scored once, beside two
baselines that have not seen the victim's gradient: the mean image, and the guess for another
client.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import Tensor

from attacks.gradients.laboratory import Arm, GradientLab, Observation, Scene, Trial
from attacks.gradients.rehearsal import by_stage, convincing, rehearsals
from attacks.gradients.scoring import Score, further, mean_scores, shown
from attacks.priors import Prior
from attacks.rows import Budget, Floats, Measured, Row, Statistic, Tier
from attacks.threat import Capability
from protocols.errors import ConfigError

_NOISES: Final = (0.0, 0.01, 0.1, 1.0, 10.0)
_FEWEST: Final = 8


@dataclass(frozen=True, eq=False)
class Means:
    """What an attack has at hand for one observation: its own images, and a share of the budget."""

    prior: Tensor
    restarts: int
    steps: int
    seconds: float
    generator: torch.Generator


Way = Callable[[Observation, Means], Tensor]
"""Guesses images [G, *shape] in [0, 1] from one observation."""


@dataclass(eq=False)
class Memory:
    """Clients that were attacked, by arm and draw, and the images that each way made of them."""

    played: dict[tuple[str, int, str], tuple[list[Trial], list[Trial]]] = field(
        default_factory=dict
    )
    guesses: dict[tuple[int, str], Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ImageAttack:
    """One row: ways to guess, the best of which on the attacker's own images is used.

    shrunk: whether guesses are drawn back to the prior; not where only exactness counts. cheap:
    whether ways are closed forms, so that more of them can be rehearsed. memory: shared by rows
    that play the same ways on the same draws and score them differently.
    """

    id: str
    title: str
    scene: Scene
    view: str
    metric: str
    ways: Mapping[str, Way]
    score: Score
    statistic: Statistic = "gain"
    margin: float = 0.05
    control_margin: float = 0.2
    shrunk: bool = True
    cheap: bool = False
    tier: Tier = "full"
    chance: float | None = None
    memory: Memory | None = None

    def row(self, lab: GradientLab) -> Row:
        """The row, bound to a laboratory."""
        return Row(
            id=self.id,
            title=self.title,
            view=self.view,
            needs=frozenset({Capability.CLEAR_CONTRIBUTIONS}),
            metric=self.metric,
            statistic=self.statistic,
            margin=self.margin,
            control_margin=self.control_margin,
            arms=lab.arms(self.scene),
            play=partial(play_images, lab, self),
            tier=self.tier,
        )


def play_images(
    lab: GradientLab, attack: ImageAttack, arm: str, budget: Budget, random: np.random.Generator
) -> Measured:
    """Attack one arm: rehearse, guess every target, score."""
    prior = Prior.of(lab.prior())
    count = rehearsals(budget.targets, cheap=attack.cheap)
    means = Means(
        prior=lab.prior(),
        restarts=budget.restarts,
        steps=budget.iterations,
        seconds=budget.seconds / (budget.targets + count * len(attack.ways)),
        generator=torch.Generator().manual_seed(int(random.integers(2**31))),
    )
    rehearsed, attacked = _trials(lab, attack, arm, count, budget, random)
    chosen, told = _rehearse(attack, rehearsed, prior, means)

    def guess(trial: Trial) -> Tensor:
        way, noise = chosen(trial)
        if not way or trial.observation.gradient is None:
            return prior.guess(len(trial.truth.images))
        return prior.posterior(_made(attack, way, trial, means), noise)

    # Observations of large networks are let go one by one.
    played = [(guess(trial), trial.truth, trial.stage) for trial in attacked]
    guesses, truths = [one[0] for one in played], [one[1] for one in played]
    others = guesses[-1:] + guesses[:-1]
    plain = [prior.guess(len(truth.images)) for truth in truths]
    baselines = {}
    if attack.chance is not None:
        baselines["chance"] = np.full(len(truths), attack.chance)
    if attack.statistic == "gain":
        baselines["prior"] = mean_scores(attack.score, plain, truths)
        baselines["another client's guess"] = mean_scores(attack.score, others, truths)
    scores = mean_scores(attack.score, guesses, truths)
    return Measured(
        arm=arm,
        scores=scores,
        baselines=baselines,
        clusters=np.array([truth.cluster for truth in truths]),
        extra=told
        | mean_by_stage(scores, [one[2] for one in played])
        | further(guesses, plain, truths),
        pictures=shown(guesses, prior.mean, truths),
    )


def _trials(
    lab: GradientLab,
    attack: ImageAttack,
    arm: str,
    count: int,
    budget: Budget,
    random: np.random.Generator,
) -> tuple[list[Trial], Iterable[Trial]]:
    """Clients to rehearse on, and those attacked: remembered, or drawn one by one in time."""
    named, memory = arm_named(lab, attack.scene, arm), attack.memory
    key = (arm, budget.targets, str(random.bit_generator.state))
    if memory is not None and key in memory.played:
        return memory.played[key]
    rehearsed = list(lab.rehearsals(attack.scene, named, count, random))
    attacked = in_time(lab.trials(attack.scene, named, budget.targets, random), budget)
    if memory is None:
        return rehearsed, attacked
    seen: list[Trial] = []
    memory.played[key] = rehearsed, seen
    return rehearsed, _noted(attacked, seen)


def _noted(trials: Iterable[Trial], seen: list[Trial]) -> Iterator[Trial]:
    for trial in trials:
        seen.append(trial)
        yield trial


def _made(attack: ImageAttack, way: str, trial: Trial, means: Means) -> Tensor:
    """What a way makes of a client, from memory if it was tried before."""
    if attack.memory is None:
        return attack.ways[way](trial.observation, means)
    key, known = (id(trial.observation), way), attack.memory.guesses
    if key not in known:
        known[key] = attack.ways[way](trial.observation, means)
    return known[key]


def _rehearse(
    attack: ImageAttack, trials: Sequence[Trial], prior: Prior, means: Means
) -> tuple[Callable[[Trial], tuple[str, float]], dict[str, float]]:
    """Play every way on the attacker's own images: which one to use, and what it reached.

    The choice is a way's name and the noise that it assumes, or no name, the prior. Where guesses
    are drawn back, a way counts only if it convinces; elsewhere the best is used whatever it gains.
    """
    truths = [trial.truth for trial in trials]
    base = mean_scores(attack.score, [prior.guess(len(truth.images)) for truth in truths], truths)
    told = {"rehearsed: prior": float(base.mean())}
    if any(trial.observation.gradient is None for trial in trials):
        return lambda _: ("", 0.0), told
    gains: dict[tuple[str, float], Floats] = {}
    for name in attack.ways:
        found = [_made(attack, name, trial, means) for trial in trials]
        for level in _NOISES if attack.shrunk else (0.0,):
            drawn = [prior.posterior(images, level) for images in found]
            gains[name, level] = mean_scores(attack.score, drawn, truths) - base
            told[f"rehearsed: {name}, noise {level:g}"] = float((gains[name, level] + base).mean())

    def best(rows: list[int]) -> tuple[str, float]:
        able = [key for key in gains if not attack.shrunk or convincing(gains[key][rows])]
        return max(able, key=lambda key: float(gains[key][rows].mean()), default=("", 0.0))

    return by_stage(trials, best) if attack.shrunk else _always(
        best(list(range(len(trials))))
    ), told


def _always(choice: tuple[str, float]) -> Callable[[Trial], tuple[str, float]]:
    return lambda _: choice


def in_time(trials: Iterable[Trial], budget: Budget) -> Iterator[Trial]:
    """Trials until the time is up, and a few at least: a shorter time attacks fewer targets."""
    until = time.monotonic() + budget.seconds
    for number, trial in enumerate(trials):
        if number >= _FEWEST and time.monotonic() > until:
            return
        yield trial


def mean_by_stage(scores: Floats, stages: Sequence[str]) -> dict[str, float]:
    """The mean score at each stage of the network's training; nothing where there is but one."""
    names = list(dict.fromkeys(stages))
    told = {one: float(scores[[stage == one for stage in stages]].mean()) for one in names}
    return {f"network {name}": mean for name, mean in told.items()} if len(names) > 1 else {}


def arm_named(lab: GradientLab, scene: Scene, name: str) -> Arm:
    """The laboratory's arm of this name; ConfigError where it has none."""
    for arm in lab.arms(scene):
        if arm == name:
            return arm
    raise ConfigError(f"no arm {name!r}", where=scene, fix=f"one of {', '.join(lab.arms(scene))}")

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
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import Tensor

from attacks.gradients.laboratory import Arm, GradientLab, Observation, Scene, Trial, Truth
from attacks.image_scores import identified, matched, nrmse, psnr, ssim
from attacks.priors import Prior
from attacks.rows import Budget, Floats, Measured, Row, Statistic, Tier
from attacks.threat import Capability
from protocols.errors import ConfigError

_NOISES: Final = (0.0, 0.01, 0.1, 1.0, 10.0)
_EXACT, _BEST_DB = 1e-4, 60.0
_PICTURES: Final = 8
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

Score = Callable[[Tensor, Truth], Tensor]
"""Scores guesses [n, *shape], matched to the truth: float[n], higher is worse for privacy."""


@dataclass(frozen=True, kw_only=True)
class ImageAttack:
    """One row: ways to guess, the best of which on the attacker's own images is used.

    shrunk: whether guesses are drawn back to the prior; not where only exactness counts.
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
    tier: Tier = "full"
    chance: float | None = None

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
    named = arm_named(lab, attack.scene, arm)
    prior = Prior.of(lab.prior())
    count = min(max(budget.targets // 10, 4), 16)
    means = Means(
        prior=lab.prior(),
        restarts=budget.restarts,
        steps=budget.iterations,
        seconds=budget.seconds / (budget.targets + count * len(attack.ways)),
        generator=torch.Generator().manual_seed(int(random.integers(2**31))),
    )
    rehearsed = list(lab.rehearsals(attack.scene, named, count, random))
    choice = _rehearse(attack, rehearsed, prior, means)

    def guess(trial: Trial) -> Tensor:
        if choice.way is None:
            return prior.guess(len(trial.truth.images))
        return prior.posterior(choice.way(trial.observation, means), choice.noise)

    # Observations of large networks are let go one by one.
    trials = in_time(lab.trials(attack.scene, named, budget.targets, random), budget)
    played = [(guess(trial), trial.truth, trial.stage) for trial in trials]
    guesses, truths = [one[0] for one in played], [one[1] for one in played]
    others = guesses[-1:] + guesses[:-1]
    plain = [prior.guess(len(truth.images)) for truth in truths]
    if attack.chance is not None:
        baselines = {"chance": np.full(len(truths), attack.chance)}
    else:
        baselines = {
            "prior": _scores(attack, plain, truths),
            "another client's guess": _scores(attack, others, truths),
        }
    scores = _scores(attack, guesses, truths)
    return Measured(
        arm=arm,
        scores=scores,
        baselines=baselines,
        clusters=np.array([truth.cluster for truth in truths]),
        extra=choice.told
        | by_stage(scores, [one[2] for one in played])
        | _further(guesses, truths),
        pictures=_shown(guesses, prior.mean, truths),
    )


@dataclass(frozen=True, eq=False)
class _Choice:
    """What did best in rehearsal: a way and the noise it assumes, or no way at all, the prior."""

    way: Way | None
    noise: float
    told: dict[str, float]


def _rehearse(attack: ImageAttack, trials: Sequence[Trial], prior: Prior, means: Means) -> _Choice:
    """Play every way on the attacker's own images.

    Where guesses are drawn back, a way counts only if it beats the prior by more than a standard
    error; elsewhere the best way is used whatever it gains.
    """
    truths = [trial.truth for trial in trials]
    base = _scores(attack, [prior.guess(len(truth.images)) for truth in truths], truths)
    told = {"rehearsed: prior": float(base.mean())}
    if any(trial.observation.gradient is None for trial in trials):
        return _Choice(None, 0.0, told)
    best, way, noise = (0.0 if attack.shrunk else -np.inf), None, 0.0
    for name, candidate in attack.ways.items():
        found = [candidate(trial.observation, means) for trial in trials]
        for level in _NOISES if attack.shrunk else (0.0,):
            drawn = [prior.posterior(images, level) for images in found]
            gain = _scores(attack, drawn, truths) - base
            told[f"rehearsed: {name}, noise {level:g}"] = float((gain + base).mean())
            certain = gain.mean() > gain.std(ddof=1) / np.sqrt(len(gain)) or not attack.shrunk
            if certain and gain.mean() > best:
                best, way, noise = float(gain.mean()), candidate, level
    return _Choice(way, noise, told)


def _scores(attack: ImageAttack, guesses: Sequence[Tensor], truths: Sequence[Truth]) -> Floats:
    """Mean score of every trial over its victim's images."""
    return np.array(
        [
            float(attack.score(_fitted(guess, truth), truth).mean())
            for guess, truth in zip(guesses, truths, strict=True)
        ]
    )


def _fitted(guess: Tensor, truth: Truth) -> Tensor:
    """The guesses that stand for the victim's images, in their order."""
    if len(guess) < len(truth.images):
        guess = guess.repeat(-(-len(truth.images) // len(guess)), 1, 1, 1)
    return guess[matched(guess, truth.images)]


def _further(guesses: Sequence[Tensor], truths: Sequence[Truth]) -> dict[str, float]:
    """Figures that are shown and not judged: the best image, and how many are exact."""
    pairs = [(_fitted(g, t), t.images) for g, t in zip(guesses, truths, strict=True)]
    errors = torch.cat([nrmse(*pair) for pair in pairs])
    decibels = torch.cat([psnr(*pair) for pair in pairs]).clamp_max(_BEST_DB)
    return {
        "share of exact images": float((errors < _EXACT).double().mean()),
        "median PSNR in dB": float(decibels.median()),
        "highest SSIM": max(float(ssim(*pair).max()) for pair in pairs),
        "identified": float(
            torch.cat(
                [
                    identified(pair[0], pair[1], truth.lures)
                    for pair, truth in zip(pairs, truths, strict=True)
                ]
            ).mean()
        ),
    }


def _shown(guesses: Sequence[Tensor], mean: Tensor, truths: Sequence[Truth]) -> Floats:
    """The first trials' first image, what was made of it, and the mean image: [n, 3, H, W]."""
    pairs = list(zip(guesses, truths, strict=True))[:_PICTURES]
    rows = [torch.stack([t.images[0, 0], _fitted(g, t)[0, 0], mean[0, 0]]) for g, t in pairs]
    return torch.stack(rows).double().numpy()


def in_time(trials: Iterable[Trial], budget: Budget) -> Iterator[Trial]:
    """Trials until the time is up, and a few at least: a shorter time attacks fewer targets."""
    until = time.monotonic() + budget.seconds
    for number, trial in enumerate(trials):
        if number >= _FEWEST and time.monotonic() > until:
            return
        yield trial


def by_stage(scores: Floats, stages: Sequence[str]) -> dict[str, float]:
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

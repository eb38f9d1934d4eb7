"""The rows of gradient attacks; their margins are fixed here, before anything is played.

Margins were set for 200 targets. SSIM gain, 0.05: with paired gains of standard deviation 0.15 or
less, an attack that gains nothing is called so with probability 0.99. Identification among 50,
0.05 over chance (2 %): 0.89; among 1000 it would need 1,500 targets. Exact recovery, 0.03: no hit
in 200 has an upper bound of 0.018. Label multisets, 0.05:
0.99 at a deviation of 0.15; with two equally frequent classes the prior is right for 0.86 of eight
labels, so that the control can gain 0.14 at most.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

import torch
from torch import Tensor

from attacks.gradients.analytic import (
    image_of_linear,
    image_of_transformer,
    images_of_imprint,
    linear_layers,
)
from attacks.gradients.inversions import (
    IDLG,
    INVERTING,
    SEE_THROUGH,
    SMOOTH,
    WARM,
    Inversion,
    invert,
)
from attacks.gradients.label_row import label_row
from attacks.gradients.laboratory import GradientLab, Observation, Truth
from attacks.gradients.matching import Penalties, has_batch_norm
from attacks.gradients.playing import ImageAttack, Means, Memory, Way
from attacks.image_scores import identified, nrmse, ssim
from attacks.rows import Row

_MOST: Final = 16  # images that are searched for at once, where more are behind an update
_SAME: Final = 1e-2  # relative error below which an image of an imprint counts as recovered


def gradient_rows(lab: GradientLab) -> tuple[Row, ...]:
    """All rows that `lab` can play, margins and controls fixed; called before anything is played.

    G1, G1i, G2, G4 and G5a are closed forms; the others optimise.
    """
    found = Memory()  # G3 and G3i score the same guesses
    rows = [
        replace(one, memory=found if one.ways is _OPTIMISED else None).row(lab)
        for one in _ATTACKS
        if lab.arms(one.scene)
    ]
    return (*rows, label_row(lab)) if lab.arms("batch") else tuple(rows)


def _inverted(attack: Inversion, observation: Observation, means: Means) -> Tensor:
    """An optimisation attack; batch statistics are matched only where there are any.

    An update of many images and steps is taken for one step on a few that are typical of them.
    """
    if observation.knowledge.images > _MOST:
        few = replace(observation.knowledge, images=_MOST, steps=1)
        observation = replace(observation, knowledge=few)
    if attack.penalties.statistics and not has_batch_norm(observation.knowledge.network):
        attack = replace(attack, penalties=replace(attack.penalties, statistics=0.0))
    return invert(
        attack,
        observation,
        means.prior,
        restarts=means.restarts,
        generator=means.generator,
        steps=means.steps,
        seconds=means.seconds,
    ).images


def _fished(variation: float, observation: Observation, means: Means) -> Tensor:
    """The images of the class fished for, whose number and features the last layer tells."""
    last = linear_layers(observation)[-1]
    known = observation.knowledge
    layer = known.network.get_submodule(last.name)
    kept = torch.as_tensor(layer.weight).abs().sum(1).argmax()
    share = 0.0 if last.bias is None else float(-last.bias[kept])
    count = max(1, min(round(share * known.images), known.images, _MOST))
    return invert(
        replace(IDLG, distance="cosine", penalties=Penalties(variation=variation)),
        observation,
        means.prior,
        restarts=means.restarts,
        generator=means.generator,
        steps=means.steps,
        seconds=means.seconds,
        images=count,
        labels=kept.expand(count),
        skip=frozenset({f"{last.name}.weight", f"{last.name}.bias"}),
    ).images


def _similarity(guess: Tensor, truth: Truth) -> Tensor:
    return ssim(guess, truth.images)


def _picked(guess: Tensor, truth: Truth) -> Tensor:
    return identified(guess, truth.images, truth.lures)


def _recovered(guess: Tensor, truth: Truth) -> Tensor:
    error = nrmse(guess, truth.images)
    return torch.where(error.isfinite(), (error < _SAME).double(), torch.nan)


_OPTIMISED: Final[dict[str, Way]] = {
    attack.name: partial(_inverted, attack) for attack in (WARM, SMOOTH, INVERTING, SEE_THROUGH)
}
_LINEAR: Final[dict[str, Way]] = {"weights over bias": lambda seen, _: image_of_linear(seen)}
_ATTACKS: Final = (
    ImageAttack(
        id="G1",
        title="Image behind a first linear layer, in closed form",
        scene="linear",
        view="gradients of one image",
        metric="SSIM",
        ways=_LINEAR,
        score=_similarity,
        cheap=True,
        tier="fast",
    ),
    ImageAttack(
        id="G1i",
        title="Image behind a first linear layer, found again among 50",
        scene="linear",
        view="gradients of one image",
        metric="share of images whose guess is nearest to them, among 50 of the same source",
        ways=_LINEAR,
        score=_picked,
        control_margin=0.5,
        shrunk=False,
        cheap=True,
        chance=0.02,
    ),
    ImageAttack(
        id="G3",
        title="Image by gradient matching",
        scene="image",
        view="gradients of one image",
        metric="SSIM",
        ways=_OPTIMISED,
        score=_similarity,
    ),
    ImageAttack(
        id="G3i",
        title="Image by gradient matching, found again among 50",
        scene="image",
        view="gradients of one image",
        metric="share of images whose guess is nearest to them, among 50 of the same source",
        ways=_OPTIMISED,
        score=_picked,
        control_margin=0.5,
        shrunk=False,
        chance=0.02,
    ),
    ImageAttack(
        id="G4",
        title="Image behind a vision transformer's position embedding, in closed form",
        scene="transformer",
        view="gradients of one image",
        metric="SSIM",
        ways={"patches over positions": lambda seen, _: image_of_transformer(seen)},
        score=_similarity,
        cheap=True,
        tier="fast",
    ),
    ImageAttack(
        id="G5a",
        title="One image of a batch behind a layer that the server crafted",
        scene="imprint",
        view="gradients of a batch; the server chose the network",
        metric="share of images recovered with a relative error below 0.01",
        ways={"differences of bins": lambda seen, _: images_of_imprint(seen)},
        score=_recovered,
        statistic="rate",
        margin=0.03,
        shrunk=False,
        cheap=True,
        tier="fast",
        chance=0.0,
    ),
    ImageAttack(
        id="G5b",
        title="One image of a batch by a last layer that hides all other classes",
        scene="fishing",
        view="gradients of a batch; the server chose the last layer",
        metric="SSIM",
        ways={"fishing": partial(_fished, 0.0), "fishing, smooth": partial(_fished, 1e-2)},
        score=_similarity,
    ),
)

"""Pictures from answers: a decoder trained on public pairs, and the inversion of a stolen model.

Both draw what a class of a site looks like. Which known picture it is nearest to is scored apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.answers.laboratory import Floats, Knowledge, Whole
from attacks.answers.students import reader, students
from attacks.rows import Budget
from attacks.threat import ThreatError

_WIDTH: Final = 32
_BATCH: Final = 64
_RATE: Final = 3e-3
_LINEAR: Final = 0.1
_SURE: Final = 0.95  # quantile of the answers' lengths that an ideal answer has
_VARIED: Final = 0.1  # how much of a public picture's own look a start has
_STRIDE: Final = 0.05
_SMOOTH: Final = 0.01  # weight of total variation, per pixel


class Decoder(nn.Module):
    """Answers [B, k] to pictures [B, H, W] in [0, 1], by transposed convolutions."""

    def __init__(self, width: int, height: int, breadth: int) -> None:
        super().__init__()
        self._small = (-(-height // 4), -(-breadth // 4))
        self._size = (height, breadth)
        self.enter = nn.Linear(width, 2 * _WIDTH * self._small[0] * self._small[1])
        self.grow = nn.Sequential(
            nn.GELU(),
            nn.ConvTranspose2d(2 * _WIDTH, _WIDTH, 4, 2, 1),
            nn.GELU(),
            nn.ConvTranspose2d(_WIDTH, 1, 4, 2, 1),
        )

    def forward(self, answers: Tensor) -> Tensor:
        """Pictures [B, H, W]."""
        small = self.enter(answers).unflatten(1, (2 * _WIDTH, *self._small))
        height, breadth = self._size
        return torch.sigmoid(self.grow(small)[:, 0, :height, :breadth])


def paired_logits(answers: Floats, knowledge: Knowledge, budget: Budget, seed: int) -> Floats:
    """Pictures [sites, classes, H, W] of each class of each site (Takahashi, Liu and Liu 2023).

    answers [sites, rounds, rows, columns]. A decoder learns on the proxies which picture a pair
    belongs to, what the site says and what all others say on average. It is then given an ideal
    pair: the site is sure of the class, and the others are not, or are too. A second decoder sees
    the site alone (training-based inversion). Of the three, those pictures are taken that a linear
    model of the answers, learnt on the proxies, tells apart best. Source: arXiv 2304.11436.
    """
    pictures, classes = _pictures(knowledge), knowledge.classes
    own = answers[..., :classes].reshape(len(answers), -1, classes)
    others = (own.sum(0) - own) / max(len(own) - 1, 1)
    sure, sure_others = _ideal(own), _ideal(others)
    unsure = np.broadcast_to(others.mean(1, keepdims=True), sure.shape)
    paired = np.concatenate([own, others], -1)
    asked = [np.concatenate([sure, other], -1) for other in (unsure, sure_others)]
    each = replace(budget, seconds=budget.seconds / 2)
    drawn = [*_decoded(paired, asked, pictures, each, seed)]
    drawn += _decoded(own, [sure], pictures, each, seed)
    return max(drawn, key=lambda one: _told_apart(one, pictures, own.mean(0)))


def _ideal(said: Floats) -> Floats:
    """Answers [sites, classes, classes] as sure of each class as the surest of said [sites, n, …].

    As far from the mean as the 95 % quantile of all answers, towards one class.
    """
    classes = said.shape[-1]
    middle = said.mean(1, keepdims=True)
    length = np.quantile(np.linalg.norm(said - middle, axis=-1), _SURE, axis=1)
    directions = np.eye(classes) - 1 / classes
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    ideal: Floats = middle + length[:, None, None] * directions
    return ideal


def _decoded(
    pairs: Floats, asked: list[Floats], pictures: Floats, budget: Budget, seed: int
) -> list[Floats]:
    """Pictures [sites, classes, H, W] for each [sites, classes, k] asked of one decoder."""
    centre, unit = pairs.mean((0, 1)), np.maximum(pairs.std((0, 1)), 1e-12)
    decoder = _trained((pairs - centre) / unit, pictures, budget, seed)
    with torch.no_grad():
        ideals = [torch.from_numpy((one - centre) / unit).float() for one in asked]
        drawn = [decoder(one.flatten(0, 1)).double().numpy() for one in ideals]
    return [one.reshape(*pairs.shape[:1], -1, *one.shape[1:]) for one in drawn]


def _told_apart(drawn: Floats, pictures: Floats, said: Floats) -> float:
    """How far a linear model of the answers said [n, classes] prefers each picture's own class."""
    flat = pictures.reshape(len(pictures), -1)
    read = reader(flat[None], drawn.reshape(-1, flat.shape[1]), _LINEAR) @ said
    classes = said.shape[-1]
    logits = read.reshape(-1, classes, classes)
    preferred = logits.argmax(-1) == np.arange(classes)
    return float(preferred.mean())


def _trained(pairs: Floats, pictures: Floats, budget: Budget, seed: int) -> Decoder:
    """A decoder of pairs [sites, images, k], each with the picture [images, H, W] of its image."""
    inputs = torch.from_numpy(pairs).float().flatten(0, 1)
    targets = torch.from_numpy(pictures).float()
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = Decoder(inputs.shape[1], *targets.shape[1:])
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=_RATE)
    deadline = time.monotonic() + budget.seconds
    for _ in range(budget.iterations):
        rows = torch.randint(len(inputs), (_BATCH,), generator=generator)
        optimiser.zero_grad()
        loss = functional.mse_loss(decoder(inputs[rows]), targets[rows % len(targets)])
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if time.monotonic() > deadline:
            break
    return decoder


def stolen_model_pictures(
    answers: Floats,
    knowledge: Knowledge,
    backbone: Callable[[Tensor], Tensor],
    budget: Budget,
    seed: int,
) -> Floats:
    """Pictures [sites, classes, H, W] of each class of each site, from its student alone.

    The student on the public backbone (`attacks.answers.students`) stands in for the site's model.
    Two inversions are tried, and those pictures are taken that a linear model tells apart best, as
    in `paired_logits`: how public pictures correlate with the student's answers, and pictures that
    it is sure of, sought by gradient (Fredrikson, Jha and Ristenpart 2015).
    """
    pictures, given = _pictures(knowledge), answers[..., : knowledge.classes]
    said = students(given, knowledge, knowledge.proxies.reshape(len(pictures), -1))
    tried = [_correlated(said, pictures), _sought(given, knowledge, backbone, budget, seed)]
    return max(tried, key=lambda one: _told_apart(one, pictures, said.mean(0)))


def _correlated(said: Floats, pictures: Floats) -> Floats:
    """The public mean, moved along each class's classification image (Ahumada 1996).

    Pixels' covariance with an answer is its mean gradient times the pictures' own covariance
    (Stein's lemma), so it looks natural; noise averages out over all rows.
    """
    common = pictures.mean(0)
    logits = said - said.mean(-1, keepdims=True)
    moved = np.einsum("snc,nhw->schw", logits - logits.mean(1, keepdims=True), pictures - common)
    largest = np.abs(moved).max((-2, -1), keepdims=True)
    drawn: Floats = np.clip(common + moved / np.maximum(2 * largest, 1e-12), 0, 1)
    return drawn


def _sought(
    given: Floats,
    knowledge: Knowledge,
    backbone: Callable[[Tensor], Tensor],
    budget: Budget,
    seed: int,
) -> Floats:
    """Smooth pictures that the students are sure of, the best of several starts by that measure."""
    pictures, classes = _pictures(knowledge), knowledge.classes
    bias, weights = _linear_students(given, knowledge)
    random = np.random.default_rng(seed)
    chosen = random.integers(0, len(pictures), (budget.restarts, len(given), classes))
    starts = pictures.mean(0) + _VARIED * (pictures[chosen] - pictures.mean(0))
    images = torch.logit(torch.from_numpy(starts).clamp(0.02, 0.98)).requires_grad_()
    optimiser = torch.optim.Adam([images], lr=_STRIDE)
    wanted = torch.arange(classes).repeat(budget.restarts * len(given))

    def objective() -> Tensor:
        shown = torch.sigmoid(images)
        features = backbone(shown.flatten(0, 2)).double()
        logits = features.view(*shown.shape[:3], -1) @ weights + bias
        unsure = functional.cross_entropy(logits.flatten(0, 2), wanted, reduction="none")
        return unsure.view(shown.shape[:3]) + _SMOOTH * _variation(shown)

    deadline = time.monotonic() + budget.seconds
    for _ in range(budget.iterations):
        optimiser.zero_grad()
        objective().sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if time.monotonic() > deadline:
            break
    with torch.no_grad():
        best, shown = objective().argmin(0), torch.sigmoid(images)
        index = best[None, :, :, None, None].expand(1, *shown.shape[1:])
        found: Floats = shown.gather(0, index)[0].numpy()
    return found


def _linear_students(given: Floats, knowledge: Knowledge) -> tuple[Tensor, Tensor]:
    """Biases [sites, 1, classes] and weights [sites, d, classes] of each site's student."""
    features = knowledge.proxies.shape[-1]
    basis = np.vstack([np.zeros(features), np.eye(features)])
    said = students(given, knowledge, basis)
    return torch.from_numpy(said[:, :1]), torch.from_numpy(said[:, 1:] - said[:, :1])


def nearest(guesses: Floats, gallery: Floats) -> Whole:
    """For each guess [k, H, W] the place of the picture [n, H, W] that it correlates with most.

    What all pictures of the gallery have in common is taken out of both, and so is brightness.
    """
    common = gallery.mean(0)
    found: Whole = (_unit(guesses - common) @ _unit(gallery - common).T).argmax(1)
    return found


def _unit(pictures: Floats) -> Floats:
    flat = pictures.reshape(len(pictures), -1)
    flat = flat - flat.mean(1, keepdims=True)
    unit: Floats = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    return unit


def _variation(images: Tensor) -> Tensor:
    """Total variation of images [..., H, W], summed over pixels."""
    down = images.diff(dim=-2).abs().sum((-1, -2))
    return down + images.diff(dim=-1).abs().sum((-1, -2))


def _pictures(knowledge: Knowledge) -> Floats:
    if knowledge.pictures is None:
        raise ThreatError(
            "the attack is given no proxy images",
            where="pictures from answers",
            fix="hand it knowledge with pictures",
        )
    return knowledge.pictures.reshape(-1, *knowledge.pictures.shape[-2:])

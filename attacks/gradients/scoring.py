"""How guesses are held against the truth: matched to it, scored by the row, and shown beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from attacks.gradients.laboratory import Truth
from attacks.image_scores import identified, leakage_over_prior, matched, nrmse, psnr, ssim
from attacks.rows import Floats

_EXACT, _BEST_DB = 1e-4, 60.0
_PICTURES: Final = 8

Score = Callable[[Tensor, Truth], Tensor]
"""Scores guesses [n, *shape], matched to the truth: float[n], higher is worse for privacy."""


def mean_scores(score: Score, guesses: Sequence[Tensor], truths: Sequence[Truth]) -> Floats:
    """Mean score of every trial over its victim's images."""
    return np.array(
        [
            float(score(_fitted(guess, truth), truth).mean())
            for guess, truth in zip(guesses, truths, strict=True)
        ]
    )


def _fitted(guess: Tensor, truth: Truth) -> Tensor:
    """The guesses that stand for the victim's images, in their order."""
    if len(guess) < len(truth.images):
        guess = guess.repeat(-(-len(truth.images) // len(guess)), 1, 1, 1)
    return guess[matched(guess, truth.images)]


def further(
    guesses: Sequence[Tensor], blind: Sequence[Tensor], truths: Sequence[Truth]
) -> dict[str, float]:
    """Figures that are shown and not judged: the best image, and how many are exact.

    blind: for every trial the best guess without looking, which RDLV compares the SSIM with.
    """
    pairs, usual = (
        [(_fitted(guess, truth), truth.images) for guess, truth in zip(some, truths, strict=True)]
        for some in (guesses, blind)
    )
    errors = torch.cat([nrmse(*pair) for pair in pairs])
    decibels = torch.cat([psnr(*pair) for pair in pairs]).clamp_max(_BEST_DB)
    similar, prior = (torch.cat([ssim(*pair) for pair in some]) for some in (pairs, usual))
    return {
        "median NRMSE": float(errors.median()),
        "median RDLV of SSIM": float(leakage_over_prior(similar, prior).nanmedian()),
        "share of exact images": float((errors < _EXACT).double().mean()),
        "median PSNR in dB": float(decibels.median()),
        "highest SSIM": float(similar.max()),
        "identified": float(
            torch.cat(
                [
                    identified(pair[0], pair[1], truth.lures)
                    for pair, truth in zip(pairs, truths, strict=True)
                ]
            ).mean()
        ),
    }


def shown(guesses: Sequence[Tensor], mean: Tensor, truths: Sequence[Truth]) -> Floats:
    """The first trials' first image, what was made of it, and the mean image: [n, 3, H, W]."""
    pairs = list(zip(guesses, truths, strict=True))[:_PICTURES]
    rows = [torch.stack([t.images[0, 0], _fitted(g, t)[0, 0], mean[0, 0]]) for g, t in pairs]
    return torch.stack(rows).double().numpy()

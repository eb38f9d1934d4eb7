"""L1: which classes a site has, read from its answers to images that have nothing to do with them.

Shadow sites with known label shares teach a regression (`attacks.answers.regression`). Source: the
label distribution inference of Shi, Ouyang and Wang (PoPETs 2025, arXiv 2502.08001), made linear,
adaptive to noise, and with a prior to fall back to.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import numpy as np

from attacks.answers.laboratory import Floats, Knowledge
from attacks.answers.regression import learn, views
from attacks.statistics import kl_divergence, total_variation

_LEAST: Final = 1e-2  # no share is guessed to be smaller, so that no divergence is infinite


def guess_shares(
    observed: Floats, knowledge: Knowledge, shadows: Floats, shadow_shares: Floats
) -> tuple[Floats, Floats]:
    """Label shares [n, classes] of the sites observed, and the prior's guess [classes].

    observed [n, rounds, rows, columns]; shadows likewise, with shares that the attacker chose.
    """
    several = knowledge.multi_label
    loss = partial(divergence, multi_label=several)
    learned = learn(views(shadows, knowledge), shadow_shares, loss)
    guess = learned.guess(views(observed, knowledge))
    return _possible(guess, multi_label=several), _possible(learned.prior, multi_label=several)


def divergence(truth: Floats, guess: Floats, *, multi_label: bool) -> Floats:
    """KL(truth ‖ guess) in nats of label shares [..., classes] → [...].

    With several classes per record a share is a probability of its own, and it is the mean of the
    classes' KL. Guesses are first made possible: at least 0.01 each, and 1 in all if exclusive.
    """
    guess = _possible(guess, multi_label=multi_label)
    if not multi_label:
        return kl_divergence(truth, guess)
    mean: Floats = kl_divergence(_with_other(truth), _with_other(guess)).mean(-1)
    return mean


def distance(truth: Floats, guess: Floats, *, multi_label: bool) -> Floats:
    """Total variation of label shares [..., classes] → [...]; the classes' mean if several."""
    if not multi_label:
        return total_variation(truth, guess)
    mean: Floats = total_variation(_with_other(truth), _with_other(guess)).mean(-1)
    return mean


def _possible(guess: Floats, *, multi_label: bool) -> Floats:
    if multi_label:
        return np.clip(guess, _LEAST, 1 - _LEAST)
    raised = np.maximum(guess, _LEAST)
    shares: Floats = raised / raised.sum(-1, keepdims=True)
    return shares


def _with_other(shares: Floats) -> Floats:
    """Each share beside what is missing to 1: [..., classes, 2]."""
    return np.stack([shares, 1 - shares], -1)

"""Students of an observation: what a model that answers like the site would say elsewhere.

A student is a ridge regression from the proxies' public features to the observed answers, so its
word on any image is linear in the observation, and noise on the answers averages out over rows and
rounds as far as it can (the linear case of AdaMSA, Wan et al., arXiv 2606.08252).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from attacks.answers.laboratory import Floats, Knowledge

STRENGTHS: Final = tuple(float(s) for s in np.logspace(-5, 3, 17))


def reader(proxies: Floats, wanted: Floats, strength: float) -> Floats:
    """The matrix [n, rounds·rows] that turns answers to proxies into a student's logits.

    proxies [rounds, rows, d], wanted [n, d]: features. strength: the ridge penalty, in units of
    the features' mean square. There is an intercept, penalised alike.
    """
    asked, elsewhere = _with_one(proxies.reshape(-1, proxies.shape[-1])), _with_one(wanted)
    gram = asked.T @ asked
    penalty = strength * max(float(np.trace(gram)) / len(gram), np.finfo(float).tiny)
    solved = np.linalg.solve(gram + penalty * np.eye(len(gram)), asked.T)
    matrix: Floats = elsewhere @ solved
    return matrix


def strength_of(answers: Floats, proxies: Floats) -> float:
    """The penalty under which rows left out are said best, over all sites and columns together.

    answers [n, rounds, rows, columns]. By generalised cross-validation (Golub, Heath and Wahba
    1979); noise drives it up.
    """
    asked = _with_one(proxies.reshape(-1, proxies.shape[-1]))
    values, vectors = np.linalg.eigh(asked.T @ asked)
    values = np.maximum(values, 0)
    targets = np.moveaxis(answers, 0, 2).reshape(len(asked), -1)
    turned = (vectors.T @ (asked.T @ targets)) ** 2
    energy, typical = float((targets**2).sum()), max(float(values.mean()), np.finfo(float).tiny)

    def loss(strength: float) -> float:
        kept = values + strength * typical
        # ‖y − Hy‖² = ‖y‖² − 2·yᵀHy + ‖Hy‖², all in the eigenbasis of the features.
        residual = energy - ((2 / kept - values / kept**2)[:, None] * turned).sum()
        freedom = float((values / kept).sum())
        return float(residual) / max(len(asked) - freedom, 1e-9) ** 2

    return min(STRENGTHS, key=loss)


def students(
    answers: Floats, knowledge: Knowledge, wanted: Floats, strength: float | None = None
) -> Floats:
    """Logits [n, m, classes] that each site's student gives to images of features [m, d]."""
    given = answers[..., : knowledge.classes]
    strength = strength_of(given, knowledge.proxies) if strength is None else strength
    matrix = reader(knowledge.proxies, wanted, strength)
    flat = given.reshape(len(given), -1, knowledge.classes)
    logits: Floats = np.einsum("mr,nrc->nmc", matrix, flat)
    return logits


def _with_one(features: Floats) -> Floats:
    return np.hstack([features, np.ones((len(features), 1))])

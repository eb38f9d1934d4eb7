"""A1: what several sums tell of one client: n against n − 1, dropouts, colluders, neighbours.

All of these are linear equations with integer weights. The attacker solves them for the victim,
weighs in what it expects of every client, and takes out as much as is noise. Where the equations
determine the victim and there is no noise, the result is exact but for rounding.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from attacks.answers.laboratory import Floats
from attacks.sums.laboratory import Incident, Published

_SURE: Final = 3.0


def victim_answers(published: Published, victim: int, prior: Floats) -> Floats:
    """The best linear guess [size] of the victim's answers before noise.

    prior [size]: the expected answers of any client. Clients scatter about it independently, by a
    variance that the residuals of the sums tell; each one's own noise is part of what it sent.
    Without any sum the guess is the prior.
    """
    weights = published.weights.astype(np.float64)
    if not len(weights):
        return prior.copy()
    residual = published.totals - weights.sum(1)[:, None] * prior
    gram = weights @ weights.T
    scatter = float((residual**2).mean(1).sum() / np.trace(gram))
    # What noise alone may well reach is no signal (deviation of a mean of squares).
    chance = published.noise**2 * (1 + _SURE * np.sqrt(2 / residual.size))
    signal = 1 - published.noise**2 / scatter if scatter > chance else 0.0
    taken: Floats = weights[:, victim] @ np.linalg.pinv(gram, hermitian=True) @ residual
    return prior + signal * taken


def shown_alone(incident: Incident) -> Floats:
    """The guess from the first sum by itself, the one that was to be published."""
    published = incident.published
    first = Published(published.weights[:1], published.totals[:1], published.noise)
    return victim_answers(first, incident.victim, incident.prior)


def closeness(guess: Floats, answers: Floats, prior: Floats) -> float:
    """1 − ‖guess − answers‖/‖prior − answers‖: 1 if exact, 0 if no better than the prior.

    A guess that is worse than twice the prior's distance counts −1.
    """
    apart = float(np.linalg.norm(prior - answers))
    return max(1 - float(np.linalg.norm(guess - answers)) / apart, -1.0) if apart else 0.0


def relative_error(guess: Floats, answers: Floats) -> float:
    """‖guess − answers‖/‖answers‖; infinite where there is nothing to be found."""
    size = float(np.linalg.norm(answers))
    return float(np.linalg.norm(guess - answers)) / size if size else np.inf

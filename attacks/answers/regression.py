"""Learning from shadow sites what an observation says, and no more than it says.

Ridge regression on several views of the whole matrix of answers. View, penalty and the share by
which a guess may leave the prior are chosen by the shadows' leave-one-out loss, so the attacker
adapts to clip and noise by itself. Where none is better than the prior, the guess is the prior.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from attacks.answers.laboratory import Floats, Knowledge
from attacks.answers.students import reader
from attacks.threat import ThreatError

Loss = Callable[[Floats, Floats], Floats]
"""(truth [n, k], guess [n, k]) → [n], lower is better."""

_PENALTIES: Final = np.logspace(-4, 3, 15)  # of the kernel's mean eigenvalue
_SHARES: Final = (0.25, 0.5, 0.75, 1.0)
_STUDENT: Final = 0.1
_SURE: Final = 3.0
_FEWEST: Final = 8


def views(answers: Floats, knowledge: Knowledge) -> dict[str, Floats]:
    """What of answers [n, rounds, rows, columns] may be looked at: name → [n, numbers].

    rows: every number. columns: means over all rounds and rows, where noise averages out, and
    second moments without the noise's own. student: the coefficients of a linear model of the
    answers on the proxies' features, smooth where a row alone is noisy.
    """
    flat = answers.reshape(len(answers), -1, answers.shape[-1])
    moments = np.einsum("nrc,nrd->ncd", flat, flat) / flat.shape[1]
    moments -= knowledge.noise**2 * np.eye(flat.shape[-1])
    upper = np.triu_indices(flat.shape[-1])
    features = knowledge.proxies.shape[-1]
    student = reader(knowledge.proxies, np.eye(features), _STUDENT)
    return {
        "rows": flat.reshape(len(flat), -1),
        "columns": np.hstack([_scaled(flat.mean(1)), _scaled(moments[:, *upper])]),
        "student": np.einsum("dr,nrc->ndc", student, flat).reshape(len(flat), -1),
    }


@dataclass(frozen=True, eq=False)
class Learned:
    """A guess [n, k] from views of observations; `share` 0 is the prior itself.

    gain: the leave-one-out loss that was saved against the prior, mean over shadows.
    """

    view: str
    centre: Floats
    weights: Floats
    prior: Floats
    share: float
    gain: float

    def guess(self, seen: Mapping[str, Floats]) -> Floats:
        """One guess [k] per observation."""
        moved = (seen[self.view] - self.centre) @ self.weights
        guess: Floats = self.prior + self.share * moved
        return guess


def learn(seen: Mapping[str, Floats], truth: Floats, loss: Loss) -> Learned:
    """The best of all views, penalties and shares for shadows with known `truth` [n, k].

    It is used only where it beats the prior by three standard errors, for it is the best of many.
    ThreatError for fewer than eight shadows.
    """
    count = len(truth)
    if count < _FEWEST:
        raise ThreatError(
            f"{count} shadow sites",
            where="learning from shadows",
            fix=f"draw {_FEWEST} or more",
        )
    prior = truth.mean(0)
    left_out = (count * prior - truth) / (count - 1)
    lost = loss(truth, left_out)
    best = Learned(next(iter(seen)), np.zeros(1), np.zeros((1, truth.shape[1])), prior, 0.0, 0.0)
    weights: Floats | None = None
    for view, numbers in seen.items():
        centre = numbers.mean(0)
        for found, moved in _leave_one_out(numbers - centre, truth - prior):
            for share in _SHARES:
                saved = lost - loss(truth, left_out + share * (moved - (left_out - prior)))
                gain = float(saved.mean())
                if gain > max(best.gain, _SURE * float(saved.std()) / np.sqrt(count)):
                    best = Learned(view, centre, found, prior, share, gain)
                    weights = found
    if weights is None:
        width = seen[best.view].shape[1]
        return Learned(best.view, np.zeros(width), np.zeros((width, len(prior))), prior, 0.0, 0.0)
    return best


def _leave_one_out(numbers: Floats, truth: Floats) -> Iterator[tuple[Floats, Floats]]:
    """Per penalty: weights [p, k], and each shadow's guess [n, k] by the others, both centred.

    For ridge regression with a free intercept the residual of a left-out point is its residual
    divided by 1 − h, h its own leverage (Golub, Heath and Wahba 1979).
    """
    count = len(numbers)
    kernel = numbers @ numbers.T
    values, vectors = np.linalg.eigh(kernel)
    values = np.maximum(values, 0)
    typical = float(values.mean()) or 1.0
    turned = vectors.T @ truth
    for penalty in _PENALTIES * typical:
        shrunk = values / (values + penalty)
        leverage = (vectors**2) @ shrunk + 1 / count
        fitted = vectors @ (shrunk[:, None] * turned)
        residual = (truth - fitted) / np.maximum(1 - leverage, 1e-9)[:, None]
        weights = numbers.T @ (vectors @ (turned / (values + penalty)[:, None]))
        yield weights, truth - residual


def _scaled(numbers: Floats) -> Floats:
    """In units of the root mean square over everything, so that no block drowns another."""
    size = float(np.sqrt(np.mean(numbers**2)))
    return numbers / size if size else numbers

"""FedAUX' certainty: how much more a public image looks like a site's own images than like others.

Source: Sattler, Korjakow, Rischke and Samek 2021, "FedAUX" (arXiv 2102.02514): a logistic
regression of local against public images on frozen public features; a site's answer on a public
image counts by the probability of "local".

The authors' code bounds the regression's sensitivity by 2/(nλ), which holds for an objective with
the *mean* of n losses (Chaudhuri, Monteleoni and Sarwate 2011, Corollary 8), and solves one with
their *sum*: it understates by n. It also scales by the largest private feature and leaves the
intercept free. Here the objective is the mean, features are bounded by public figures, the
intercept is a weight like the others, and all images of a patient count as one record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor

Matrix = NDArray[np.float64]

_FLOOR: Final = 1e-8


@dataclass(frozen=True, eq=False)
class Bounds:
    """Where public features lie: their mean [d], and the largest distance from it."""

    centre: Tensor
    radius: float

    @classmethod
    def of(cls, public: Tensor) -> Bounds:
        """Of public features [P, d]."""
        centre = public.double().mean(0)
        return cls(centre, max(float((public - centre).norm(dim=1).max()), _FLOOR))

    def bounded(self, features: Tensor) -> Matrix:
        """Features [n, d] as rows of norm 1 at most, [n, d + 1], a constant for the intercept last.

        Every row is clipped for itself, so that no record moves another's.
        """
        scaled = (features.double() - self.centre) / self.radius
        clipped = scaled / scaled.norm(dim=1, keepdim=True).clamp_min(1.0)
        constant = torch.ones(len(clipped), 1, dtype=torch.float64)
        rows: Matrix = (torch.cat([clipped, constant], 1) / 2**0.5).numpy()
        return rows


def fit_certainty(
    local: Matrix, patients: Sequence[str], public: Matrix, decay: float, tolerance: float = 1e-8
) -> Matrix:
    """The weights [d + 1] that tell rows of `local` from rows of `public`, both bounded.

    Minimises 1/n·Σ losses + λ/2·‖w‖², λ = `decay`, n = `size_of` the two; each patient's images
    share one loss. Called at a site; replacing one patient moves w by `sensitivity` at most.
    """
    images = Counter(patients)
    shares = [1 / images[patient] for patient in patients] + [1.0] * len(public)
    labels = np.repeat([1, 0], [len(local), len(public)])
    # sklearn minimises ‖w‖²/2 + C·Σ losses, the same for C = 1/(nλ).
    solver = LogisticRegression(
        C=1 / (size_of(patients, len(public)) * decay),
        fit_intercept=False,
        solver="newton-cholesky",
        tol=tolerance,
        max_iter=200,
    )
    solver.fit(np.concatenate([local, public]), labels, sample_weight=shares)
    weights: Matrix = solver.coef_[0].astype(np.float64)
    return weights


def size_of(patients: Sequence[str], public: int) -> int:
    """n: patients of a site and public images."""
    return len(set(patients)) + public


def sensitivity(records: int, decay: float) -> float:
    """How far replacing one of n records moves the weights at most, in L2: 2/(nλ).

    In the solver's units, whose penalty on the sum is λ' = nλ, this is 2/λ'. Noise that is to
    hide a record in the weights has to be calibrated to it.
    """
    return 2 / (records * decay)


def certainty(weights: Matrix, rows: Matrix) -> Tensor:
    """P(local) + 1e-8 of bounded rows [n, d + 1]: [n, 1], as the paper's s."""
    return torch.sigmoid(torch.from_numpy(rows @ weights)).unsqueeze(1) + _FLOOR

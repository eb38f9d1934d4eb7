"""A hospital that took no part: the central model fitted to a few of its own labelled images.

Hospitals contradict each other: what tells two classes apart at one may rank another's images in
reverse, and no image without a label says so (docs/results/natimg-fl.md). So the newcomer labels a
few. The answers of the central model's heads, and its public features, are the inputs of a shrunk
logistic regression; how far to trust heads and labels is chosen by cross-validation over the
newcomer's patients. Nothing leaves the newcomer and no ledger is charged: of other hospitals it
sees the central model alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from torch import Tensor

from protocols.errors import DataError
from secure_natfl.models import Network
from secure_natfl.natural_coordinates import natural_coordinates
from secure_natfl.training import Examples, features_of

_STRENGTHS: Final = (1.0, 10.0, 100.0, 1000.0)
"""Of the labels, against the squares of the weights."""
_TRUSTS: Final = (0.3, 1.0, 3.0, 10.0)
"""Scale of the heads' answers among the inputs; all public features together have scale 1."""
_FOLDS: Final = 20
_STEEPEST: Final = 30.0

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Fitted:
    """A newcomer's network of one head, and what was chosen for it.

    losses: per class that was fitted, mean log loss on labelled patients that were held back; a
    guess has 0.69. trusts: the same classes' scale of the heads' answers, 0 where there are none.
    """

    network: Network
    losses: tuple[float, ...]
    trusts: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class _Told:
    """Labelled images: features and 1 [n, d + 1], whether each shows the class, its patient."""

    rows: Matrix
    positive: NDArray[np.bool_]
    patients: NDArray[np.str_]


def fit_newcomer(
    central: Network,
    open_features: Tensor,
    labelled: Examples,
    patients: Sequence[str],
    *,
    heads: bool = True,
) -> Fitted:
    """A network for a hospital that took no part, from images of its own; the newcomer calls it.

    open_features [P, d]: the natural images' under the central backbone. labelled: images of these
    `patients`, with the federation's classes in its order; 20 of 10 patients and more. heads: False
    leaves them out, the control without a federation. DataError where a class is shown, or not
    shown, by fewer than two patients.
    """
    rows = np.pad(
        features_of(central.backbone, labelled.images).double().numpy(),
        ((0, 0), (0, 1)),
        constant_values=1.0,
    )
    public = _scaled(_public(open_features), rows, together=True)
    two = central.classes == 2 and not labelled.multi_label
    weights, losses, trusts = [], [], []
    for column in [1] if two else range(central.classes):
        known = labelled.known[:, column].numpy() > 0
        shown = labelled.targets[:, column].numpy() > 0.5
        told = _Told(rows[known], shown[known], np.array(patients)[known])
        _check(told, column)
        answers = _answers(central, column, multi_label=labelled.multi_label)
        answers = _scaled(answers, rows, together=False)
        loss, trust, weight = _fit(told, answers if heads else None, public)
        weights.append(weight)
        losses.append(loss)
        trusts.append(trust)
    both = [-weights[0] / 2, weights[0] / 2] if two else weights
    return Fitted(_network(central, np.stack(both)), tuple(losses), tuple(trusts))


def _fit(told: _Told, answers: Matrix | None, public: Matrix) -> tuple[float, float, Matrix]:
    """Loss, trust and weights [d + 1] on features and 1 of the best strengths."""
    best = math.inf, 0.0, 0.0, public
    trusts = (0.0,) if answers is None else _TRUSTS
    for trust in trusts:
        lift = public if answers is None else np.concatenate([trust * answers, public])
        # Shrunk weights lie in the span of the inputs: few directions say all.
        turned, sizes, directions = np.linalg.svd(told.rows @ lift.T, full_matrices=False)
        for strength in _STRENGTHS:
            loss = _held_back_loss(told, turned * sizes, strength)
            if loss < best[0]:
                best = loss, trust, strength, directions @ lift
    loss, trust, strength, lift = best
    weight, bias = _logistic(told.rows @ lift.T, told.positive, strength)
    found: Matrix = weight @ lift
    found[-1] += bias
    return loss, trust, found


def _held_back_loss(told: _Told, inputs: Matrix, strength: float) -> float:
    losses = np.full(len(inputs), math.log(2))
    cutter = GroupKFold(min(_FOLDS, len(set(told.patients))))
    for seen, unseen in cutter.split(inputs, groups=told.patients):
        if len(set(told.positive[seen])) == 2:
            weight, bias = _logistic(inputs[seen], told.positive[seen], strength)
            logits = np.clip(inputs[unseen] @ weight + bias, -_STEEPEST, _STEEPEST)
            losses[unseen] = np.logaddexp(0, np.where(told.positive[unseen], -logits, logits))
    return float(losses.mean())


def _logistic(inputs: Matrix, positive: NDArray[np.bool_], strength: float) -> tuple[Matrix, float]:
    """Weights [p] and bias of shrunk logistic regression."""
    model = LogisticRegression(C=strength, solver="newton-cholesky")
    model.fit(inputs, positive)
    return model.coef_[0], float(model.intercept_[0])


def _public(open_features: Tensor) -> Matrix:
    """Features and 1 to natural-white coordinates, as a matrix [d + 1, d + 1]."""
    space, width = natural_coordinates(open_features), open_features.shape[1]
    origin = space.inputs(torch.zeros(1, width))
    slopes = space.inputs(torch.eye(width)) - origin
    return np.asarray(torch.cat([slopes, origin]).T.numpy())


def _answers(central: Network, column: int, *, multi_label: bool) -> Matrix:
    """Features and 1 to what each head says of one class, [heads, d + 1]."""
    both = torch.cat([central.xray.weight, central.xray.bias[:, None]], 1).detach().double()
    rows = both.reshape(central.groups, central.classes, -1)
    if not multi_label:
        rows = rows - rows.mean(1, keepdim=True)
    return np.asarray(rows[:, column].numpy())


def _scaled(lift: Matrix, rows: Matrix, *, together: bool) -> Matrix:
    """The same inputs with mean 0 and deviation 1 over `rows`, each or all together."""
    values = rows @ lift.T
    spread = values.std(0)
    scale = np.full(len(lift), np.linalg.norm(spread)) if together else spread
    moved = lift.copy()
    moved[:, -1] -= values.mean(0)
    return np.asarray(moved / np.maximum(scale, 1e-9)[:, None])


@torch.no_grad()
def _network(central: Network, rows: Matrix) -> Network:
    """The central backbone and natural head, with the X-ray head `rows` [C, d + 1]."""
    natural = central.natural.out_features
    network = Network(copy.deepcopy(central.backbone), central.features, central.classes, natural)
    network.xray.weight.copy_(torch.from_numpy(rows[:, :-1]))
    network.xray.bias.copy_(torch.from_numpy(rows[:, -1]))
    network.natural.load_state_dict(central.natural.state_dict())
    return network.eval()


def _check(told: _Told, column: int) -> None:
    for shown in (True, False):
        if len(set(told.patients[told.positive == shown])) < 2:
            raise DataError(
                f"fewer than two labelled patients {'show' if shown else 'do not show'} "
                f"class {column + 1}",
                why="nothing can be fitted, and checked on a patient held back",
                fix="label images of more patients, of both kinds",
            )

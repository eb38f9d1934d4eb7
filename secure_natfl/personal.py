"""A site's own model beside the central one, where the site's images speak for it.

A site with few patients learns from others what it cannot learn alone; where the central model
knows the site's images worse than the site does, it is left out. The choice never leaves the site.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

from secure_natfl.metrics import Truth, auroc_of
from secure_natfl.models import Network, SideBySide
from secure_natfl.training import Examples, features_of, logits_of

_FOLDS: Final = 5


def answering(
    own: Network,
    central: Network,
    head: int,
    train: Examples,
    patients: Sequence[str],
    features: Tensor | None = None,
) -> Network:
    """The network that a site uses: its `own`, or the mean of it and head `head` of `central`.

    Both are asked about the site's training images. The central model saw none of them; it enters
    where it ranks them at least as well as a head of the site's own on the central features ranks
    patients that it did not see. Neither network is changed. features [N, d]: the central
    network's, of these images, where they are known. Called after `personalise`.
    """
    if features is None:
        features = features_of(central.backbone, train.images)
    rows = slice(head * central.classes, (head + 1) * central.classes)
    logits = (features @ central.xray.weight[rows].T + central.xray.bias[rows]).detach()
    if not _worth_it(features, logits, train, patients):
        return own
    return side_by_side(own, central, head, train, logits)


def side_by_side(
    own: Network, central: Network, head: int, train: Examples, theirs: Tensor | None = None
) -> Network:
    """One network whose X-ray logits are the mean of both, the central ones moved to own scale.

    Scale is the spread over the images of `train` about each class's mean, one number for all
    classes: the mean keeps the calibration of `own`. The natural head is that of `own`. `theirs`:
    what the central head answers on these images, [N, C], where it is known.
    """
    ours = logits_of(own, train.images)[:, 0]
    if theirs is None:
        theirs = logits_of(central, train.images)[:, head]
    ratio = _spread(ours, train) / max(_spread(theirs, train), 1e-6)
    classes, rows = own.classes, slice(head * own.classes, (head + 1) * own.classes)
    backbone = copy.deepcopy(SideBySide([own.backbone, central.backbone]))
    natural = own.natural.out_features
    joined = Network(backbone, own.features + central.features, classes, natural)
    with torch.no_grad():
        weight, bias = central.xray.weight[rows], central.xray.bias[rows]
        joined.xray.weight.copy_(torch.cat([own.xray.weight, ratio * weight], 1) / 2)
        offset = ratio * (bias - theirs.mean(0)) + ours.mean(0)
        joined.xray.bias.copy_((own.xray.bias + offset) / 2)
        joined.natural.weight.zero_()
        joined.natural.weight[:, : own.features].copy_(own.natural.weight)
        joined.natural.bias.copy_(own.natural.bias)
    return joined.eval()


def _worth_it(features: Tensor, logits: Tensor, train: Examples, patients: Sequence[str]) -> bool:
    """Whether the central head ranks no worse than one of the site's own on unseen patients.

    features [N, d], logits [N, C]: the central network's, of the site's training images. True
    where a class is missing and nothing can be ranked: such a site cannot tell them apart.
    """
    truth = Truth(train.targets.numpy(), train.known.numpy(), tuple(patients), "patient", True)
    if not train.multi_label:
        logits = logits - logits.mean(1, keepdim=True)
    theirs = auroc_of([logits.double().numpy()], truth)
    ours = auroc_of([_unseen(features.double().numpy(), truth)], truth)
    return theirs is None or ours is None or theirs >= ours


def _unseen(features: NDArray[np.float64], truth: Truth) -> NDArray[np.float64]:
    """Scores [n, C] of each patient by heads that other patients of the site taught."""
    scaled = (features - features.mean(0)) / features.std(0).clip(1e-6)
    scaled /= np.sqrt(features.shape[1])
    found = np.zeros_like(truth.targets, np.float64)
    _, groups = np.unique(np.array(truth.patients), return_inverse=True)
    for c in range(found.shape[1]):
        rows = np.flatnonzero(truth.known[:, c])
        labels = truth.targets[rows, c] > 0.5
        folds = min(_FOLDS, int(np.bincount(labels, minlength=2).min()), len(set(groups[rows])))
        if folds < 2:
            continue
        cutter = StratifiedGroupKFold(folds)
        with warnings.catch_warnings():
            # A fold without one class, and a head that has not quite settled, cost a little.
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("ignore", ConvergenceWarning)
            for seen, unseen in cutter.split(scaled[rows], labels, groups[rows]):
                if len(set(labels[seen])) == 2:
                    taught = LogisticRegression(C=30.0, max_iter=200)
                    taught.fit(scaled[rows[seen]], labels[seen])
                    found[rows[unseen], c] = taught.decision_function(scaled[rows[unseen]])
    return found


def _spread(logits: Tensor, train: Examples) -> float:
    """Root mean square about each class's mean; of a single label only differences count."""
    if not train.multi_label:
        logits = logits - logits.mean(1, keepdim=True)
    return float((logits - logits.mean(0)).square().mean().sqrt())

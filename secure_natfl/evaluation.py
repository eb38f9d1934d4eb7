"""From networks to probabilities to scores, hospital by hospital.

Simulated sites of one hospital share its test patients: the hospital's test part is that of all
its sites together, and every arm is scored on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secure_natfl import metrics
from secure_natfl.federation import Federation, Site, joined
from secure_natfl.metrics import Truth, auroc_of, score
from secure_natfl.models import Network
from secure_natfl.report.model import Scores
from secure_natfl.training import Examples, logits_of

Probabilities = NDArray[np.float64]

_BATCH = 128
_LARGEST = 1e4


@dataclass(frozen=True, eq=False)
class TestPart:
    """Held-back images of one hospital (or one site) with what is known of them."""

    __test__ = False

    examples: Examples
    truth: Truth


def hospital_tests(federation: Federation) -> dict[str, TestPart]:
    """Hospital → the test parts of all its sites as one."""
    return {name: _test_part(sites) for name, sites in federation.hospitals.items()}


def site_test(site: Site) -> TestPart:
    """One site's own test part."""
    return _test_part([site])


def predict(network: Network, part: TestPart, head: int = 0) -> Probabilities:
    """Class probabilities [n, C] of one head: softmax, or sigmoid in a multi-label task."""
    logits = logits_of(network, part.examples.images)[:, head].double()
    found: Tensor = (
        torch.sigmoid(logits) if part.truth.multi_label else torch.softmax(logits, dim=-1)
    )
    return np.asarray(found.numpy(), dtype=np.float64)


@torch.no_grad()
def probabilities(model: nn.Module, part: TestPart) -> Probabilities:
    """Class probabilities in the shape of the targets, of a model from images to logits [n, C, …].

    What `SummedSystem.answering` gives is scored so. The model is put into evaluation mode. One
    that noise has ruined may answer with no number: that says nothing for any class.
    """
    model.eval()
    said = torch.cat([model(batch) for batch in torch.split(part.examples.images, _BATCH)])
    logits = torch.nan_to_num(said, nan=0.0, posinf=_LARGEST, neginf=-_LARGEST)
    found = torch.sigmoid(logits) if part.truth.multi_label else torch.softmax(logits, dim=1)
    return np.asarray(found.double().numpy())


def scores(predictions: Sequence[Probabilities], part: TestPart) -> Scores:
    """Mean scores of one or several models with bootstrap intervals."""
    return score(predictions, part.truth)


def quick_auroc(predictions: Sequence[Probabilities], part: TestPart) -> float | None:
    """Mean AUROC without an interval, for learning curves; None on one class."""
    return auroc_of(predictions, part.truth)


def quick_dice(predictions: Sequence[Probabilities], part: TestPart) -> float | None:
    """Mean Dice score without an interval, for learning curves; None where there are no masks."""
    return metrics.quick_dice(predictions, part.truth)


def _test_part(sites: Sequence[Site]) -> TestPart:
    examples = joined([site.test for site in sites])
    truth = Truth(
        examples.targets.numpy(),
        examples.known.numpy(),
        tuple(patient for site in sites for patient in site.test_patients),
        sites[0].unit,
        examples.multi_label,
    )
    return TestPart(examples, truth)

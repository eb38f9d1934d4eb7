"""What each distillation baseline says about public images, and what it makes of the mean of it.

FedMD: Li and Wang 2019 (arXiv 1910.03581): the mean of logits, met in absolute distance, as in the
authors' code. FedDF: Lin, Kong, Stich and Jaggi 2020 (arXiv 2006.07242), Algorithm 1:
the softmax of the mean of logits, met in KL divergence. DS-FL: Itahara, Nishio, Koda, Morikura and
Yamamoto 2021 (arXiv 2008.06180): the mean of probabilities, its entropy reduced by a temperature
below 1 ("ERA"). FedAUX: Sattler, Korjakow, Rischke and Samek 2021 (arXiv 2102.02514): logits in a
mean that is weighted by each site's certainty; Σ s·z and Σ s are both sent.

Where an image may show several findings, each is a choice between two classes; the papers know
single classes only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from protocols.quantize import Layout, Segment
from secure_natfl.training import Schedule, distillation_losses, fit

Method = Literal["fedmd", "feddf", "ds-fl", "fedaux"]

ANSWERS: Final = "answers"
CERTAINTY: Final = "certainty"
_FEWEST: Final = 0.01


@dataclass(frozen=True)
class Rule:
    """One method on one task. sharpening: DS-FL's temperature.

    Answers are sent divided by √rows: the joint norm that is clipped is their root mean square
    over images, whatever number is asked.
    """

    method: Method
    rows: int
    classes: int
    multi_label: bool
    sharpening: float

    @property
    def layout(self) -> Layout:
        """What a site sends: answers [rows, C], and the certainty of each where it counts."""
        answers = Segment(ANSWERS, self.rows, self.classes)
        if self.method != "fedaux":
            return Layout((answers,))
        return Layout((answers, Segment(CERTAINTY, self.rows, 1)))

    def said(self, logits: Tensor, certainty: Tensor | None) -> NDArray[Any]:
        """At a site: logits [rows, C], and for FedAUX s [rows, 1] → the vector [layout size]."""
        answers = logits.double()
        if self.method == "ds-fl":
            answers = answers.sigmoid() if self.multi_label else answers.softmax(-1)
        matrices = {ANSWERS: answers}
        if certainty is not None:
            matrices = {ANSWERS: certainty * answers, CERTAINTY: certainty}
        scale = self.rows**-0.5
        return self.layout.pack({name: (m * scale).numpy() for name, m in matrices.items()})

    def target(self, mean: NDArray[Any], noise: float) -> Tensor:
        """At whoever reads the mean of what sites said: logits [rows, C] to learn from.

        noise: standard deviation on each number of the mean; a certainty below twice that, or
        below a hundredth of the usual one, divides as if it were so much.
        """
        parts = self.layout.unpack(mean * self.rows**0.5)
        answers = torch.from_numpy(parts[ANSWERS])
        if self.method == "ds-fl":
            # The softmax of p/T; of a finding and its absence only the difference counts.
            centred = 2 * answers - 1 if self.multi_label else answers
            answers = centred / self.sharpening
        if self.method == "fedaux":
            weight = torch.from_numpy(parts[CERTAINTY])
            usual = float(weight.median().clamp_min(0))
            least = max(_FEWEST * usual, 2 * noise * self.rows**0.5, 1e-8)
            answers = answers / weight.clamp_min(least)
        return answers.float()

    def losses(self, student: Tensor, target: Tensor) -> Tensor:
        """Of each row: student and target [n, C] → [n]."""
        if self.method == "fedmd":
            return functional.l1_loss(student, target, reduction="none").mean(-1)
        return distillation_losses(student, target, 1.0, multi_label=self.multi_label)

    def learn(
        self,
        network: nn.Module,
        images: Tensor,
        target: Tensor,
        schedule: Schedule,
        generator: torch.Generator,
    ) -> float:
        """Fit a network to the target [rows, C] of public images, in place; the last epoch's loss.

        Images are shown as they were when they were answered, neither mirrored nor shifted.
        """

        def loss(rows: Tensor) -> Tensor:
            return self.losses(network(images[rows]), target[rows]).mean()

        return fit(network, loss, len(images), schedule, generator)

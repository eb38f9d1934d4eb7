"""All private records of a run as one pool, halved by patient: sites to attack, and shadows.

A laboratory draws fresh sites from it. Attacked sites and the attacker's shadows never share a
patient; sites of one half may share some, which is stated with the results.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secure_natfl.federation import Federation, joined
from secure_natfl.systems.speaking import PublicBackbone
from secure_natfl.training import features_of

Rows = NDArray[np.int64]
_CONCENTRATION = 0.5  # of the Dirichlet law of label shares: most sites lean to one class


@dataclass(frozen=True, eq=False)
class Pool:
    """Records: features [N, d] as heads take them, images [N, 1, H, W], targets and known [N, C].

    hospital [N]: which of `hospitals` a record is from. patient [N]: a number of its own for each.
    shadow [N]: whether the attacker has it.
    """

    features: Tensor
    images: Tensor
    targets: Tensor
    known: Tensor
    hospital: Rows
    hospitals: tuple[str, ...]
    patient: Rows
    shadow: NDArray[np.bool_]
    multi_label: bool

    @classmethod
    def of(cls, federation: Federation, backbone: PublicBackbone) -> Pool:
        """Training and test records of all sites; a patient's half follows from its name alone."""
        parts = joined([part for site in federation.sites for part in (site.train, site.test)])
        hospitals = tuple(federation.hospitals)
        hospital: list[int] = []
        patients: list[str] = []
        for site in federation.sites:
            names = (*site.train_patients, *site.test_patients)
            patients += [f"{site.hospital}/{name}" for name in names]
            hospital += [hospitals.index(site.hospital)] * len(names)
        raw = features_of(backbone.network.backbone, parts.images)
        return cls(
            backbone.standardised(raw),
            parts.images,
            parts.targets,
            parts.known,
            np.array(hospital),
            hospitals,
            np.unique(patients, return_inverse=True)[1].reshape(-1),
            np.array([hashlib.sha256(name.encode()).digest()[0] % 2 == 1 for name in patients]),
            parts.multi_label,
        )

    def half(self, *, shadow: bool) -> Rows:
        """The rows of one half."""
        return np.flatnonzero(self.shadow == shadow)

    def patients(self, *, shadow: bool) -> Rows:
        """The first record of each patient of one half."""
        half = self.half(shadow=shadow)
        return half[np.sort(np.unique(self.patient[half], return_index=True)[1])]

    def largest(self, wished: int) -> int:
        """Records of a drawn site: as many as wished, or a third of the smaller half."""
        return min(wished, int(min(self.shadow.sum(), (~self.shadow).sum())) // 3)

    def site(self, most: int, random: np.random.Generator, *, shadow: bool) -> Rows:
        """A site with label shares of its own, of most/2 to `most` records.

        It is of one hospital, if that has half as many records again in this half, and of all of
        them otherwise: a site with nearly all of its hospital's records could have no shares of
        its own.
        """
        half, least = self.half(shadow=shadow), most // 2
        at = random.integers(len(self.hospitals))
        own = half[self.hospital[half] == at]
        enough = 2 * len(own) // 3 >= least
        own, most = (own, min(most, 2 * len(own) // 3)) if enough else (half, most)
        size = int(random.integers(least, most + 1))
        weight = self._tilt(own, random)
        return np.sort(random.choice(own, size, replace=False, p=weight))

    def origin(self, rows: Rows) -> int:
        """The hospital of a site's records; one number more than there are, if of several."""
        found = np.unique(self.hospital[rows])
        return int(found[0]) if len(found) == 1 else len(self.hospitals)

    def shares(self, rows: Rows) -> NDArray[np.float64]:
        """Share of each class among the known labels: [C]."""
        at = torch.from_numpy(rows)
        counted = self.known[at].sum(0).clamp_min(1)
        shares: NDArray[np.float64] = (
            ((self.targets[at] * self.known[at]).sum(0) / counted).double().numpy()
        )
        return shares

    def _tilt(self, rows: Rows, random: np.random.Generator) -> NDArray[np.float64]:
        """A probability for each row, so that classes are drawn in shares of the site's own."""
        targets = self.targets[torch.from_numpy(rows)].double().numpy()
        if self.multi_label:
            weight = np.exp(targets @ random.normal(0, 1, targets.shape[1]))
        else:
            shares = random.dirichlet(np.full(targets.shape[1], _CONCENTRATION))
            weight = targets @ (0.02 + shares) / np.maximum(targets.sum(0), 1)[targets.argmax(1)]
        return np.asarray(weight / weight.sum())

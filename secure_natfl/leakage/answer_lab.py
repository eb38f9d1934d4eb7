"""The laboratory of attacks on answers: fresh sites of the run's records, played as in its rounds.

Implements `attacks.answers.laboratory.AnswerLab`; `drawing` draws the sites.
"""

from __future__ import annotations

from functools import cached_property
from typing import Final

import numpy as np
import torch
from torch import Tensor

from attacks.answers.laboratory import (
    Bools,
    Candidates,
    Floats,
    Knowledge,
    Portraits,
    Seen,
    Sites,
    Victims,
)
from secure_natfl.leakage.drawing import Drawing, Drawn
from secure_natfl.leakage.pool import Rows

_CANDIDATES: Final = 64
_TESTED: Final = 32  # private test images on which a stolen model is held against a site's own
_GALLERY: Final = 4  # further sites whose classes' looks are in the gallery


class RunAnswers(Drawing):
    """The parts of all laboratories of answers, on sites like those of a run."""

    def knowledge(self, arm: str) -> Knowledge:
        """Public figures of an arm; proxies' features and pictures as the plans asked them."""
        rows = self.speakers.rows
        images = self.run.federation.naturals.images
        features = np.stack([self.speakers.backbone.features[one].double().numpy() for one in rows])
        pictures = np.stack([images[one][:, 0].double().numpy() for one in rows])
        if arm == "in-domain":
            asked = self._alike(len(rows[0]))
            features = np.stack([self.pool.features[asked].double().numpy()] * len(rows))
            pictures = np.stack([self.pool.images[asked][:, 0].double().numpy()] * len(rows))
        return self.arms.knowledge(arm, features, pictures)

    def sites(
        self, arm: str, count: int, random: np.random.Generator, *, shadow: bool
    ) -> tuple[Seen, Sites]:
        """Fresh sites under an arm, with their label shares, sizes and hospitals."""
        drawn = self.drawn(count, random, shadow=shadow)
        sizes = np.array([len(rows) for rows in drawn.sites])
        shares = np.stack([self.pool.shares(rows) for rows in drawn.sites])
        attributes = {"mostly the last class": (shares[:, -1] > 0.5).astype(np.int64)}
        if len(self.pool.hospitals) > 1:
            attributes["hospital"] = np.array([self.pool.origin(rows) for rows in drawn.sites])
        answers = self.seen(arm, drawn, random)
        return Seen(answers, self._metadata(arm, drawn)), Sites(shares, sizes, attributes)

    def candidates(self) -> Candidates:
        """Records of the attacked half, the same for all sites, one of each patient at most."""
        at = torch.from_numpy(self._asked)
        return Candidates(
            self.pool.features[at].double().numpy(), self.pool.targets[at].double().numpy()
        )

    def halves(
        self,
        arm: str,
        count: int,
        random: np.random.Generator,
        *,
        shadow: bool,
        proxies: Floats | None = None,
    ) -> tuple[Floats, Bools]:
        """Sites that hold each candidate by a fair coin, and nothing else."""
        inside = random.random((count, len(self._asked))) < 0.5

        def site(at: int, _: np.random.Generator) -> Rows:
            chosen: Rows = self._asked[inside[at]]
            return chosen

        kind = ("halves", shadow, None if proxies is None else hash(proxies.tobytes()))
        drawn = self.draw(kind, count, random, site, proxies)
        return self.seen(arm, drawn, random), inside

    def victims(
        self, arm: str, count: int, random: np.random.Generator, *, shadow: bool
    ) -> tuple[Floats, Victims]:
        """Fresh sites, and what their own models say of private images that they did not train."""
        asked = self._tested(shadow=shadow)
        features = np.broadcast_to(
            self.pool.features[asked].double().numpy(),
            (count, len(asked), self.pool.features.shape[1]),
        )
        drawn = self.draw(
            ("victims", shadow),
            count,
            random,
            self.any_site(shadow=shadow, without=asked.numpy()),
            words=self.pool.features[asked],
        )
        return self.seen(arm, drawn, random), Victims(features, drawn.words)

    def backbone(self, images: Tensor) -> Tensor:
        """The public features [n, d] of images [n, H, W], differentiable."""
        found = self.speakers.backbone.network.backbone(images.float().unsqueeze(1))
        return self.speakers.backbone.standardised(found)

    def portraits(
        self, arm: str, count: int, random: np.random.Generator
    ) -> tuple[Floats, Portraits]:
        """Fresh sites, and the mean images of their classes among those of others."""
        alike = arm == "in-domain"
        asked = None
        if alike:
            rows = self._alike(len(self.speakers.rows[0]))
            asked = np.stack([self.pool.features[rows].double().numpy()] * self.count)
        kind = ("portraits", alike)
        drawn = self.draw(kind, count, random, self.any_site(shadow=False), asked)
        answers = self.seen("clear" if alike else arm, drawn, random)
        others = [self.pool.site(self.most, random, shadow=True) for _ in range(_GALLERY)]
        gallery = np.concatenate([self._looks(rows) for rows in [*drawn.sites, *others]])
        place = np.arange(count * self.arms.classes).reshape(count, -1)
        return answers, Portraits(gallery, place)

    @cached_property
    def _asked(self) -> Rows:
        """The candidates: spread over the attacked half."""
        first = self.pool.patients(shadow=False)
        return first[np.linspace(0, len(first) - 1, min(_CANDIDATES, len(first))).astype(np.int64)]

    def _metadata(self, arm: str, drawn: Drawn) -> dict[str, Floats]:
        """Beside the answers: their bytes always; weights β only where they travel in the clear."""
        size = np.full(len(drawn.sites), float(self.arms.layout.size))
        if arm != "clear":
            return {"numbers sent": size}
        matrices = self.arms.seen("clear", drawn.rounds[0], np.random.default_rng(0))
        weights = matrices[:, :, self.arms.classes :].mean(1)
        counts = np.stack([self.pool.shares(rows) * len(rows) for rows in drawn.sites])
        shown = {f"weight {at}": weights[:, at] for at in range(weights.shape[1])}
        return {"numbers sent": size, **shown} | {
            f"records of class {at}": counts[:, at] for at in range(counts.shape[1])
        }

    def _tested(self, *, shadow: bool) -> Tensor:
        return torch.from_numpy(self.pool.half(shadow=shadow)[:_TESTED])

    def _alike(self, count: int) -> Tensor:
        """Images like the private ones, of the attacker's half, as often as needed."""
        return torch.from_numpy(np.resize(self.pool.half(shadow=True), count))

    def _looks(self, rows: Rows) -> Floats:
        """The mean image of each class at a site [classes, H, W]; grey where it has none."""
        at = torch.from_numpy(rows)
        images, targets = self.pool.images[at][:, 0].double(), self.pool.targets[at].double()
        sums = torch.einsum("nhw,nc->chw", images, targets)
        counts = targets.sum(0)[:, None, None]
        looks: Floats = torch.where(counts > 0, sums / counts.clamp_min(1), images.mean()).numpy()
        return looks

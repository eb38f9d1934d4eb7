"""The rival by Opacus itself: its PrivacyEngine, its Poisson loader, its accountant, its noise."""

from __future__ import annotations

import math
import warnings
from functools import lru_cache

import numpy as np
import torch

from benchmarks.privacy_utility_data import Cohort, Floats, Fold, Public, Settings
from benchmarks.privacy_utility_steps import DELTA, Noise


def fedavg_opacus(
    fold: Fold, public: Public, epsilon: float, settings: Settings, noise: Noise, seed: int
) -> Floats:
    """Rival: the same FedAvg by Opacus: PrivacyEngine, its Poisson loader, its PRV accountant.

    A patient's images stand side by side in one sample, so that a sample is a unit.
    """
    del noise
    sites = [
        _OpacusSite(cohort, epsilon, settings, seed + i) for i, cohort in enumerate(fold.sites)
    ]
    shares = [cohort.units for cohort in fold.sites]
    weight = np.zeros(public.features.shape[1])
    for _ in range(settings["rounds"]):
        heads = [site.train(weight) for site in sites]
        weight = np.average(heads, axis=0, weights=shares)
    return weight


@lru_cache(maxsize=64)
def _opacus_noise(epsilon: float, rate: float, steps: int) -> float:
    from opacus.accountants.utils import (  # type: ignore[import-untyped]
        get_noise_multiplier,
    )

    if epsilon == math.inf:
        return 0.0
    return float(
        get_noise_multiplier(
            target_epsilon=epsilon,
            target_delta=DELTA,
            sample_rate=rate,
            steps=steps,
            accountant="prv",
            epsilon_tolerance=0.01 * epsilon,
        )
    )


class _OpacusSite:
    """One site's head, optimiser and loader under a PrivacyEngine, kept over all rounds."""

    def __init__(self, cohort: Cohort, epsilon: float, settings: Settings, seed: int) -> None:
        from opacus import PrivacyEngine  # type: ignore[import-untyped]

        width = int(np.bincount(cohort.unit).max())
        shape = (cohort.units, width)
        self._inputs = torch.zeros(*shape, cohort.features.shape[1])
        self._labels, self._share = torch.zeros(shape), torch.zeros(shape)
        place = np.zeros(cohort.units, np.int64)
        for row, unit in enumerate(cohort.unit):
            at = (int(unit), int(place[unit]))
            self._inputs[at] = torch.from_numpy(cohort.features[row])
            self._labels[at], self._share[at] = float(cohort.labels[row]), 1.0
            place[unit] += 1
        self._share /= self._share.sum(1, keepdim=True)
        self._steps, self._average = settings["steps"] // settings["rounds"], settings["average"]
        head = torch.nn.Linear(cohort.features.shape[1], 1, bias=False)
        loader = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(torch.arange(cohort.units)),
            batch_size=math.ceil(cohort.units * settings["rate"]),
            generator=torch.Generator().manual_seed(seed),
        )
        rate = settings["learning_rate"] / settings["clip"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._head, self._optimiser, self._loader = PrivacyEngine(
                accountant="prv"
            ).make_private(
                module=head,
                optimizer=torch.optim.SGD(head.parameters(), lr=rate),
                data_loader=loader,
                noise_multiplier=_opacus_noise(epsilon, 1 / len(loader), settings["steps"]),
                max_grad_norm=settings["clip"],
                noise_generator=torch.Generator().manual_seed(seed),
            )

    def train(self, start: Floats) -> Floats:
        """One round from `start` [d]; the mean of the last half if asked."""
        parameter = next(self._head.parameters())
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(start))
        kept: list[Floats] = []
        while len(kept) < self._steps:
            for (rows,) in self._loader:
                if len(kept) == self._steps:
                    break
                self._step(rows.long())
                kept.append(parameter.detach().double().numpy().ravel().copy())
        return np.asarray(np.mean(kept[len(kept) // 2 :], 0) if self._average else kept[-1])

    def _step(self, rows: torch.Tensor) -> None:
        self._optimiser.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            each = torch.nn.functional.binary_cross_entropy_with_logits(
                self._head(self._inputs[rows]).squeeze(-1), self._labels[rows], reduction="none"
            )
            loss = (each * self._share[rows]).sum() / max(len(rows), 1)
            loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()

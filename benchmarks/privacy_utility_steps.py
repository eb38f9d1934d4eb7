"""Where the study's noise comes from: the project's mechanisms, seeded, with real ledgers.

Reported figures use `Real`: DpSgd and its Descent, ShardTeachers of a NoisePlan, charges in a
ledger per site. Tuning uses `Fast`: the same sums, clips and deviations in floats, no ledger. Both
run at ε = ∞ without noise. A seeded study is not private: its noise can be recomputed.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from benchmarks.privacy_utility_data import Cohort, Floats, Integers
from protocols.accounting import ADD_OR_REMOVE_ONE, REPLACE_ONE
from protocols.chain import digest
from protocols.dp_sgd import DpSgd
from protocols.ledger import Ledger, ReleaseKey
from protocols.mechanisms import NoNoise, ShardTeachers
from protocols.noise_plan import NoisePlan
from protocols.quantize import Layout, Segment

DELTA = 1e-5
COLLUDERS = 1
Gradients = Callable[[Integers], Floats]
"""Indices of sampled units [b] to their gradients [b, d]."""
NoisyMean = Callable[[Gradients], Floats]
"""One step: the noisy mean gradient [d] of a Poisson sample."""


@lru_cache(maxsize=256)
def descent_noise(epsilon: float, rate: float, steps: int) -> float:
    """The noise multiplier that DpSgd.calibrate finds for all `steps` together; 0 at ε = ∞."""
    if epsilon == math.inf:
        return 0.0
    return DpSgd.calibrate(
        epsilon=epsilon,
        delta=DELTA,
        rounds=1,
        clip_norm=1.0,
        rate=rate,
        steps=steps,
        size=1,
        expected=100.0,
    ).noise_multiplier


def _quick_noise(epsilon: float, rate: float, steps: int) -> float:
    """The same, by the square root of steps where all units are in every step."""
    if rate < 1:
        return descent_noise(epsilon, rate, steps)
    return math.sqrt(steps) * descent_noise(epsilon, 1.0, 1)


@lru_cache(maxsize=64)
def shard_plan(epsilon: float, shards: tuple[int, ...], size: int) -> NoisePlan:
    """One release for sites of one group, equal weights, one colluder, no dropouts."""
    names = [f"site-{i}" for i in range(len(shards))]
    return NoisePlan.calibrate(
        epsilon=epsilon,
        delta=DELTA,
        rounds=1,
        alphas=dict.fromkeys(names, 1),
        groups=dict.fromkeys(names, "hospital"),
        colluders=COLLUDERS,
        dropouts=0,
        shards=dict(zip(names, shards, strict=True)),
        clip_norm=1.0,
        size=size,
        # A clamped share counts e^ε times.
        tail=math.sqrt(200 + 2 * epsilon),
    )


class Noise(Protocol):
    """What a method needs of the mechanisms; one object per federation that is trained."""

    def descent(
        self, site: int, cohort: Cohort, rate: float, steps: int, rounds: int, clip: float
    ) -> NoisyMean:
        """A charge of `steps` steps at one site, one of `rounds` equal ones."""

    def released(self, teachers: Sequence[Floats]) -> tuple[Floats, float]:
        """Each site's [M, size], every row clipped to norm 1 → noisy sum and its deviation."""


class Fast:
    """Float noise of the right deviation from numpy, for tuning."""

    def __init__(self, epsilon: float, seed: int) -> None:
        self.epsilon, self._rng = epsilon, np.random.default_rng(seed)

    def descent(
        self, site: int, cohort: Cohort, rate: float, steps: int, rounds: int, clip: float
    ) -> NoisyMean:
        """See Noise."""
        del site
        deviation = clip * _quick_noise(self.epsilon, rate, rounds * steps)

        def step(gradients: Gradients) -> Floats:
            found = gradients(np.flatnonzero(self._rng.random(cohort.units) < rate))
            norms = np.sqrt(np.einsum("ud,ud->u", found, found))
            noise = deviation * self._rng.standard_normal(found.shape[1])
            clipped = np.minimum(1, clip / np.maximum(norms, 1e-12)) @ found
            return np.asarray((clipped + noise) / (rate * cohort.units))

        return step

    def released(self, teachers: Sequence[Floats]) -> tuple[Floats, float]:
        """See Noise."""
        rows = np.concatenate(teachers)
        norms = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1)
        total = (rows / norms).sum(0)
        if self.epsilon == math.inf:
            return total, 0.0
        deviation = _sum_deviation(
            shard_plan(self.epsilon, tuple(len(t) for t in teachers), rows.shape[1])
        )
        return total + deviation * self._rng.standard_normal(len(total)), deviation


class Real:
    """The project's mechanisms, one ledger per site and relation in a folder that is thrown away.

    A context manager. `seed` stands in for the operating system's randomness.
    """

    def __init__(self, epsilon: float, seed: int) -> None:
        self.epsilon, self._rng = epsilon, np.random.default_rng(seed)
        self._ledgers: dict[tuple[int, str], Ledger] = {}
        self._rounds: dict[int, int] = {}

    def __enter__(self) -> Real:
        self._stack = ExitStack()
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def descent(
        self, site: int, cohort: Cohort, rate: float, steps: int, rounds: int, clip: float
    ) -> NoisyMean:
        """See Noise."""
        if self.epsilon == math.inf:
            return Fast(math.inf, int(self._rng.integers(2**62))).descent(
                site, cohort, rate, steps, rounds, clip
            )
        plan = DpSgd(
            clip_norm=clip,
            noise_multiplier=descent_noise(self.epsilon, rate, rounds * steps),
            rate=rate,
            steps=steps,
            size=cohort.features.shape[1],
            expected=rate * cohort.units,
        )
        number = self._rounds.get(site, 0)
        self._rounds[site] = number + 1
        descent = plan.begin(
            self._ledger(site, ADD_OR_REMOVE_ONE), ReleaseKey("study", number), self._rng.bytes
        )

        def step(gradients: Gradients) -> Floats:
            return descent.step(gradients(descent.sample(cohort.units)))

        return step

    def released(self, teachers: Sequence[Floats]) -> tuple[Floats, float]:
        """See Noise. A plain integer sum stands in for the encrypted one, which is exact."""
        shards, size = tuple(len(t) for t in teachers), teachers[0].shape[1]
        layout = Layout((Segment("numerators", size, 1),))
        names = [f"site-{i}" for i in range(len(shards))]
        mechanisms: Mapping[str, ShardTeachers] | Mapping[str, NoNoise]
        if self.epsilon == math.inf:
            mechanisms = NoNoise.for_sites(
                shards=dict(zip(names, shards, strict=True)), clip_norm=1.0, size=size
            )
            deviation = 0.0
        else:
            plan = shard_plan(self.epsilon, shards, size)
            mechanisms, deviation = plan.mechanisms, _sum_deviation(plan)
        total = np.zeros(size, np.int64)
        for i, mechanism in enumerate(mechanisms.values()):
            bounded = mechanism.bound(teachers[i], layout)
            key = ReleaseKey("study", 0)
            ledger = self._ledger(i, REPLACE_ONE)
            total += mechanism.release(bounded, ledger, key, self._rng.bytes).values
        return mechanisms[names[0]].grid.dequantise(total), deviation

    def _ledger(self, site: int, relation: str) -> Ledger:
        if (site, relation) not in self._ledgers:
            ledger = Ledger(
                self._folder / f"{site}-{relation}.db",
                f"site-{site}",
                digest(b"study"),
                relation=relation,
                budget_epsilon=None,
                delta=DELTA,
            )
            self._ledgers[site, relation] = self._stack.enter_context(ledger)
        return self._ledgers[site, relation]


def _sum_deviation(plan: NoisePlan) -> float:
    """Standard deviation of the noise in the sum of all sites, in clip norms."""
    shares = plan.mechanisms.values()
    return math.sqrt(sum((m.alpha * m.sigma_share * m.step) ** 2 for m in shares))

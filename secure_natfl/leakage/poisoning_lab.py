"""What one malicious client can do to the central model: real sums, real distillation.

With `RunSums` it makes up `attacks.sums.laboratory.SumLab`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from attacks.answers.laboratory import Floats
from protocols.mechanisms import ShardTeachers
from secure_natfl.fine_tuning import fresh
from secure_natfl.leakage.answer_arms import Said
from secure_natfl.leakage.answer_lab import RunAnswers
from secure_natfl.leakage.sum_lab import RunSums
from secure_natfl.models import Network
from secure_natfl.training import logits_of


class RunSumLab(RunSums):
    """All that attacks on sums need of a run."""

    def __init__(self, answers: RunAnswers) -> None:
        super().__init__(answers)
        self._groups: dict[tuple[int, bool], Said] = {}

    def central_accuracy(
        self, arm: str, poison: Callable[[Floats], Floats] | None, seed: int, *, shadow: bool
    ) -> float:
        """Accuracy on images of the attacker's half of patients, after the first round.

        unbounded: clear answers. clipped: everybody's within the joint clip. protected: honest
        sites clip and noise; the malicious one keeps to the range of integers alone, for nobody
        can look into a ciphertext.
        """
        said = self.said(seed, shadow=shadow)
        honest = self._sent(arm, said, np.random.default_rng([seed, 1]))[:-1].sum(0)
        count = len(said.clear)
        total = honest
        if poison is None:
            count -= 1
        else:
            total = honest + self._malicious(arm, said, poison)
        return self._accuracy(self._central(total, count, arm, seed))

    def said(self, seed: int, *, shadow: bool) -> Said:
        """What one group says in the first round: sites of its own for every seed, in every arm."""
        if (seed, shadow) not in self._groups:
            random = np.random.default_rng([seed, 0])
            sites = self.answers.fresh(self.arms.group, random, shadow=shadow)
            self._groups[seed, shadow] = self.answers.round(sites, 0, random)
        return self._groups[seed, shadow]

    def _sent(self, arm: str, said: Said, random: np.random.Generator) -> Floats:
        """What every site sends if it is honest, in the unit of its mean answer."""
        if arm == "unbounded":
            return said.clear
        if arm == "clipped":
            return np.stack([self.arms.within(one) for one in said.clear])
        return self.arms.sent(said, random)

    def _malicious(self, arm: str, said: Said, poison: Callable[[Floats], Floats]) -> Floats:
        own = self.arms.seen("clear", Said(said.clear[-1:], ()), np.random.default_rng(0))
        classes, mechanism = self.arms.classes, self.arms.mechanism
        turned = poison(own)[0]
        parts = {"numerators": turned[:, :classes], "denominators": turned[:, classes:]}
        names = [segment.name for segment in self.arms.layout.segments]
        vector: Floats = self.arms.layout.pack({name: parts[name] for name in names})
        if arm == "unbounded":
            return vector
        if arm == "clipped":
            return self.arms.within(vector)
        wanted = mechanism.grid.quantise(vector * mechanism.shards)
        values = np.clip(wanted, -mechanism.limit, mechanism.limit)
        return mechanism.grid.dequantise(values) / mechanism.shards

    def _central(self, total: Floats, count: int, arm: str, seed: int) -> Network:
        run, system = self.run, self.run.system
        rows = self.answers.speakers.rows[0]
        noise = 0.0
        if arm == "protected" and isinstance(self.arms.mechanism, ShardTeachers):
            mechanism = self.arms.mechanism
            noise = mechanism.sigma_share * mechanism.step / mechanism.shards * count**0.5
        found = system.read(
            rows,
            dict.fromkeys(system.heads, total),
            dict.fromkeys(system.heads, float(count)),
            dict.fromkeys(system.heads, noise),
        )
        central = fresh(
            run.networks[run.config.models.central],
            self.arms.classes,
            torch.Generator().manual_seed(seed),
            len(system.heads),
        )
        system.absorb(central, found, 0)
        return central

    def _accuracy(self, central: Network) -> float:
        pool = self.answers.pool
        rows = torch.from_numpy(pool.half(shadow=True))
        logits, targets = logits_of(central, pool.images[rows])[:, 0], pool.targets[rows]
        if self.arms.multi_label:
            return float(((logits > 0) == (targets > 0.5)).float().mean())
        return float((logits.argmax(1) == targets.argmax(1)).float().mean())

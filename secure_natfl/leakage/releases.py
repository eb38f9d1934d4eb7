"""Releases that are nobody's: the run's mechanism on drawn answers, charged to a ledger in memory.

Whatever is encrypted in a laboratory comes from here, for encryption takes nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

import numpy as np

from protocols.ledger import Ledger, ReleaseKey
from protocols.mechanisms import NoNoise, Released, ShardTeachers
from protocols.quantize import Floats, Layout, Segment
from protocols.sampler import seeded_random
from secure_natfl.leakage.attacked import AttackedRun

SESSION: Final = "study"


@dataclass(frozen=True)
class Releases:
    """Draws releases of any width. Their noise is a study's, from the generator handed in."""

    mechanism: ShardTeachers | NoNoise

    @classmethod
    def of(cls, run: AttackedRun) -> Self:
        """With the first site's mechanism; without noise where noise is in the training."""
        site = run.federation.sites[0].name
        mechanism = run.terms.mechanisms[site]
        if isinstance(mechanism, ShardTeachers | NoNoise):
            return cls(mechanism)
        silent = NoNoise.for_sites(
            shards={site: 1}, clip_norm=1.0, size=mechanism.size, bits=mechanism.bits
        )
        return cls(silent[site])

    def draw(
        self,
        size: int,
        count: int,
        random: np.random.Generator,
        *,
        scale: float = 1.0,
        silent: bool = False,
    ) -> list[Released]:
        """`count` releases of `size` integers, for rounds 0, 1, … of the session "study".

        scale: norm of each teacher's normally distributed answers, in clips. silent: without noise.
        """
        mechanism = replace(self._silent() if silent else self.mechanism, size=size)
        layout = Layout((Segment("drawn", size, 1),))
        noise = seeded_random(random.bytes(32))
        with Ledger(Path(":memory:"), "a", "study", budget_epsilon=None, delta=1e-5) as ledger:
            return [
                mechanism.release(
                    mechanism.bound(scale * self._teachers(size, random), layout),
                    ledger,
                    ReleaseKey(SESSION, at),
                    noise,
                )
                for at in range(count)
            ]

    def _silent(self) -> NoNoise:
        """The same clipped sum, without noise."""
        one = self.mechanism
        return NoNoise(
            shards=one.shards,
            clip_norm=one.clip_norm,
            clip_int=one.clip_int,
            size=one.size,
            bits=one.bits,
        )

    def _teachers(self, size: int, random: np.random.Generator) -> Floats:
        drawn: Floats = random.normal(0, 1, (self.mechanism.shards, size))
        drawn *= self.mechanism.clip_norm / size**0.5
        return drawn

"""Randomness of a run: one root, one stream per purpose, and the operating system's for protection.

Training, initialisation and the order of batches draw from streams under the run's root, so that
a resumed run repeats them. Noise, keys and shard partitions protect people: they come from the
operating system, unless `run.seed` is set, and then the run says that it is not private.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch

from protocols.chain import RandomBytes
from protocols.sampler import seeded_random


@dataclass(frozen=True)
class Seeds:
    """`root`: 32 bytes. `protective`: None for the operating system's source, else a study's."""

    root: bytes = field(repr=False)
    seeded: bool

    @classmethod
    def of_study(cls, seed: int) -> Seeds:
        """The root of `run.seed = seed`."""
        return cls(hashlib.sha256(f"secure_natfl study {seed}".encode()).digest(), seeded=True)

    def torch(self, *purpose: str | int) -> torch.Generator:
        """A generator for one purpose; the same purpose gives the same stream."""
        return torch.Generator().manual_seed(int.from_bytes(self._stream(purpose)[:7], "big"))

    def integer(self, *purpose: str | int) -> int:
        """A 32-bit integer for one purpose, for libraries that take one."""
        return int.from_bytes(self._stream(purpose)[:4], "big")

    def protective(self, system: RandomBytes, *purpose: str | int) -> RandomBytes:
        """`system` (the operating system's source); a predictable stream in a seeded run."""
        return seeded_random(self._stream(("protective", *purpose))) if self.seeded else system

    def _stream(self, purpose: tuple[str | int, ...]) -> bytes:
        return hashlib.sha256(self.root + repr(purpose).encode()).digest()

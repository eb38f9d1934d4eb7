"""The laboratory of the ciphertext game: uploads of two data sets, as the run's mode makes them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from attacks.ciphertexts import Uploads
from protocols.mechanisms import Released
from protocols.messages import Mode
from protocols.multikey import multikey_preset
from protocols.multikey_ckks import protect
from protocols.rlwe import PK18_44
from protocols.slots import SLOTS18_140
from protocols.tenseal_ckks import PublicKey, RoundSecret, encrypt
from protocols.tenseal_slots import SlotsSecret
from secure_natfl.leakage.releases import Releases

_FAINT: Final = 0.25  # how much smaller the answers of the second data set are
_PER_KEY: Final = 16  # uploads under one decryptor's key; one-time keys are fresh for each


@dataclass(frozen=True)
class RunUploads:
    """Uploads of two blocks. The data sets differ in how sure the answers are.

    variable rows: a site of the second data set leaves out the rows that say little, a whole block
    of them. plaintext: clipped integers without noise, as they are. Masks in pairs and hops of a
    ring are left out, so that less hides an upload than in the run.
    """

    mode: Mode
    preset: str
    heaviest: int
    releases: Releases

    def uploads(self, arm: str, count: int, random: np.random.Generator) -> Uploads:
        """Fresh uploads, each by a fair coin from one of the two data sets."""
        world = random.random(count) < 0.5
        bodies, seconds = [], []
        for start in range(0, count, _PER_KEY):
            encrypted = self._encryption()
            for second in world[start : start + _PER_KEY]:
                (released,) = self.releases.draw(
                    2 * self._block,
                    1,
                    random,
                    scale=_FAINT if second else 1.0,
                    silent=arm == "plaintext",
                )
                begin = time.perf_counter()
                stop = self._block if arm == "variable rows" and second else 2 * self._block
                plain = arm == "plaintext" or self.mode == "plain/none"
                bodies.append(_bytes(released, stop) if plain else encrypted(released, stop))
                seconds.append(time.perf_counter() - begin)
        return Uploads(bodies, np.array(seconds), world)

    @property
    def _block(self) -> int:
        if self.mode == "ckks/threshold":
            return multikey_preset(self.preset).degree
        return SLOTS18_140.slots if self.mode == "slots/shared" else PK18_44.degree

    def _encryption(self) -> Callable[[Released, int], bytes]:
        """What turns the first so many integers of a release into a body, under fresh keys."""
        if self.mode == "ckks/threshold":
            return self._one_time
        if self.mode == "slots/shared":
            secret = SlotsSecret(SLOTS18_140)
            return lambda released, stop: secret.encrypt(released.values[:stop])
        public = PublicKey(PK18_44, RoundSecret(PK18_44).public_body)
        return lambda released, stop: encrypt(public, released, (0, stop))

    def _one_time(self, released: Released, stop: int) -> bytes:
        return protect(
            multikey_preset(self.preset),
            released,
            (0, stop),
            reference=os.urandom(32),
            heaviest=self.heaviest,
            holders=1,
            threshold=1,
        ).body


def _bytes(released: Released, stop: int) -> bytes:
    return released.values[:stop].astype("<i4").tobytes()

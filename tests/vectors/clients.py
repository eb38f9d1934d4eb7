"""Clients of fixed seeds, whose contributions and shares the vectors of sums are made of."""

from dataclasses import dataclass

import numpy as np
from primitives import seed

from protocols.expansion import SHARE, keystream
from protocols.gaussian_errors import gaussian_errors
from protocols.messages import IntVector
from protocols.multikey import MULTIKEY_PRESETS, MultiKeyPreset
from protocols.multikey_ckks import _ciphertext
from protocols.parties import reference_of
from protocols.residues import Residues
from protocols.sharing import expand, split

HOLDERS, THRESHOLD = 4, 3


@dataclass(frozen=True)
class Client:
    """A contribution from fixed seeds: key, errors, integers, body and key shares."""

    preset: MultiKeyPreset
    name: str
    alpha: int
    size: int
    heaviest: int

    @property
    def reference(self) -> bytes:
        """The group's, the same for all its clients."""
        return reference_of("1" * 64, self.preset.name)

    @property
    def secret(self) -> Residues:
        """The key: what a seed share of this seed expands to."""
        return expand(self.seed, self.preset)

    @property
    def seed(self) -> bytes:
        """The key's seed."""
        return seed(f"key of {self.name}")

    @property
    def values(self) -> IntVector:
        """Integers that reach both limits."""
        limit = self.preset.value_limit
        found = np.arange(self.size, dtype=np.int64) * 7919 % (2 * limit + 1) - limit
        found[:2] = limit, -limit
        return found

    @property
    def errors(self) -> IntVector:
        """Discrete Gaussian errors for every coefficient, from a stream."""
        places = self.preset.blocks(self.size) * self.preset.degree
        stream = keystream(SHARE, seed(f"errors of {self.name}"), 2)
        return gaussian_errors(places, self.preset.error_width(self.heaviest), stream)

    @property
    def body(self) -> bytes:
        """The contribution's body."""
        return _ciphertext(self.preset, self.secret, self.errors, self.values, self.reference)

    @property
    def shares(self) -> tuple[bytes, ...]:
        """The key's shares: two seeds, then packed residues."""
        stream = keystream(SHARE, seed(f"shares of {self.name}"), 3)
        return split(self.preset, self.secret, HOLDERS, THRESHOLD, stream)


GROUPS: dict[str, tuple[Client, ...]] = {
    "mk18-39": tuple(
        Client(MULTIKEY_PRESETS["mk18-39"], name, alpha, 2053, 4)
        for name, alpha in zip("abc", (1, 2, 4), strict=True)
    ),
    "mk18-49": tuple(
        Client(MULTIKEY_PRESETS["mk18-49"], name, alpha, 20, 3)
        for name, alpha in zip("ab", (3, 1), strict=True)
    ),
}

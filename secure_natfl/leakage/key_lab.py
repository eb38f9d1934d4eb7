"""The laboratory of attacks on keys: sums as the run's mode encrypts them, and their keys.

Implements `PublishedLab` and `TamperingLab` of `attacks.key_rows` on the primitives that the
parties run, for in a run a key never leaves its owner. With a decryptor the key is the attempt's,
ternary. With one-time keys it is Σα·s, uniform: what is guessed is the third of [0, prime).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from attacks.cryptanalysis import Published, from_integers, from_slots
from attacks.key_rows import Integers, Key, Opened
from attacks.tampered_key import largest_offset, tampered
from protocols.expansion import REFERENCE, keystream, uniform
from protocols.mechanisms import Released
from protocols.messages import Mode
from protocols.multikey import MultiKeyPreset, multikey_preset
from protocols.multikey_ckks import MultiKeySum, protect
from protocols.ntt import transform
from protocols.residues import pack, unpack, weighted_sum
from protocols.rlwe import PK18_44
from protocols.sharing import expand
from protocols.slots import SLOTS18_140
from protocols.tenseal_ckks import PublicKey, RoundSecret, encrypt
from protocols.tenseal_slots import SlotsSecret, SlotsSum
from secure_natfl.leakage.releases import Releases

_MOST: Final = 2  # keys; each has thousands of coefficients


@dataclass(frozen=True)
class _Sum:
    """A sum that was opened: its pairs modulo `prime`, the integers, Δ, and the key."""

    prime: int
    pairs: NDArray[np.uint64]
    opened: Integers
    scale: int
    key: Key


@dataclass(frozen=True)
class RunKeys:
    """Keys as in a run of this mode. alphas: the weights of its first group."""

    mode: Mode
    preset: str
    alphas: tuple[int, ...]
    releases: Releases

    def keys(
        self, arm: str, count: int, random: np.random.Generator
    ) -> Iterator[tuple[Sequence[Published], Key]]:
        """`slots`: sums read as real numbers. protected: the run's exact integers."""
        for _ in range(min(count, _MOST)):
            if arm == "slots" or self.mode == "slots/shared":
                yield self._slots(random)
                continue
            found = self._sum(self._drawn(random), 0)
            yield [from_integers(found.pairs, found.prime, found.opened, found.scale)], found.key

    def openings(self, arm: str, count: int, random: np.random.Generator) -> Iterator[Opened]:
        """`tampered`: the key of one decryptor. protected: the run's mode.

        The first client adds as much to a constant coefficient as the check of bounds lets pass:
        of c₁ where it has one, else of all that it sends.
        """
        with_decryptor = RunKeys("ckks/decryptor", PK18_44.name, self.alphas, self.releases)
        lab = with_decryptor if arm == "tampered" else self
        for _ in range(min(count, _MOST)):
            released = lab._drawn(random)
            weighed = lab._weighed(released)
            total, own = sum(self.alphas), released[0].values
            offset = largest_offset(PK18_44, self.alphas[0], total, int(np.abs(weighed).max()))
            found = lab._sum(released, offset)
            yield Opened(found.opened, own, self.alphas[0], offset, len(own), found.key)

    def _drawn(self, random: np.random.Generator) -> list[Released]:
        """One release for each client, as wide as one block."""
        threshold = self.mode == "ckks/threshold"
        degree = multikey_preset(self.preset).degree if threshold else PK18_44.degree
        return self.releases.draw(degree, len(self.alphas), random)

    def _weighed(self, released: Sequence[Released]) -> Integers:
        parts = zip(self.alphas, released, strict=True)
        total: Integers = np.sum([alpha * one.values for alpha, one in parts], axis=0)
        return total

    def _slots(self, random: np.random.Generator) -> tuple[Sequence[Published], Key]:
        ring, secret = SLOTS18_140, SlotsSecret(SLOTS18_140)
        size = 2 * ring.slots
        total = SlotsSum(ring, size)
        drawn = self.releases.draw(size, len(self.alphas), random)
        for released, alpha in zip(drawn, self.alphas, strict=True):
            total.add(secret.encrypt(released.values), alpha)
        body = total.body()
        pairs = ring.unpack(body, ring.blocks(size), ring.sum_primes)[:, :, 0]
        read = secret.read_sum(body, size)
        return [from_slots(pairs, ring.primes[0], read, ring.slot_scale)], secret.coefficients()

    def _sum(self, released: Sequence[Released], offset: int) -> _Sum:
        """The sum of one block, with `offset` added by the first client."""
        if self.mode == "ckks/threshold":
            return self._one_time(multikey_preset(self.preset), released, offset)
        ring, secret, size = PK18_44, RoundSecret(PK18_44), PK18_44.degree
        public = PublicKey(ring, secret.public_body)
        bodies = [encrypt(public, one, (0, size)) for one in released]
        bodies[0] = tampered(ring, bodies[0], offset)
        body = weighted_sum(ring, size, bodies, self.alphas)
        opened = secret.open_sum(body, size, sum(self.alphas))
        pairs = unpack(body, ring.residue_bits, (ring.prime,)).reshape(-1, 2, size)
        return _Sum(ring.prime, pairs, opened, ring.scale, _key_of(secret))

    def _one_time(self, ring: MultiKeyPreset, released: Sequence[Released], offset: int) -> _Sum:
        """Σα·c and the public a are a pair under Σα·s, modulo the first prime."""
        reference, heaviest = os.urandom(32), max(self.alphas)
        added = MultiKeySum(ring, ring.degree)
        above = np.zeros(ring.degree, np.uint64)
        secret = np.zeros((len(ring.primes), ring.degree), np.uint64)
        for at, (one, alpha) in enumerate(zip(released, self.alphas, strict=True)):
            made = protect(
                ring,
                one,
                (0, ring.degree),
                reference=reference,
                heaviest=heaviest,
                holders=1,
                threshold=1,
            )
            body = made.body if at else _shifted(ring, made.body, offset)
            added.add(body, alpha)
            above += np.uint64(alpha) * unpack(body, ring.wire_bits, (ring.wire_limit,))[0]
            secret += np.uint64(alpha) * expand(made.shares[0], ring)
        moduli = np.array(ring.primes, np.uint64)[:, None]
        opened = added.open(secret % moduli, reference=reference, alphas=self.alphas)
        prime = ring.primes[0]
        numbers = transform(ring.degree, prime)
        public = numbers.inverse(
            uniform(prime, ring.degree, keystream(REFERENCE, reference, prime))
        )
        pair = np.stack([(above << np.uint64(ring.dropped)) % np.uint64(prime), public])
        key = numbers.inverse(secret[0] % moduli[0])
        return _Sum(prime, pair[None], opened, ring.scale, _thirds(key, prime))


def _shifted(ring: MultiKeyPreset, body: bytes, offset: int) -> bytes:
    """A body with Δ·offset added to the constant coefficient of its one polynomial."""
    integers = unpack(body, ring.wire_bits, (ring.wire_limit,))[0].copy()
    moved = (int(integers[0]) << ring.dropped) + ring.scale * offset
    integers[0] = moved % ring.q >> ring.dropped
    return pack(integers, ring.wire_bits)


def _key_of(secret: RoundSecret) -> Key:
    """A decryptor's ternary key, the truth of a study: the phase of the ciphertext (0, 1)."""
    pair = np.zeros((2, PK18_44.degree), np.uint64)
    pair[1, 0] = 1
    return secret._phase(pair).astype(np.int8)


def _thirds(key: NDArray[np.uint64], prime: int) -> Key:
    """The third of [−prime/2, prime/2) that each coefficient is in: −1, 0 or 1."""
    centred = key.astype(np.int64)
    centred -= prime * (centred > prime // 2)
    return (np.sign(centred) * (np.abs(centred) > prime // 6)).astype(np.int8)

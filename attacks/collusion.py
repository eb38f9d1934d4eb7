"""Who must join to read a single contribution: every coalition against the messages of one round.

A coalition gets its `View` of the transcript and what its members keep in memory, and nothing
else (`attacks.pooling`). A contribution is read where its unknown follows from the equations that
they have together, and then it really is computed and opened. Members are honest but curious;
those that break the rules are the concern of `attacks.tampered_key` and of the protocol's own
tests. `protocols.promises` says what is to be expected.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Final

import numpy as np

from attacks.cryptanalysis import KeyGuess, from_slots, read_slots, recover_key
from attacks.equations import Equations
from attacks.pooling import EXACT, Pool
from protocols.messages import (
    IntVector,
    Mode,
    OpeningRequest,
    Reading,
)
from protocols.multikey import multikey_preset
from protocols.multikey_ckks import MultiKeySum
from protocols.parties import reference_of
from protocols.residues import pack
from protocols.rlwe import preset
from protocols.slots import SLOTS18_140


def read_single(pool: Pool, target: str) -> IntVector | None:
    """The integers of one client outside the coalition, int64[width]; None if out of reach."""
    found = pool.sums.find(target)
    if found is not None:
        return np.where(found > EXACT // 2, found - EXACT, found).astype(np.int64)
    return _READ[pool.round.enrolment.mode](pool, target)


def _read_threshold(pool: Pool, target: str) -> IntVector | None:
    """Interpolate the client's one-time key; open its ciphertext with it."""
    ring, rows = multikey_preset(pool.round.plan.preset), []
    for equations in pool.key_shares:
        rows.append(equations.find((target, 0)))
    body = pool.uploads().get(target)
    if body is None or any(row is None for row in rows):
        return None
    single = MultiKeySum(ring, pool.width)
    single.add(body, 1)
    return single.open(
        np.stack([np.asarray(row, np.uint64) for row in rows]),
        reference=reference_of(pool.round.plan_id, pool.round.group.name),
        alphas=[1],
        heaviest=max(pool.round.group.alphas),
    )


def _read_residues(pool: Pool, target: str, equations: Equations) -> IntVector | None:
    """Open α times the client's ciphertext with the attempt's key, if both are there."""
    residues = equations.find(target)
    if residues is None or pool.opens is None:
        return None
    alpha, ring = pool.alpha(target), preset(pool.round.plan.preset)
    body = pack(residues.astype(np.uint64), ring.residue_bits)
    integers: IntVector = pool.opens.open_sum(body, pool.width, alpha)
    return integers // alpha


def _read_plain(pool: Pool, target: str) -> IntVector | None:
    """Read the body as it is."""
    body = pool.uploads().get(target)
    return None if body is None else np.frombuffer(body, "<i4").astype(np.int64)


def _read_slots(pool: Pool, target: str) -> IntVector | None:
    """Find the key in what was published, then read the client's upload."""
    body = pool.uploads().get(target)
    if body is None:
        return None
    sums, readings = pool.view.of(OpeningRequest), pool.view.of(Reading)
    return _in_slots(body, sums[0].body, readings[0].body)


@lru_cache(maxsize=8)
def _in_slots(upload: bytes, total: bytes, reading: bytes) -> IntVector:
    """An upload's integers; the same for all who see these three bodies."""
    ring, width = SLOTS18_140, len(reading) // 8
    key = _key_in_slots(total, reading)
    residues = ring.unpack(upload, ring.blocks(width), ring.upload_primes)[:, :, 0]
    numbers = read_slots(key, residues, ring.primes[0], ring.slot_scale)[:width]
    return np.rint(numbers).astype(np.int64)


@lru_cache(maxsize=1)
def _key_in_slots(body: bytes, reading: bytes) -> KeyGuess:
    """The key that a sum and the real numbers read from it give."""
    ring, numbers = SLOTS18_140, np.frombuffer(reading, "<f8")
    total = ring.unpack(body, ring.blocks(len(numbers)), ring.sum_primes)[:, :, 0]
    return recover_key([from_slots(total, ring.primes[0], numbers, ring.slot_scale)])


_READ: Final[Mapping[Mode, Callable[[Pool, str], IntVector | None]]] = {
    "ckks/threshold": _read_threshold,
    "ckks/decryptor": lambda pool, target: _read_residues(pool, target, pool.masked),
    "ring/decryptor": lambda pool, target: _read_residues(pool, target, pool.hops),
    "plain/none": _read_plain,
    "slots/shared": _read_slots,
}

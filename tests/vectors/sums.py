"""Vectors of one-time keys: contributions, shares, their sums, openings and refused ones.

Nothing is drawn from the operating system: keys, errors and shares come from streams of fixed
seeds. Long byte strings are in base64, residues bit-packed as on the wire.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from clients import GROUPS, HOLDERS, Client
from primitives import Vector, base64, vector

from protocols.messages import IntVector
from protocols.multikey import MK18_39, MultiKeyPreset
from protocols.multikey_ckks import _ciphertext, _masks
from protocols.residues import pack
from protocols.sharing import interpolate, unpack_share, weighted_share

MULTIKEY = "clients: docs/protocol.md section 3, step 4 and section 4, lemma 1"
SHARES = "clients, holders and server: docs/protocol.md section 5, lemma 4 (Shamir 1979)"
OPENED = "the server, so that no more than the sum is opened: docs/protocol.md section 4, lemma 1"


def vectors() -> list[Vector]:
    """All vectors of one-time keys."""
    found: list[Vector] = []
    for name, clients in GROUPS.items():
        found += [*_contributions(clients), *_sharing(clients), *_openings(name, clients)]
    return found


def _contributions(clients: tuple[Client, ...]) -> Iterator[Vector]:
    for one in clients:
        yield vector(
            "contribution",
            f"{one.preset.name}, client {one.name}",
            MULTIKEY,
            {"body": base64(one.body)},
            preset=one.preset.name,
            key=one.seed.hex(),
            reference=one.reference.hex(),
            errors=base64(one.errors.astype("<i2").tobytes()),
            values=base64(one.values.astype("<i4").tobytes()),
        )


def _sharing(clients: tuple[Client, ...]) -> Iterator[Vector]:
    ring = clients[0].preset
    alphas = [one.alpha for one in clients]
    sums = [
        weighted_share(ring, [one.shares[at] for one in clients], alphas) for at in range(HOLDERS)
    ]
    for one in clients:
        seeds = [share.hex() for share in one.shares[:2]]
        given = {"preset": ring.name, "key": one.seed.hex(), "seeds": seeds}
        result = {"shares": [base64(share) for share in one.shares[2:]]}
        yield vector("split", f"{ring.name}, client {one.name}, 3 of 4", SHARES, result, **given)
    for at, total in enumerate(sums, 1):
        given = {
            "preset": ring.name,
            "alphas": alphas,
            "shares": [base64(one.shares[at - 1]) for one in clients],
        }
        result = {"share": base64(total)}
        yield vector("weighted share", f"{ring.name}, holder {at}", SHARES, result, **given)
    key_sum = interpolate(ring, {at: unpack_share(ring, sums[at - 1]) for at in (1, 2, 3)})
    rows = [pack(row, prime.bit_length()) for row, prime in zip(key_sum, ring.primes, strict=True)]
    for chosen in ((1, 2, 3), (1, 3, 4), (2, 3, 4)):
        given = {"preset": ring.name, "shares": {str(at): base64(sums[at - 1]) for at in chosen}}
        result = {"key_sum": base64(b"".join(rows))}
        yield vector("interpolate", f"{ring.name}, holders {chosen}", SHARES, result, **given)
    if ring is MK18_39:
        yield from _refused_shares(ring, clients[0].shares[2])


def _refused_shares(ring: MultiKeyPreset, share: bytes) -> Iterator[Vector]:
    bits = ring.primes[0].bit_length()
    high = pack(np.array([ring.primes[0], *range(7)], np.uint64), bits)
    for name, made, step in (
        ("31 bytes", share[:31], "length"),
        ("33 bytes", share[:33], "length"),
        ("no bytes", b"", "length"),
        ("one byte short", share[:-1], "length"),
        ("a residue equal to its prime", high + share[len(high) :], "residue"),
    ):
        given = {"preset": ring.name, "alphas": [1], "shares": [base64(made)]}
        yield vector("weighted share", f"{ring.name}, {name}", SHARES, {"step": step}, **given)
    for name, alpha in (("weight 0", 0), ("weight beyond all proofs", ring.largest_total(1) + 1)):
        given = {"preset": ring.name, "alphas": [alpha], "shares": [base64(bytes(32))]}
        yield vector("weighted share", f"{ring.name}, {name}", SHARES, {"step": "weight"}, **given)


def _openings(name: str, clients: tuple[Client, ...]) -> Iterator[Vector]:
    ring, first = clients[0].preset, clients[0]
    for chosen in dict.fromkeys((clients, clients[:1], clients[-2:])):
        alphas = [one.alpha for one in chosen]
        sums: IntVector = sum(
            (one.alpha * one.values for one in chosen), np.zeros(first.size, np.int64)
        )
        result = {"integers": base64(sums.astype("<i4").tobytes())}
        told = f"{name}, clients {''.join(one.name for one in chosen)}"
        yield _opening(told, first, [(o.seed, o.body) for o in chosen], alphas, result)
    wrong = [(one.seed, one.body) for one in (*clients[:-1], clients[0])]
    keys = [(one.seed, body) for one, (_, body) in zip(clients, wrong, strict=True)]
    alphas = [one.alpha for one in clients]
    bound = {"step": "opening bound"}
    yield _opening(f"{name}, another client's body under the key", first, keys, alphas, bound)
    less = [alphas[0] + 1, *alphas[1:]]
    honest = [(one.seed, one.body) for one in clients]
    yield _opening(f"{name}, body added once too often", first, honest, alphas, bound, added=less)
    yield from _edges(first)
    if ring is MK18_39:
        yield from _refused_bodies(replace(first, size=20))


def _edges(one: Client) -> Iterator[Vector]:
    """Contributions that sit exactly on a bound, and one beyond it."""
    ring, heaviest = one.preset, one.heaviest
    noise, limit, bound = ring.noise_bound(heaviest), ring.value_limit, {"step": "opening bound"}
    for error in (noise, -noise, noise + 1, -noise - 1)[:: 1 if ring is MK18_39 else 2]:
        made, body, place = _crafted(one, error)
        values = np.zeros(place + 1, np.int64)
        values[place] = 1
        good = {"integers": base64(values.astype("<i4").tobytes())}
        result = good if abs(error) <= noise else bound
        told = f"{ring.name}, error {error} where {noise} is proved"
        yield _opening(told, made, [(made.seed, body)], [1], result, size=place + 1)
    for value in (limit, -limit, limit + 1, -limit - 1)[:: 1 if ring is MK18_39 else 2]:
        values = np.array([value, 0, 0], np.int64)
        good = {"integers": base64(values.astype("<i4").tobytes())}
        text = _ciphertext(ring, one.secret, np.zeros(ring.degree, np.int64), values, one.reference)
        result = good if abs(value) <= limit else bound
        told = f"{ring.name}, integer {value}"
        yield _opening(told, one, [(one.seed, text)], [1], result, size=3)
    values = np.array([5, 6, 7], np.int64)
    made = _ciphertext(ring, one.secret, np.zeros(ring.degree, np.int64), values, one.reference)
    told = f"{ring.name}, an unused coefficient is 7"
    yield _opening(told, one, [(one.seed, made)], [1], bound, size=2)


def _crafted(first: Client, error: int) -> tuple[Client, bytes, int]:
    """A key and a body whose only error is `error`, at a place where dropping bits adds nothing."""
    ring = first.preset
    for number in range(100):
        one = replace(first, name=f"edge {number}")
        masks = _masks(ring, one.secret, one.reference, 1).astype(np.int64)
        exact = (ring.scale + error - masks) % ring.q
        places = np.flatnonzero(exact % (1 << ring.dropped) == 0)
        if places.size:
            errors, values = np.zeros((2, ring.degree), np.int64)
            errors[places[0]], values[places[0]] = error, 1
            body = _ciphertext(ring, one.secret, errors, values, one.reference)
            return one, body, int(places[0])
    raise AssertionError(f"no key of a hundred takes the error {error}")


def _refused_bodies(one: Client) -> Iterator[Vector]:
    ring, body = one.preset, one.body
    high = pack(np.array([ring.wire_limit, *range(7)], np.uint64), ring.wire_bits)
    for name, made, alphas, step in (
        ("one byte short", body[:-1], [1], "length"),
        ("an integer at its limit", high + body[len(high) :], [1], "residue"),
        ("weight 0", body, [0], "weight"),
        ("weight beyond all proofs", body, [ring.largest_total(1) + 1], "weight"),
        ("all ones", b"\xff" * len(body), [1], "residue"),
        ("all zeros", bytes(len(body)), [1], "opening bound"),
    ):
        given = [(one.seed, made)]
        yield _opening(f"{ring.name}, {name}", one, given, alphas, {"step": step})


def _opening(
    name: str,
    one: Client,
    bodies: list[tuple[bytes, bytes]],
    alphas: list[int],
    expected: Mapping[str, Any],
    *,
    size: int | None = None,
    added: list[int] | None = None,
) -> Vector:
    """`added` are the weights used in adding, where the key sum has others."""
    return vector(
        "opening",
        name,
        OPENED,
        expected,
        preset=one.preset.name,
        size=one.size if size is None else size,
        reference=one.reference.hex(),
        heaviest=one.heaviest,
        alphas=alphas,
        added=added or alphas,
        keys=[key.hex() for key, _ in bodies],
        bodies=[base64(body) for _, body in bodies],
    )

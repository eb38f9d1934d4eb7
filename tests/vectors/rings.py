"""Vectors of arithmetic without keys: packing, transform, expansion, sums of residues."""

from collections.abc import Iterator

import numpy as np
from primitives import Vector, base64, seed, text_of, vector

from protocols.expansion import REFERENCE, SHARE, keystream, uniform
from protocols.multikey import MULTIKEY_PRESETS
from protocols.ntt import smallest_root, transform
from protocols.residues import Residues, WeightedSum, pack
from protocols.rlwe import PK18_44

PACKING = "whoever writes or reads a body, no residue above its modulus: docs/protocol.md section 2"
RING = "clients and server, products in the ring: docs/protocol.md section 1"
STREAMS = "clients, holders and server: docs/protocol.md section 10, SP 800-38A section 6.5"
PUBLIC = "server and decryptor, which recomputes it: docs/protocol.md section 8"
SIZE = 40


def vectors() -> list[Vector]:
    """All vectors of arithmetic without keys."""
    return [*_packing(), *_transforms(), *_streams(), *_public_sums()]


def _packing() -> Iterator[Vector]:
    for bits in (1, 13, 16, 19, 20, 29, 39, 44, 64):
        values = [(number * number * 0x9E3779B97F4A7C15 + number) % 2**bits for number in range(24)]
        values[:2] = [0, 2**bits - 1]
        body = pack(np.array(values, np.uint64), bits).hex()
        yield vector("pack", f"{bits} bits", PACKING, {"body": body}, bits=bits, values=values)
    for modulus in (1032193, 520193, 12289, 1 << 29, 17592185659393):
        bits = (modulus - 1).bit_length()
        for name, last, step in (
            ("largest residue", modulus - 1, None),
            ("one too large", modulus, "residue"),
            ("all ones", 2**bits - 1, "residue"),
        ):
            if last >= 2**bits or (step and last < modulus):
                continue
            body = pack(np.array([*range(7), last], np.uint64), bits).hex()
            result = {"step": step} if step else {"values": [*range(7), last]}
            given = {"bits": bits, "modulus": modulus, "body": body}
            yield vector("unpack", f"{name} modulo {modulus}", PACKING, result, **given)


def _transforms() -> Iterator[Vector]:
    for name, preset in MULTIKEY_PRESETS.items():
        for prime in preset.primes:
            ring, root = transform(preset.degree, prime), smallest_root(preset.degree, prime)
            start = seed("coefficients")
            x = uniform(prime, preset.degree, keystream(SHARE, start, prime))
            image = base64(pack(ring.forward(x), prime.bit_length()))
            given = {"degree": preset.degree, "prime": prime, "coefficients": start.hex()}
            result = {"root": root, "values": image}
            yield vector("transform", f"{name}, {prime}", RING, result, **given)


def _streams() -> Iterator[Vector]:
    for tag in (REFERENCE, SHARE):
        for prime in sorted({p for one in MULTIKEY_PRESETS.values() for p in one.primes}):
            for name in ("stream 1", _skipping(tag, prime)):
                residues = uniform(prime, 4096, keystream(tag, seed(name), prime))
                given = {"tag": tag.decode(), "seed": seed(name).hex(), "prime": prime}
                first = keystream(tag, seed(name), prime)(32).hex()
                result = {
                    "stream": first,
                    "residues": base64(pack(residues[-64:], prime.bit_length())),
                    "sha256": text_of(pack(residues, prime.bit_length())),
                }
                told = f"{tag.decode()}, {prime}, {name}; the last 64 residues and all hashed"
                yield vector("expansion", told, STREAMS, result, **given, count=4096)


def _skipping(tag: bytes, prime: int) -> str:
    """The first stream of which a word among the first 4096 is skipped."""
    limit = 2**32 // prime * prime
    return next(
        name
        for name in (f"stream {number}" for number in range(2, 10**6))
        if (np.frombuffer(keystream(tag, seed(name), prime)(4 * 4096), "<u4") >= limit).any()
    )


def _public_sums() -> Iterator[Vector]:
    """Residues are (i² + step·i + step) mod q for i = 0, 1, ..: too many to write down."""
    places = PK18_44.ciphertext_bytes(SIZE) * 8 // PK18_44.residue_bits
    for alphas in ((1,), (1, 2, 3), (127,), (60, 60, 7)):
        total = WeightedSum(PK18_44, SIZE)
        for at, alpha in enumerate(alphas):
            total.add(pack(public_residues(places, 10**9 * at + 17), PK18_44.residue_bits), alpha)
        given = {"preset": PK18_44.name, "size": SIZE, "alphas": alphas}
        steps = [10**9 * at + 17 for at in range(len(alphas))]
        result = {"sha256": text_of(total.body()), "head": total.body()[:44].hex()}
        told = f"{PK18_44.name}, weights {alphas}"
        yield vector("public sum", told, PUBLIC, result, **given, steps=steps)


def public_residues(count: int, step: int) -> Residues:
    """(i² + step·i + step) mod q for i below `count`."""
    i = np.arange(count, dtype=np.uint64)
    return (i * i + np.uint64(step) * i + np.uint64(step)) % np.uint64(PK18_44.prime)

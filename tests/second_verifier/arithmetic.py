"""Packing, transform, expansion, shares, sums and openings in plain integers, a second time."""

import hashlib
import struct
from base64 import b64decode, b64encode
from functools import lru_cache
from itertools import pairwise
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from presets import ONE_TIME, PUBLIC, OneTime
from wire import RefusedError

Vector = dict[str, Any]
Rows = list[list[int]]
REFERENCE, SHARE = "natfl multi-key reference", "natfl multi-key share"


def pack(values: list[int], bits: int) -> bytes:
    """The first value in the lowest bits of a little-endian number."""
    digits = "".join(f"{value:0{bits}b}" for value in reversed(values))
    return int(digits, 2).to_bytes(len(digits) // 8, "little")


def unpack(body: bytes, bits: int, modulus: int) -> list[int]:
    digits = f"{int.from_bytes(body, 'little'):0{8 * len(body)}b}"
    places = range(len(digits), len(digits) % bits, -bits)
    values = [int(digits[stop - bits : stop], 2) for stop in places]
    if max(values) >= modulus:
        raise RefusedError("residue")
    return values


def stream(tag: str, seed: bytes, prime: int, size: int) -> bytes:
    key = hashlib.sha256(tag.encode() + struct.pack("<I", prime) + seed).digest()
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(size))


@lru_cache(maxsize=64)
def uniform(tag: str, seed: bytes, prime: int, count: int) -> list[int]:
    """Words that are not among the last 2^32 mod p, reduced."""
    most = 2**32 - 2**32 % prime
    words = struct.iter_unpack("<I", stream(tag, seed, prime, 4 * count + 4096))
    return [word % prime for (word,) in words if word < most][:count]


@lru_cache(maxsize=16)
def root(degree: int, prime: int) -> int:
    """The smallest number whose N-th power is -1."""
    return next(r for r in range(2, prime) if pow(r, degree, prime) == prime - 1)


def directly(coefficients: list[int], prime: int) -> list[int]:
    """The polynomial at each odd power of the root, by Horner's rule."""
    degree = len(coefficients)
    psi, image = root(degree, prime), []
    for power in range(1, 2 * degree, 2):
        point, value = pow(psi, power, prime), 0
        for coefficient in reversed(coefficients):
            value = (value * point + coefficient) % prime
        image.append(value)
    return image


def inverse(values: list[int], prime: int) -> list[int]:
    """Coefficients from the values at the odd powers of the root."""
    degree = len(values)
    back = pow(root(degree, prime), -1, prime)
    share = pow(degree, -1, prime)
    spectrum = _cyclic(values, back * back % prime, prime)
    return [x * share * pow(back, at, prime) % prime for at, x in enumerate(spectrum)]


def _cyclic(values: list[int], omega: int, prime: int) -> list[int]:
    """Σ values[i]·omega^(i·n), even places and odd places apart."""
    if len(values) == 1:
        return values
    square = omega * omega % prime
    even, odd = _cyclic(values[::2], square, prime), _cyclic(values[1::2], square, prime)
    twiddle, low, high = 1, [], []
    for e, o in zip(even, odd, strict=True):
        low.append((e + twiddle * o) % prime)
        high.append((e - twiddle * o) % prime)
        twiddle = twiddle * omega % prime
    return low + high


def key(preset: OneTime, seed: str) -> Rows:
    """A test key: the expansion of a seed share."""
    return [uniform(SHARE, bytes.fromhex(seed), p, preset.degree) for p in preset.primes]


def masks(preset: OneTime, rows: Rows, reference: bytes, blocks: int) -> list[int]:
    """a·s as integers modulo q, block by block."""
    degree, found = preset.degree, []
    for prime, row in zip(preset.primes, rows, strict=True):
        public = uniform(REFERENCE, reference, prime, blocks * degree)
        cuts = pairwise(range(0, blocks * degree + 1, degree))
        image = [[a * s % prime for a, s in zip(public[i:j], row, strict=True)] for i, j in cuts]
        found.append([x for block in image for x in inverse(block, prime)])
    units = [preset.q // p * pow(preset.q // p, -1, p) for p in preset.primes]
    pairs = zip(*found, strict=True)
    return [sum(u * x for u, x in zip(units, p, strict=True)) % preset.q for p in pairs]


def contribution(v: Vector) -> Vector:
    preset = ONE_TIME[v["preset"]]
    errors = [x for (x,) in struct.iter_unpack("<h", b64decode(v["errors"]))]
    values = [x for (x,) in struct.iter_unpack("<i", b64decode(v["values"]))]
    blocks = len(errors) // preset.degree
    rows = key(preset, v["key"])
    hidden = masks(preset, rows, bytes.fromhex(v["reference"]), blocks)
    values += [0] * (len(errors) - len(values))
    places = zip(hidden, errors, values, strict=True)
    full = [(e + preset.scale * m - h) % preset.q for h, e, m in places]
    half = 2 ** (preset.dropped - 1)
    body = pack([(b + half) >> preset.dropped for b in full], preset.wire_bits)
    return {"body": b64encode(body).decode()}


def opening(v: Vector) -> Vector:
    preset, size, weight = ONE_TIME[v["preset"]], v["size"], sum(v["alphas"])
    blocks = -(-size // preset.degree)
    totals = [0] * (blocks * preset.degree)
    for text, alpha in zip(v["bodies"], v["added"], strict=True):
        body = b64decode(text)
        if len(body) * 8 != len(totals) * preset.wire_bits:
            raise RefusedError("length")
        if not 1 <= alpha <= preset.most():
            raise RefusedError("weight")
        for at, integer in enumerate(unpack(body, preset.wire_bits, preset.below)):
            totals[at] += alpha * integer
    keys = [key(preset, seed) for seed in v["keys"]]
    rows = [
        [
            sum(a * s for a, s in zip(v["alphas"], place, strict=True)) % prime
            for place in zip(*each, strict=True)
        ]
        for prime, each in zip(preset.primes, zip(*keys, strict=True), strict=True)
    ]
    hidden = masks(preset, rows, bytes.fromhex(v["reference"]), blocks)
    integers = []
    for at, (total, mask) in enumerate(zip(totals, hidden, strict=True)):
        phase = (2**preset.dropped * total + mask) % preset.q
        phase -= preset.q if 2 * phase > preset.q else 0
        value = (2 * phase + preset.scale) // (2 * preset.scale)
        near = abs(phase - value * preset.scale) <= weight * preset.noise(v["heaviest"])
        if not near or abs(value) > weight * preset.limit or (at >= size and value):
            raise RefusedError("opening bound")
        integers.append(value)
    return {"integers": b64encode(struct.pack(f"<{size}i", *integers[:size])).decode()}


def shared(preset: OneTime, share: bytes) -> Rows:
    """The residues of a share as it travels."""
    if len(share) == 32:
        return key(preset, share.hex())
    if len(share) != preset.share_bytes:
        raise RefusedError("length")
    rows, start = [], 0
    for prime in preset.primes:
        stop = start + preset.degree * prime.bit_length() // 8
        rows.append(unpack(share[start:stop], prime.bit_length(), prime))
        start = stop
    return rows


def packed(preset: OneTime, rows: Rows) -> str:
    pairs = zip(preset.primes, rows, strict=True)
    return b64encode(b"".join(pack(row, prime.bit_length()) for prime, row in pairs)).decode()


def through(preset: OneTime, points: dict[int, Rows], at: int) -> Rows:
    """The polynomials of degree len(points) - 1 through the points, at another place."""
    found = []
    for row, prime in enumerate(preset.primes):
        weights = []
        for i in points:
            weight = 1
            for j in points.keys() - {i}:
                weight = weight * (at - j) * pow(i - j, prime - 2, prime) % prime
            weights.append(weight)
        places = zip(*(points[i][row] for i in points), strict=True)
        pairs = [zip(weights, place, strict=True) for place in places]
        found.append([sum(w * y for w, y in pair) % prime for pair in pairs])
    return found


def split(v: Vector) -> Vector:
    preset = ONE_TIME[v["preset"]]
    points = {0: key(preset, v["key"])}
    points |= {at: key(preset, seed) for at, seed in enumerate(v["seeds"], 1)}
    return {"shares": [packed(preset, through(preset, points, at)) for at in (3, 4)]}


def weighted_share(v: Vector) -> Vector:
    preset, totals = ONE_TIME[v["preset"]], []
    if min(v["alphas"]) < 1 or sum(v["alphas"]) > preset.most():
        raise RefusedError("weight")
    shares = [shared(preset, b64decode(share)) for share in v["shares"]]
    for row, prime in enumerate(preset.primes):
        places = zip(*(share[row] for share in shares), strict=True)
        pairs = [zip(v["alphas"], place, strict=True) for place in places]
        totals.append([sum(a * y for a, y in pair) % prime for pair in pairs])
    return {"share": packed(preset, totals)}


def interpolate(v: Vector) -> Vector:
    preset = ONE_TIME[v["preset"]]
    points = {int(at): shared(preset, b64decode(share)) for at, share in v["shares"].items()}
    return {"key_sum": packed(preset, through(preset, points, 0))}


def transform(v: Vector) -> Vector:
    prime, degree = v["prime"], v["degree"]
    x = uniform(SHARE, bytes.fromhex(v["coefficients"]), prime, degree)
    image = directly(x, prime)
    if inverse(image, prime) != x:
        raise AssertionError("the inverse is not one")
    values = b64encode(pack(image, prime.bit_length())).decode()
    return {"root": root(degree, prime), "values": values}


def expansion(v: Vector) -> Vector:
    seed, prime = bytes.fromhex(v["seed"]), v["prime"]
    residues, bits = uniform(v["tag"], seed, prime, v["count"]), prime.bit_length()
    return {
        "stream": stream(v["tag"], seed, prime, 32).hex(),
        "residues": b64encode(pack(residues[-64:], bits)).decode(),
        "sha256": hashlib.sha256(pack(residues, bits)).hexdigest(),
    }


def public_sum(v: Vector) -> Vector:
    degree, prime, _, _ = PUBLIC[v["preset"]]
    places = -(-v["size"] // degree) * 2 * degree
    pairs = list(zip(v["alphas"], v["steps"], strict=True))
    totals = [
        sum(alpha * ((i * i + step * i + step) % prime) for alpha, step in pairs) % prime
        for i in range(places)
    ]
    body = pack(totals, prime.bit_length())
    return {"sha256": hashlib.sha256(body).hexdigest(), "head": body[:44].hex()}

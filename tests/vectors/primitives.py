"""Vectors of what the protocol stands on: canonical JSON, signatures, hashes, references."""

import hashlib
import struct
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

from protocols.chain import GENESIS, SigningKey, canonical, digest, link
from protocols.parties import reference_of

JSON = "all parties: RFC 8785 section 3.2.2"
NUMBERS = "all parties: RFC 8785 appendix B"
ORDER = "all parties: RFC 8785 section 3.2.3"
SIGNATURES = "all parties: RFC 8032 section 7.1"
MALLEABLE = "all parties, 0 <= S < L: RFC 8032 section 5.1.7"
REFERENCES = "clients and server: docs/protocol.md section 2"
CHAINS = "whoever keeps a journal: docs/protocol.md section 3, step 3; FIPS 180-4"
L = 2**252 + 27742317777372353535851937790883648493

Vector = dict[str, Any]

# IEEE 754 double in hexadecimal → its one JSON form; None where there is none.
_DOUBLES: dict[str, str | None] = {
    "0000000000000000": "0",
    "8000000000000000": "0",
    "0000000000000001": "5e-324",
    "8000000000000001": "-5e-324",
    "7fefffffffffffff": "1.7976931348623157e+308",
    "ffefffffffffffff": "-1.7976931348623157e+308",
    "4340000000000000": "9007199254740992",
    "c340000000000000": "-9007199254740992",
    "4430000000000000": "295147905179352830000",
    "7fffffffffffffff": None,
    "7ff0000000000000": None,
    "44b52d02c7e14af5": "9.999999999999997e+22",
    "44b52d02c7e14af6": "1e+23",
    "44b52d02c7e14af7": "1.0000000000000001e+23",
    "444b1ae4d6e2ef4e": "999999999999999700000",
    "444b1ae4d6e2ef4f": "999999999999999900000",
    "444b1ae4d6e2ef50": "1e+21",
    "3eb0c6f7a0b5ed8c": "9.999999999999997e-7",
    "3eb0c6f7a0b5ed8d": "0.000001",
    "41b3de4355555553": "333333333.3333332",
    "41b3de4355555554": "333333333.33333325",
    "41b3de4355555555": "333333333.3333333",
    "41b3de4355555556": "333333333.3333334",
    "41b3de4355555557": "333333333.33333343",
    "becbf647612f3696": "-0.0000033333333333333333",
    "43143ff3c1cb0959": "1424953923781206.2",
}

# Secret key, message, signature.
_SIGNED = (
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
        "387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
        "4a7c15e9716ed28dc027beceea1ec40a",
    ),
)


def seed(name: str) -> bytes:
    """32 bytes that stand for a secret draw of that name."""
    return hashlib.sha256(b"natfl test seed " + name.encode()).digest()


def text_of(data: bytes) -> str:
    """SHA-256 in hexadecimal, where the bytes themselves would be too long."""
    return hashlib.sha256(data).hexdigest()


def vectors() -> list[Vector]:
    """All vectors of primitives."""
    return [*_numbers(), *_documents(), *_signatures(), *_references(), *_links()]


def vector(check: str, name: str, source: str, expected: Any, **given: Any) -> Vector:
    """What stands in the file."""
    head = {"name": f"{check}: {name}", "source": source, "check": check}
    return {**head, **given, "expected": expected}


def base64(data: bytes) -> str:
    """Bytes as the vectors carry long ones; `generate` writes each such text once."""
    return b64encode(data).decode()


def _numbers() -> Iterator[Vector]:
    for double, text in _DOUBLES.items():
        result = {"text": text} if text else {"step": "canonical form"}
        yield vector("number", double, NUMBERS, result, double=double)
    for number in (2.0, 1.5, 1e-6, 1e-7, 123456789.125, 0.1 + 0.2):
        double = struct.pack(">d", number).hex()
        result = {"text": canonical(number).decode()}
        yield vector("number", f"{number!r}", NUMBERS, result, double=double)


def _documents() -> Iterator[Vector]:
    for name, value in {
        "an object in order": {"b": 1, "a": {"d": [], "c": [True, False, None]}},
        "keys by UTF-16 units": {"€": 1, "\r": 2, "דּ": 3, "1": 4, "😀": 5, "\x80": 6, "ö": 7},
        "escapes": '\u20ac$\u000f\nA\'B"\\\\"/\b\t\f\r\u007f',
        "the largest integers": [2**53 - 1, 1 - 2**53, 0, -1],
        "a plan's floors": {"participants": 3, "effective": 2.0},
    }.items():
        result = {"bytes": canonical(value).hex()}
        yield vector("canonical", name, JSON if "keys" not in name else ORDER, result, value=value)


def _signatures() -> Iterator[Vector]:
    for number, (private, message, signature) in enumerate(_SIGNED, 1):
        given = {"public": SigningKey(bytes.fromhex(private)).public.hex(), "message": message}
        ok, step = {"accepted": True}, {"step": "signature"}
        yield vector("signature", f"test {number}", SIGNATURES, ok, **given, signature=signature)
        half = signature[:64]
        scalar = int.from_bytes(bytes.fromhex(signature[64:]), "little") + L
        for name, source, wrong in (
            ("S + L", MALLEABLE, half + scalar.to_bytes(32, "little").hex()),
            ("63 bytes", SIGNATURES, signature[:-2]),
            ("65 bytes", SIGNATURES, signature + "00"),
            ("all zero", SIGNATURES, "00" * 64),
            ("R changed", SIGNATURES, f"{int(signature[:2], 16) ^ 1:02x}" + signature[2:]),
        ):
            named = f"test {number}, {name}"
            yield vector("signature", named, source, step, **given, signature=wrong)


def _references() -> Iterator[Vector]:
    for plan, group in (("1" * 64, "g0"), ("1" * 64, "g1"), (digest(b"plan"), "g0")):
        result = {"reference": reference_of(plan, group).hex()}
        given = {"plan": plan, "group": group}
        yield vector("reference", f"{plan[:4]}, {group}", REFERENCES, result, **given)


def _links() -> Iterator[Vector]:
    head = GENESIS
    for line in (b"", b'{"seq":0}', b'{"seq":1}'):
        result = {"head": link(head, line)}
        yield vector("chain", f"after {head[:4]}", CHAINS, result, previous=head, line=line.hex())
        head = link(head, line)

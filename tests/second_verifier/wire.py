"""Signed messages, written a second time: frame, signature, header, canonical form, stage.

Nothing here comes from the package `protocols`; the two must agree on every vector.
"""

import hashlib
import json
import re
import struct
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

PREFIX, SIGNATURE, HEADER_LIMIT = 15, 64, 2**18
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
DIGEST = re.compile(r"[0-9a-f]{64}")
VERSION = re.compile(r"[0-9A-Za-z.+-]{1,32}")
MODES = ("ckks/threshold", "ckks/decryptor", "ring/decryptor", "plain/none", "slots/shared")


class RefusedError(Exception):
    """The step at which a receiver stops, or the rule that a plan breaks."""


Check = Callable[[Any], bool]


def text(pattern: re.Pattern[str]) -> Check:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def integer(least: int) -> Check:
    return lambda value: type(value) is int and least <= value < 2**31


def some(inner: Check, least: int = 1) -> Check:
    return lambda value: isinstance(value, list) and len(value) >= least and all(map(inner, value))


def record(**fields: Check) -> Check:
    def check(value: Any) -> bool:
        same = isinstance(value, dict) and value.keys() == fields.keys()
        return same and all(known(value[name]) for name, known in fields.items())

    return check


def span(value: Any) -> bool:
    if value is None:
        return True
    pair = isinstance(value, list) and len(value) == 2
    return pair and integer(0)(value[0]) and integer(1)(value[1])


def effective(value: Any) -> bool:
    return type(value) in (int, float) and 1 <= value < float("inf")


name, digest, count, positive = text(NAME), text(DIGEST), integer(0), integer(1)
group = record(name=name, participants=some(name), alphas=some(positive), least=positive, span=span)
floors = record(participants=integer(2), effective=effective)
opened = record(group=name, attempt=positive, plan=digest)
stage: dict[str, Check] = {"session": name, "round": count, "attempt": count, "sender": name}
at_plan = {**stage, "plan": digest}
in_group = {**at_plan, "group": name}
plan_fields: dict[str, Check] = {
    **stage,
    "attempt": positive,
    "version": text(VERSION),
    "mode": lambda value: value in MODES,
    "proxies": digest,
    "groups": some(group),
    "preset": name,
    "layout": digest,
    "size": positive,
    "terms": digest,
    "floors": floors,
    "holders": digest,
}
listed = {"participants": some(name), "contributions": some(digest)}
answered = {"participants": some(name), "request": digest, "sha256": digest}
# Code → kind, the most bytes of its body, the fields of its header.
KINDS: dict[int, tuple[str, int, dict[str, Check]]] = {
    1: ("round-plan", 2**24, plan_fields),
    2: ("round-key", 2**22, {**at_plan, "opened": some(opened, 0)}),
    3: ("contribution", 2**26, in_group),
    4: ("opening-request", 2**26, {**in_group, **listed}),
    5: ("opening", 2**26, {**in_group, **answered}),
    6: ("refusal", 0, stage),
    7: ("key-share", 2**18, {**in_group, "holder": name, "contribution": digest}),
    8: ("key-opening", 2**18, {**in_group, "request": digest}),
    9: ("mask-key", 2**11, at_plan),
    10: ("mask-seed", 2**11, {**at_plan, "receiver": name}),
    11: ("hop", 2**26, {**in_group, "receiver": name}),
    12: ("link", 2**26, {**in_group, "received": digest, "sent": digest}),
    15: ("reading", 2**26, {**in_group, "request": digest}),
}


def receive(message: bytes, kind: str, awaits: dict[str, Any]) -> str:
    """The identity of the message if it is the one that is awaited; else RefusedError."""
    if len(message) < PREFIX + SIGNATURE:
        raise RefusedError("frame")
    magic, version, code, header_size, body_size = struct.unpack("<5sBBII", message[:PREFIX])
    known = KINDS.get(code)
    if magic != b"NATFL" or version != 1 or known is None or known[0] != kind:
        raise RefusedError("frame")
    if header_size > HEADER_LIMIT or body_size > known[1] or body_size != awaits["body_bytes"]:
        raise RefusedError("length")
    if len(message) != PREFIX + header_size + body_size + SIGNATURE:
        raise RefusedError("length")
    signed = message[:-SIGNATURE]
    verify(awaits["verify_key"], signed, message[-SIGNATURE:])
    raw = signed[PREFIX : PREFIX + header_size]
    header = parsed(raw)
    if not record(**known[2])(header):
        raise RefusedError("header")
    if canonical(header) != raw:
        raise RefusedError("canonical form")
    if header["sender"] != awaits["sender"]:
        raise RefusedError("sender")
    if any(header[field] != awaits[field] for field in ("session", "round", "attempt")):
        raise RefusedError("stage")
    return hashlib.sha256(signed).hexdigest()


def verify(public: str, message: bytes, signature: bytes) -> None:
    """Ed25519; RefusedError if the signature is another's."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise RefusedError("signature") from None


def parsed(raw: bytes) -> Any:
    """JSON, or RefusedError."""
    try:
        return json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        raise RefusedError("header") from None


def canonical(value: Any) -> bytes:
    """RFC 8785; RefusedError for numbers that it has no form for."""
    return _text(value).encode()


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return '"' + "".join(map(_escaped, value)) + '"'
    if isinstance(value, int):
        if abs(value) >= 2**53:
            raise RefusedError("canonical form")
        return str(value)
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    keys = sorted(value, key=lambda key: key.encode("utf-16-be"))
    return "{" + ",".join(f"{_text(key)}:{_text(value[key])}" for key in keys) + "}"


def _escaped(letter: str) -> str:
    short = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}
    if letter in '"\\':
        return "\\" + letter
    if letter in short:
        return short[letter]
    return f"\\u{ord(letter):04x}" if letter < " " else letter


def number(value: float) -> str:
    """The shortest decimal of a double, set as ECMAScript sets it (RFC 8785 section 3.2.2.3)."""
    if value != value or value in (float("inf"), float("-inf")):
        raise RefusedError("canonical form")
    if value == 0:
        return "0"
    minus, figures, exponent = Decimal(repr(value)).normalize().as_tuple()
    digits = "".join(map(str, figures))
    point = len(digits) + int(exponent)
    if len(digits) <= point <= 21:
        shown = digits + "0" * (point - len(digits))
    elif 0 < point <= 21:
        shown = f"{digits[:point]}.{digits[point:]}"
    elif -6 < point <= 0:
        shown = f"0.{'0' * -point}{digits}"
    else:
        fraction = f".{digits[1:]}" if len(digits) > 1 else ""
        shown = f"{digits[0]}{fraction}e{point - 1:+d}"
    return "-" * minus + shown

"""Vectors of signed messages: every kind, honest and wrong in one way at a time."""

import struct
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any

from cast import KEYS, enrolment, plan, public

from protocols.chain import canonical, digest
from protocols.envelope import identity
from protocols.messages import KINDS, Message, Refusal, RoundPlan
from protocols.policy import SERVER

FRAME = "every receiver, before it parses: docs/protocol.md section 2"
ORDER = "every receiver: docs/protocol.md section 2"
FORM = "every receiver: docs/protocol.md section 2, RFC 8785"
SIGNED = "every receiver: docs/protocol.md section 2, RFC 8032"
HEADER_LIMIT = 1 << 18
SENDERS = {
    "round-plan": SERVER,
    "opening-request": SERVER,
    "opening": SERVER,
    "round-key": "a.holder",
    "refusal": "a.holder",
    "key-opening": "a.holder",
}

Vector = dict[str, Any]
Header = dict[str, Any]


def document() -> dict[str, Any]:
    """The file: what a receiver awaits, by kind, and the messages (base64) that it is sent."""
    awaits = {kind.kind: _awaited(sample(kind)) for kind in KINDS}
    return {"awaits": awaits, "vectors": [vector for kind in KINDS for vector in _of(kind)]}


def sample(kind: type[Message]) -> Message:
    """A message of the kind at round 1, attempt 1, its fields filled by their types."""
    if kind is RoundPlan:
        return plan(enrolment())
    schema = kind.model_json_schema()
    header = {
        name: _filled(name, field, schema.get("$defs", {}))
        for name, field in schema["properties"].items()
        if name != "body"
    }
    known = {"session": "study", "round": 1, "attempt": 1, "sender": SENDERS.get(kind.kind, "a")}
    message = kind.model_validate_json(canonical({**header, **known}))
    body = bytes(range(24)) if kind.body_limit else b""
    return message.model_copy(update={"body": body})


def framed(
    code: int,
    header: bytes,
    body: bytes,
    signer: str,
    *,
    magic: bytes = b"NATFL",
    version: int = 1,
    lengths: tuple[int, int] | None = None,
) -> bytes:
    """A signed frame of any content."""
    sizes = lengths or (len(header), len(body))
    unsigned = struct.pack("<5sBBII", magic, version, code, *sizes) + header + body
    return unsigned + KEYS[signer].sign(unsigned)


def _awaited(message: Message) -> Header:
    expected = {"sender": message.sender, "verify_key": public(message.sender)}
    return {**message.stage._asdict(), **expected, "body_bytes": len(message.body)}


def _filled(name: str, field: dict[str, Any], types: dict[str, Any]) -> Any:
    if "$ref" in field:
        field = types[field["$ref"].rsplit("/", 1)[1]]
    if "anyOf" in field:
        return _filled(name, field["anyOf"][0], types)
    if "enum" in field:
        return field["enum"][0]
    if field["type"] == "object":
        return {key: _filled(key, inner, types) for key, inner in field["properties"].items()}
    if field["type"] == "array":
        inner = field.get("items") or field["prefixItems"][0]
        return [_filled(name, inner, types)] * field.get("minItems", 1)
    if field["type"] == "integer":
        return 1
    return digest(name.encode()) if "{64}" in field.get("pattern", "") else "b"


def _of(kind: type[Message]) -> Iterator[Vector]:
    message = sample(kind)
    header, body, code = message.model_dump(mode="json"), message.body, kind.code
    signer, text = message.sender, canonical(header)
    blob = framed(code, text, body, signer)

    def vector(name: str, source: str, made: bytes, step: str | None) -> Vector:
        result = {"step": step} if step else {"identity": identity(made)}
        text = b64encode(made).decode()
        frame = {"awaits": kind.kind, "message": text, "expected": result}
        return {"name": f"{kind.kind}: {name}", "source": source, **frame}

    def written(new: Header | bytes, **frame: Any) -> bytes:
        raw = new if isinstance(new, bytes) else canonical(new)
        return framed(code, raw, body, signer, **frame)

    yield vector("honest", ORDER, blob, None)
    for name, made, step in _frames(kind, text, body, blob, written):
        yield vector(name, FRAME, made, step)
    stranger = framed(code, text, body, "f" if signer != "f" else "e")
    yield vector("signed by somebody else", SIGNED, stranger, "signature")
    for name, at in (("header", 20), ("signature", len(blob) - 1), ("last byte before it", -65)):
        flipped = bytearray(blob)
        flipped[at] ^= 1
        yield vector(f"one bit of the {name} changed", SIGNED, bytes(flipped), "signature")
    for field, value in {"sender": "c", "session": "other", "round": 2, "attempt": 2}.items():
        step = "sender" if field == "sender" else "stage"
        yield vector(f"another {field}", ORDER, written({**header, field: value}), step)
    for name, new, step in _headers(header, text):
        yield vector(name, FORM, written(new), step)
    if kind is Refusal:  # the shortest; the parser is the same for all
        for name, new in _values(header, text):
            yield vector(name, FORM, written(new), "header")


def _frames(
    kind: type[Message], text: bytes, body: bytes, blob: bytes, written: Callable[..., bytes]
) -> Iterator[tuple[str, bytes, str]]:
    size = (len(text), len(body))
    other = next(known.code for known in KINDS if known is not kind)
    yield "another magic", written(text, magic=b"NATFX"), "frame"
    yield "version 0", written(text, version=0), "frame"
    yield "version 2", written(text, version=2), "frame"
    signer = sample(kind).sender
    for code in (0, 255):
        yield f"unknown kind {code}", framed(code, text, body, signer), "frame"
    yield f"sent as kind {other}", framed(other, text, body, signer), "frame"
    yield "no bytes", b"", "frame"
    yield "shorter than prefix and signature", blob[:78], "frame"
    yield "header length one more", written(text, lengths=(size[0] + 1, size[1])), "length"
    yield "both lengths zero", written(text, lengths=(0, 0)), "length"
    yield "header over its limit", written(text, lengths=(HEADER_LIMIT + 1, size[1])), "length"
    over = (size[0], kind.body_limit + 1)
    yield "body over the kind's limit", written(text, lengths=over), "length"
    yield "body length 2^32 - 1", written(text, lengths=(size[0], 2**32 - 1)), "length"
    yield "last byte missing", blob[:-1], "length"
    yield "a byte after the end", blob + b"\0", "length"
    yield "twice", blob + blob, "length"
    if kind.body_limit:
        yield "body one byte longer", framed(kind.code, text, body + b"\0", signer), "length"
        yield "body empty", framed(kind.code, text, b"", signer), "length"


def _headers(header: Header, text: bytes) -> Iterator[tuple[str, Header | bytes, str]]:
    at, same = b'"attempt":1', "canonical form"
    swapped = canonical({"zz": 0, **header}).replace(b',"zz":0', b"")[1:]
    yield "space in the header", text.replace(b":", b": ", 1), same
    yield "line feed after the header", text + b"\n", same
    yield "a key twice", b'{"attempt":1,' + text[1:], same
    yield "a key twice, first another value", b'{"attempt":7,' + text[1:], same
    yield (
        "keys not in order",
        b'{"sender":"%s",' % header["sender"].encode()
        + swapped.replace(b'"sender":"%s",' % header["sender"].encode(), b""),
        same,
    )
    yield "a letter escaped", text.replace(b"study", b"st\\u0075dy"), same
    yield "unknown field", {**header, "class": "x"}, "header"
    yield "field body in the header", {**header, "body": "x"}, "header"
    for name in header:
        yield f"no {name}", {key: header[key] for key in header if key != name}, "header"
    for value in (b"1.5", b"1.0", b"true", b"2147483648"):
        yield f"attempt {value.decode()}", text.replace(at, b'"attempt":' + value), "header"
    yield "attempt of 400 digits", text.replace(at, b'"attempt":' + b"9" * 400), "header"
    yield "round -0", text.replace(b'"round":1', b'"round":-0'), same
    yield "a session that is a path", {**header, "session": "../study"}, "header"
    yield "header empty", b"", "header"
    for name, value in header.items():
        if isinstance(value, str) and len(value) == 64:
            yield f"{name} in capitals", {**header, name: "AB" * 32}, "header"
            yield f"{name} one digit short", {**header, name: value[1:]}, "header"
        if isinstance(value, list):
            yield f"{name} no list", {**header, name: "x"}, "header"


def _values(header: Header, text: bytes) -> Iterator[tuple[str, Header | bytes]]:
    for value in (b"1e0", b"NaN", b'"1"', b"null", b"[1]", b"-1", b"0x1", b"01"):
        yield f"attempt {value.decode()}", text.replace(b'"attempt":1', b'"attempt":' + value)
    for name in ("", "a/b", ".a", "a\n", "é", "a" * 129):
        yield f"session {name[:5]!r}", {**header, "session": name}
    yield "not UTF-8", text.replace(b"study", b"stu\xffdy")
    for name, whole in (("null", b"null"), ("a list", b"[]"), ("nested", b"[" * 2000)):
        yield f"header {name}", whole


_OPTIONAL = frozenset({"floors"})

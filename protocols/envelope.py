"""Signed bytes around one message: what is checked before anything is parsed, and in which order.

A message on the wire is

    magic "NATFL" | version u8 | kind u8 | header bytes u32 | body bytes u32
    | header (RFC 8785 JSON) | body (binary) | Ed25519 signature over everything before it

The receiver states what it awaits: kind, signer, stage (session, round, attempt) and, where the
preset fixes it, the length of the body. Lengths are compared before anything is read, the
signature is verified before the header is parsed, and the parsed message must encode to the very
bytes that arrived, so that one message has one encoding.
"""

import struct
from typing import Final

from pydantic import ValidationError

from protocols.chain import SigningKey, canonical, digest, verify
from protocols.errors import ProtocolError
from protocols.messages import KINDS, M, Message, Stage

MAGIC: Final = b"NATFL"
VERSION: Final = 1
SIGNATURE_BYTES: Final = 64
HEADER_LIMIT: Final = 1 << 18
_PREFIX: Final = struct.Struct("<5sBBII")
_BY_CODE: Final = {kind.code: kind for kind in KINDS}


def refused(kind: str, step: str) -> ProtocolError:
    """The receiver's own error: which message, and which step failed. Never sent to a peer."""
    return ProtocolError(
        "message refused", where=kind, why=step, fix="nothing was released; start a new attempt"
    )


def seal(message: Message, key: SigningKey) -> bytes:
    """Encode and sign a message. The sender runs it, once per message."""
    if len(message.body) > message.body_limit:
        raise refused(message.kind, "body is over the limit of its kind")
    unsigned = _encode(message)
    return unsigned + key.sign(unsigned)


def unseal(
    blob: bytes,
    expected: type[M],
    at: Stage,
    *,
    sender: str,
    verify_key: bytes,
    body_bytes: int | None = None,
) -> M:
    """Check and decode the one message that the receiver awaits now, else ProtocolError.

    `body_bytes` is the exact length of the body where the preset fixes it; otherwise the limit
    of the kind holds.
    """
    message = authentic(blob, expected, sender=sender, verify_key=verify_key, body_bytes=body_bytes)
    if message.stage != at:
        raise refused(expected.kind, "another session, round or attempt")
    return message


def authentic(
    blob: bytes,
    expected: type[M],
    *,
    sender: str,
    verify_key: bytes,
    body_bytes: int | None = None,
) -> M:
    """As `unseal`, for what opens a stage or may belong to an earlier one.

    The caller compares the stage, against the enrolment or against what it stored.
    """
    header_bytes = _check_frame(blob, expected, body_bytes)
    unsigned, signature = blob[:-SIGNATURE_BYTES], blob[-SIGNATURE_BYTES:]
    verify(verify_key, unsigned, signature)
    message = _decode(unsigned, expected, header_bytes)
    if message.sender != sender:
        raise refused(expected.kind, "another sender")
    return message


def identity(blob: bytes) -> str:
    """SHA-256 (hex) of all that the signature covers: how messages name each other."""
    return digest(blob[:-SIGNATURE_BYTES])


def kind_of(blob: bytes) -> type[Message]:
    """The kind that a frame says it is; nothing is verified and nothing else is read."""
    if len(blob) < _PREFIX.size + SIGNATURE_BYTES:
        raise refused("message", "shorter than any message")
    magic, version, code, _, _ = _PREFIX.unpack_from(blob)
    if magic != MAGIC or version != VERSION or code not in _BY_CODE:
        raise refused("message", "unknown magic, version or kind")
    return _BY_CODE[code]


def outline(blob: bytes) -> Message:
    """A message as its author wrote it, signature not verified: for filing one's own traffic."""
    kind = kind_of(blob)
    return _decode(blob[:-SIGNATURE_BYTES], kind, _check_frame(blob, kind, None))


def _check_frame(blob: bytes, expected: type[Message], body_bytes: int | None) -> int:
    """Compare kind and lengths without parsing; the header's length."""
    if kind_of(blob) is not expected:
        raise refused(expected.kind, "another kind of message")
    *_, header, body = _PREFIX.unpack_from(blob)
    if header > HEADER_LIMIT or body > expected.body_limit:
        raise refused(expected.kind, "over the size limit")
    if body_bytes is not None and body != body_bytes:
        raise refused(expected.kind, "body length is not the preset's")
    if len(blob) != _PREFIX.size + header + body + SIGNATURE_BYTES:
        raise refused(expected.kind, "truncated, or bytes after the end")
    return int(header)


def _encode(message: Message) -> bytes:
    header = canonical(message.model_dump(mode="json"))
    if len(header) > HEADER_LIMIT:
        raise refused(message.kind, "header is over the limit")
    prefix = _PREFIX.pack(MAGIC, VERSION, message.code, len(header), len(message.body))
    return prefix + header + message.body


def _decode(unsigned: bytes, kind: type[M], header_bytes: int) -> M:
    start = _PREFIX.size
    header, body = unsigned[start : start + header_bytes], unsigned[start + header_bytes :]
    try:
        # model_copy: the body is outside the JSON, and bytes already.
        message = kind.model_validate_json(header).model_copy(update={"body": body})
        if _encode(message) == unsigned:
            return message
    except (ValidationError, ProtocolError):
        pass
    raise refused(kind.kind, "header is not the canonical form of its kind") from None

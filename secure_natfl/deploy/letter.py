"""Signed bytes around one question or answer of the exchange.

    magic "NATFD" | version u8 | header bytes u32
    | header (RFC 8785 JSON) | parts | Ed25519 signature over magic to header

The messages of the protocol (protocols.envelope) travel as parts, each signed by its own author;
the letter binds what goes with them to session, round, attempt, phase, sender and receiver, and an
answer to the very question that it answers. Sizes are compared before anything is parsed, the
signature is verified before the header is read, and a header has one encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import Field, ValidationError

from protocols.chain import SigningKey, canonical, digest, verify
from protocols.errors import ProtocolError
from protocols.messages import Count, Digest, Name, StrictModel
from secure_natfl.deploy.party import Phase

MAGIC: Final = b"NATFD"
VERSION: Final = 1
SIGNATURE_BYTES: Final = 64
LIMIT: Final = 1 << 28
"""The most bytes of a letter; whoever reads one from a wire stops there."""

MOST_PARTS: Final = 4096
"""The most parts of a letter."""

_HEADER_LIMIT: Final = 1 << 16
_PREFIX: Final = struct.Struct("<5sBI")
_NOTHING: Final = "0" * 64


class Header(StrictModel):
    """What a letter says of itself.

    about: SHA-256 of the question that it answers, zeros in a question. refused: an answer that
    gives nothing, of one shape whatever the reason. sizes, sha256: of the parts.
    """

    session: Name
    round: Count
    attempt: Count
    phase: Phase
    sender: Name
    receiver: Name
    kind: Literal["question", "answer"]
    about: Digest = _NOTHING
    refused: bool = False
    sizes: Annotated[
        tuple[Annotated[int, Field(ge=0, le=LIMIT)], ...], Field(max_length=MOST_PARTS)
    ]
    sha256: Digest

    @property
    def place(self) -> tuple[int, int]:
        """Round and attempt: what a later question may not fall behind."""
        return self.round, self.attempt


@dataclass(frozen=True)
class Letter:
    """A letter that was verified. digest: SHA-256 of all its bytes."""

    header: Header
    parts: tuple[bytes, ...]
    digest: str


def question(
    session: str,
    phase: Phase,
    place: tuple[int, int],
    sender: str,
    receiver: str,
    parts: Sequence[bytes],
    key: SigningKey,
) -> bytes:
    """The server's question to one party; the same arguments give the same bytes.

    ProtocolError for more parts than `MOST_PARTS`, or more bytes than `LIMIT`.
    """
    _demand(len(parts) <= MOST_PARTS, f"{len(parts)} parts, and {MOST_PARTS} at most")
    header = Header(
        session=session,
        round=place[0],
        attempt=place[1],
        phase=phase,
        sender=sender,
        receiver=receiver,
        kind="question",
        sizes=tuple(map(len, parts)),
        sha256=digest(b"".join(parts)),
    )
    return _seal(header, parts, key)


def answer(asked: Letter, parts: Sequence[bytes], key: SigningKey) -> bytes:
    """A party's answer to a question that it has verified."""
    return _seal(_answering(asked.header, asked.digest, parts, refused=False), parts, key)


def refusal(asked: bytes, session: str, phase: Phase, sender: str, key: SigningKey) -> bytes:
    """A party's constant no to whatever bytes came; it may not have been able to read them."""
    header = Header(
        session=session,
        round=0,
        attempt=0,
        phase=phase,
        sender=sender,
        receiver="server",
        kind="answer",
        about=digest(asked),
        refused=True,
        sizes=(),
        sha256=digest(b""),
    )
    return _seal(header, (), key)


def open_question(
    blob: bytes, session: str, phase: str, sender: str, receiver: str, key: bytes
) -> Letter:
    """A question for this party, of this session and phase; ProtocolError otherwise."""
    letter = _open(blob, key, "question")
    header = letter.header
    _demand(header.session == session, "another session")
    _demand((header.sender, header.receiver) == (sender, receiver), "another sender or receiver")
    _demand((header.kind, header.phase) == ("question", phase), "another kind or phase")
    return letter


def open_answer(blob: bytes, asked: bytes, sender: str, key: bytes) -> Letter:
    """The answer of `sender` to the question `asked`; ProtocolError otherwise."""
    letter, own = _open(blob, key, "answer"), _outline(asked)
    said = letter.header
    _demand((said.sender, said.receiver) == (sender, own.sender), "another sender or receiver")
    _demand((said.session, said.phase) == (own.session, own.phase), "another session or phase")
    _demand(said.about == digest(asked), "it answers another question")
    if not said.refused:
        _demand(said.place == own.place, "another round or attempt")
    return letter


def _answering(asked: Header, about: str, parts: Sequence[bytes], *, refused: bool) -> Header:
    return asked.model_copy(
        update={
            "sender": asked.receiver,
            "receiver": asked.sender,
            "kind": "answer",
            "about": about,
            "refused": refused,
            "sizes": tuple(map(len, parts)),
            "sha256": digest(b"".join(parts)),
        }
    )


def _seal(header: Header, parts: Sequence[bytes], key: SigningKey) -> bytes:
    text = canonical(header.model_dump(mode="json"))
    unsigned = _PREFIX.pack(MAGIC, VERSION, len(text)) + text + b"".join(parts)
    if len(text) > _HEADER_LIMIT or len(unsigned) + SIGNATURE_BYTES > LIMIT:
        raise _refused("over the size limit")
    # The parts are in the signed header by their digest.
    return unsigned + key.sign(unsigned[: _PREFIX.size + len(text)])


def _open(blob: bytes, key: bytes, kind: str) -> Letter:
    text, start = _text(blob)
    verify(key, blob[:start], blob[-SIGNATURE_BYTES:])
    header = _header(text)
    body = blob[start:-SIGNATURE_BYTES]
    _demand(sum(header.sizes) == len(body), "truncated, or bytes after the end")
    _demand(header.sha256 == digest(body), "its parts are not those that were signed")
    _demand(header.kind == kind, f"no {kind}")
    parts, at = [], 0
    for size in header.sizes:
        parts.append(body[at : at + size])
        at += size
    return Letter(header, tuple(parts), digest(blob))


def _outline(blob: bytes) -> Header:
    """The header of a letter of one's own."""
    return _header(_text(blob)[0])


def _text(blob: bytes) -> tuple[bytes, int]:
    """The header's bytes and where the parts begin; nothing is parsed."""
    _demand(len(blob) <= LIMIT, "over the size limit")
    _demand(len(blob) >= _PREFIX.size + SIGNATURE_BYTES, "shorter than any letter")
    magic, version, size = _PREFIX.unpack_from(blob)
    _demand((magic, version) == (MAGIC, VERSION), "unknown magic or version")
    start = _PREFIX.size + size
    fits = size <= _HEADER_LIMIT and start + SIGNATURE_BYTES <= len(blob)
    _demand(fits, "header is truncated or over the limit")
    return blob[_PREFIX.size : start], start


def _header(text: bytes) -> Header:
    try:
        header = Header.model_validate_json(text)
        if canonical(header.model_dump(mode="json")) == text:
            return header
    except (ValidationError, ProtocolError):
        pass
    raise _refused("header is not the canonical form")


def _demand(holds: bool, why: str) -> None:
    if not holds:
        raise _refused(why)


def _refused(why: str) -> ProtocolError:
    return ProtocolError(
        "letter refused", where="exchange", why=why, fix="nothing was done; ask anew"
    )

"""Canonical bytes, hash chains and signatures: one of each for transcript, ledger and log.

Canonical JSON is RFC 8785, hashes are SHA-256 (FIPS 180-4), signatures Ed25519 (RFC 8032).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from protocols.errors import ProtocolError

RandomBytes = Callable[[int], bytes]
"""Gives that many random bytes; production passes `os.urandom`."""

GENESIS = "0" * 64
"""What stands before the first line of every chain."""


def canonical(obj: Any) -> bytes:
    """The one byte string of a JSON value (RFC 8785).

    Raises ProtocolError for what JSON cannot say exactly: NaN, infinity, integers beyond 2^53,
    keys that are no strings, other types.
    """
    try:
        return rfc8785.dumps(obj)
    except rfc8785.CanonicalizationError as error:
        raise ProtocolError(
            "value has no canonical JSON form",
            why=str(error),
            fix="use strings for infinities and for integers beyond 2^53",
        ) from error


def digest(data: bytes) -> str:
    """SHA-256 of `data` in 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def link(previous: str, line: bytes) -> str:
    """Hash of a chain that stood at `previous` (64 hex digits, first `GENESIS`) after `line`.

    `previous` has a fixed length, so no two (previous, line) pairs give the same bytes.
    """
    return digest(bytes.fromhex(previous) + line)


class SigningKey:
    """An Ed25519 key pair. The private half is neither printed nor pickled."""

    def __init__(self, private: bytes) -> None:
        if len(private) != 32:
            raise ProtocolError(
                f"signing key of {len(private)} bytes", fix="give the 32 bytes of an Ed25519 key"
            )
        self._key = Ed25519PrivateKey.from_private_bytes(private)

    @classmethod
    def generate(cls, random: RandomBytes) -> SigningKey:
        """Make a new key from 32 bytes of `random`."""
        return cls(random(32))

    def private_bytes(self) -> bytes:
        """The 32 secret bytes, for the owner's own key file."""
        return self._key.private_bytes_raw()

    @property
    def public(self) -> bytes:
        """The 32 public bytes that others verify with."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """64-byte signature. `message` must name its own kind, session and round."""
        return self._key.sign(message)

    def __reduce__(self) -> str:
        raise ProtocolError(
            "a signing key may not be pickled", fix="write private_bytes() to a key file"
        )


def verify(public: bytes, message: bytes, signature: bytes) -> None:
    """Return if `signature` (64 bytes) on `message` is by the key `public` (32 bytes).

    Raises ProtocolError otherwise; what was not verified must not be used.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise ProtocolError(
            "signature does not verify",
            why="the message was changed, or signed with another key",
            fix="fetch the message again from its sender, and compare the enrolled public keys",
        ) from error

"""Sealing a few bytes to one party for one attempt: HPKE (RFC 9180) with a hybrid key.

The KEM joins ML-KEM-768 and X25519: what is recorded on the wire stays shut as long as either
holds. Ciphertexts rest on lattices already; without ML-KEM the sealed key shares would be the
one thing that a later quantum computer opens.
"""

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from protocols.chain import canonical
from protocols.errors import ProtocolError

_LATTICE_BYTES: Final = 1184
PUBLIC_BYTES: Final = _LATTICE_BYTES + 32
"""A public sealing key: ML-KEM-768, then X25519."""
OVERHEAD: Final = 1088 + 32 + 16
"""What sealing adds: two encapsulations and the tag of ChaCha20-Poly1305."""
_SUITE: Final = hpke.Suite(
    hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305
)


class SealingKey:
    """A party's key pair for one attempt, drawn from the operating system; never written down."""

    def __init__(self) -> None:
        lattice, curve = MLKEM768PrivateKey.generate(), X25519PrivateKey.generate()
        self._key = hpke.MLKEM768X25519PrivateKey(lattice, curve)
        self.public = (
            lattice.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()
        )

    def open(self, sealed: bytes, *context: str) -> bytes:
        """The bytes that were sealed to this key in this context, else ProtocolError."""
        try:
            return bytes(_SUITE.decrypt(sealed, self._key, info=canonical(list(context))))
        except (InvalidTag, ValueError) as error:
            raise ProtocolError("sealed bytes do not open", where="/".join(context)) from error

    def __reduce__(self) -> str:
        raise ProtocolError("a sealing key may not be pickled")


def seal_to(public: bytes, content: bytes, *context: str) -> bytes:
    """Seal to a party's public key; it opens only with the same context (plan, group, names).

    ProtocolError for bytes that are no public key.
    """
    try:
        key = hpke.MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(public[:_LATTICE_BYTES]),
            X25519PublicKey.from_public_bytes(public[_LATTICE_BYTES:]),
        )
        return bytes(_SUITE.encrypt(content, key, info=canonical(list(context))))
    except ValueError as error:
        raise ProtocolError("not a sealing key", where="/".join(context)) from error

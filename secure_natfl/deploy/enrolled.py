"""The list that the consortium signs: who takes part, under which keys, on which configuration.

It is public. Whoever holds another list than the others, or one that the consortium did not sign,
is refused before anything is asked of it.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Final

from pydantic import StringConstraints, ValidationError

from protocols.audit_events import Signature
from protocols.chain import SigningKey, canonical, digest, verify
from protocols.errors import ConfigError, ProtocolError
from protocols.messages import Name, StrictModel
from protocols.policy import Enrolment
from secure_natfl.config import Config
from secure_natfl.toml_config import parse

ENROLLED: Final = "enrolled.json"
CONSORTIUM: Final = "consortium.pub"
_UNSIGNED: Final = "0" * 128

NodeKey = Annotated[str, StringConstraints(pattern=r"^ecdsa-sha2-nistp384 [A-Za-z0-9+/=]{1,300}\z")]
"""The public key that admits a party's machine, EC P-384 in OpenSSH's form."""


class Enrolled(StrictModel):
    """A session's parties and terms, under the consortium's signature.

    nonce: tells two sessions of one configuration apart. text: the configuration, TOML. nodes:
    party → the key of its machine.
    """

    enrolment: Enrolment
    nonce: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}\z")]
    text: Annotated[str, StringConstraints(max_length=1 << 18)]
    nodes: dict[Name, NodeKey]
    signature: Signature = _UNSIGNED

    @property
    def session(self) -> str:
        """The session's id."""
        return self.enrolment.session

    @property
    def config(self) -> Config:
        """The configuration that all parties share."""
        return parse(tomllib.loads(self.text), ENROLLED)

    @property
    def digest(self) -> str:
        """SHA-256 by which the parties compare their copies."""
        return digest(self.said())

    @property
    def parties(self) -> tuple[str, ...]:
        """Whom the server asks: the clients, then the key holders that are no client's."""
        return (*self.enrolment.clients, *self.independent)

    @property
    def independent(self) -> tuple[str, ...]:
        """Key holders that are bodies of their own."""
        own = {f"{client}.holder" for client in self.enrolment.clients}
        return tuple(name for name in self.enrolment.holder_order if name not in own)

    def said(self) -> bytes:
        """The bytes that the consortium signs."""
        body = self.model_dump(mode="json", exclude={"signature"})
        return canonical({"kind": "deployed-enrolment", **body})

    def signed(self, key: SigningKey) -> Enrolled:
        """The list under the consortium's signature."""
        return self.model_copy(update={"signature": key.sign(self.said()).hex()})


def read_enrolled(folder: Path) -> Enrolled:
    """A party's copy of the list, if the consortium that the party trusts signed it.

    ConfigError where there is none; ProtocolError for an unsigned, changed or foreign one.
    """
    try:
        trusted = bytes.fromhex((folder / CONSORTIUM).read_text().strip())
        found = Enrolled.model_validate_json((folder / ENROLLED).read_bytes())
    except (OSError, ValueError) as error:
        why = "it is malformed" if isinstance(error, ValidationError) else str(error)
        raise ConfigError(
            "there is no enrolment list to go by",
            where=str(folder),
            why=why,
            fix=f"put {ENROLLED} and {CONSORTIUM} there, as the consortium handed them out",
        ) from None
    try:
        verify(trusted, found.said(), bytes.fromhex(found.signature))
    except ProtocolError:
        raise ProtocolError(
            "the consortium did not sign this enrolment list",
            where=str(folder / ENROLLED),
            why="it was changed, or is another consortium's",
            fix="ask the consortium for its list, and compare the key by telephone",
        ) from None
    return found

"""The signed envelope around evidence: an in-toto Statement v1 in DSSE, signed with Ed25519.

The statement names the files of the evidence folder by digest. Its signature is made over
"DSSEv1", the lengths and the bytes of type and payload (DSSE protocol 1.0), so nothing is parsed
before it is verified.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any, Final

from protocols.chain import SigningKey, canonical, digest, verify
from secure_natfl.audit.findings import demand

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "urn:secure-natfl:evidence:1"


def seal_statement(
    files: Mapping[str, bytes], predicate: Mapping[str, Any], key: SigningKey
) -> bytes:
    """The envelope's JSON around a statement on `files` (name → bytes). The auditor runs it."""
    payload = canonical(
        {
            "_type": STATEMENT_TYPE,
            "subject": [
                {"name": name, "digest": {"sha256": digest(data)}}
                for name, data in sorted(files.items())
            ],
            "predicateType": PREDICATE_TYPE,
            "predicate": {**predicate, "auditor": key.public.hex()},
        }
    )
    signature = key.sign(encoded(PAYLOAD_TYPE, payload))
    envelope = {
        "payload": b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [
            {"keyid": digest(key.public), "sig": b64encode(signature).decode()},
        ],
    }
    return canonical(envelope) + b"\n"


def open_statement(data: bytes, pinned: bytes | None) -> dict[str, Any]:
    """The statement of an envelope, verified with `pinned`, else with the key that it names.

    BrokenError or ProtocolError where it is not signed so; ValueError or KeyError where malformed.
    Without a pinned key the caller must say which key signed: anybody can sign with their own.
    """
    envelope = json.loads(data)
    demand(canonical(envelope) + b"\n" == data, "the envelope is not in its one encoding")
    demand(set(envelope) == {"payload", "payloadType", "signatures"}, "unknown envelope fields")
    demand(envelope["payloadType"] == PAYLOAD_TYPE, "the payload is of another type")
    payload = b64decode(envelope["payload"], validate=True)
    (one,) = envelope["signatures"]
    statement: dict[str, Any] = json.loads(payload)
    named = bytes.fromhex(statement["predicate"]["auditor"])
    key = pinned or named
    demand(named == key, "the evidence is signed with another key than the one given")
    demand(one == {"keyid": digest(key), "sig": one["sig"]}, "the signature names another key")
    verify(key, encoded(envelope["payloadType"], payload), b64decode(one["sig"], validate=True))
    kinds = (statement["_type"], statement["predicateType"])
    demand(kinds == (STATEMENT_TYPE, PREDICATE_TYPE), "a statement of another type")
    return statement


def encoded(kind: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed."""
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)

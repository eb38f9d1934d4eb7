"""Who appears in the vectors: fixed test keys, two enrolments, and one plan of each."""

import hashlib
from typing import Any

from protocols import __version__
from protocols.chain import SigningKey, digest
from protocols.messages import Floors, Group, RoundPlan
from protocols.policy import DECRYPTOR, SERVER, Enrolment, holder_name

CLIENTS = ("a", "b", "c", "d", "e", "f")
PARTIES = (SERVER, DECRYPTOR, *CLIENTS, *map(holder_name, CLIENTS))
SIZE = 40


def secret_of(party: str) -> bytes:
    """The 32 private bytes of a party's signing key; published, so good for nothing else."""
    return hashlib.sha256(b"natfl test key of " + party.encode()).digest()


KEYS = {party: SigningKey(secret_of(party)) for party in PARTIES}


def public(party: str) -> str:
    """A party's verify key in hexadecimal."""
    return KEYS[party].public.hex()


def enrolment(mode: str = "ckks/threshold", **changes: Any) -> Enrolment:
    """Six clients; all of them hold key shares, or a decryptor opens."""
    shared = mode == "ckks/threshold"
    holders = [holder_name(name) for name in CLIENTS] if shared else [DECRYPTOR]
    fields: dict[str, Any] = {
        "session": "study",
        "mode": mode,
        "server": public(SERVER),
        "clients": {name: public(name) for name in CLIENTS},
        "holders": {name: public(name) for name in holders},
        "threshold": 4 if shared else 1,
        "malicious": 1 if shared else 0,
        "preset": "mk18-39" if shared else "pk18-44",
        "proxies": digest(b"proxies"),
        "terms": digest(b"terms"),
        "floors": Floors(),
    }
    return Enrolment(**{**fields, **changes})


def group(
    name: str = "g0", members: str = "abcd", alphas: Any = (1, 2, 3, 4), **more: Any
) -> Group:
    """A group of clients with one-letter names."""
    return Group(name=name, participants=tuple(members), alphas=tuple(alphas), **more)


def plan(agreed: Enrolment, **changes: Any) -> RoundPlan:
    """Round 1, attempt 1, of a session: forty integers, ten proxies, one group of four."""
    fields: dict[str, Any] = {
        "session": agreed.session,
        "round": 1,
        "attempt": 1,
        "sender": SERVER,
        "version": __version__,
        "mode": agreed.mode,
        "proxies": agreed.proxies,
        "groups": (group(),),
        "preset": agreed.preset,
        "layout": digest(b"layout"),
        "size": SIZE,
        "terms": agreed.terms,
        "floors": agreed.floors,
        "holders": agreed.holders_id,
        "body": indices(range(10, 20)),
    }
    return RoundPlan(**{**fields, **changes})


def indices(numbers: Any) -> bytes:
    """Proxy indices as a plan's body."""
    return b"".join(number.to_bytes(4, "little") for number in numbers)

"""What each mode promises: who may pool what they know, and what still stays hidden.

One source for `natfl check`, for reports and for SECURITY.md. `attacks.collusion` plays rounds
and tries every coalition of small federations: it reads a single contribution exactly where
`Promise.exposes` says so. Whatever is read still has the noise that its site added.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from protocols.coalition import (
    Coalition,
    between_two,
    enough_shares,
    nobody,
    whoever_sees_them,
)
from protocols.messages import Mode
from protocols.multikey import multikey_preset
from protocols.rlwe import preset
from protocols.sealing import OVERHEAD, PUBLIC_BYTES
from protocols.slots import SLOTS18_140

_SEED_BYTES: Final = 32


@dataclass(frozen=True)
class Parties:
    """What message sizes depend on: a group of `clients`, `holders` of whom `threshold` open."""

    clients: int
    holders: int
    threshold: int
    preset: str


Exposed = Callable[[Coalition], tuple[str, ...]]
Bodies = Callable[[Parties, int], tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What one mode promises, in words for people and as functions for machines.

    hidden_unless: the coalitions that read a single contribution, in words. opened: how sums are
    made and opened, to follow "and". trust: whom one relies on. dropouts: before it is fixed who
    is in the sum, and among holders. keys: those that outlive an attempt. malicious: what one
    that breaks the rules can do, and whether it shows. adversary: who may join the colluding
    clients that a noise plan counts, honest but curious, so that its ε still holds.
    """

    mode: Mode
    opened: str
    hidden_unless: str
    trust: str
    dropouts: str
    keys: str
    malicious: str
    adversary: str
    _exposed: Exposed = field(repr=False)
    _upload: Bodies = field(repr=False)
    _opening: Bodies = field(repr=False)

    def exposed(self, coalition: Coalition) -> tuple[str, ...]:
        """The clients outside a coalition whose single contribution it can read."""
        alone = coalition.honest if len(coalition.honest) == 1 else ()
        read = {*alone, *self._exposed(coalition)}
        return tuple(name for name in coalition.honest if name in read)

    def exposes(self, coalition: Coalition) -> bool:
        """Whether a coalition can read the single contribution of anybody outside it."""
        return bool(self.exposed(coalition))

    def upload(self, of: Parties, width: int) -> tuple[int, ...]:
        """Bytes of the bodies that a client sends for a group of `width` integers, at most.

        Where shares are kept the client is taken for a holder that opens, too.
        """
        return self._upload(of, width)

    def opening(self, of: Parties, width: int) -> tuple[int, ...]:
        """Bytes of the bodies that open the group's sum, one for each holder that it takes."""
        return self._opening(of, width)


def _threshold_upload(of: Parties, width: int) -> tuple[int, ...]:
    ring, seeds = multikey_preset(of.preset), of.threshold - 1
    shares = [_SEED_BYTES] * seeds + [ring.share_bytes] * (of.holders - seeds)
    sealed = (share + OVERHEAD for share in shares)
    return (PUBLIC_BYTES, ring.ciphertext_bytes(width), *sealed, ring.share_bytes)


def _threshold_opening(of: Parties, _: int) -> tuple[int, ...]:
    return (multikey_preset(of.preset).share_bytes,) * of.threshold


def _masked_upload(of: Parties, width: int) -> tuple[int, ...]:
    seeds = (_SEED_BYTES + OVERHEAD,) * (of.clients - 1)
    return (PUBLIC_BYTES, *seeds, preset(of.preset).ciphertext_bytes(width))


def _ring_upload(of: Parties, width: int) -> tuple[int, ...]:
    body = preset(of.preset).ciphertext_bytes(width)
    return (PUBLIC_BYTES, body + OVERHEAD, body)


def _integers(_: Parties, width: int) -> tuple[int, ...]:
    return (8 * width,)


THRESHOLD: Final = Promise(
    mode="ckks/threshold",
    opened="encrypted under keys used once; only their weighted sum is opened, by enough of the "
    "key holders together",
    hidden_unless="as many key holders as the threshold pool their shares with the server or a "
    "listener, or all other clients of the group pool theirs",
    trust="another honest client in each group, and enough honest key holders that the others "
    "stay below the threshold; no single party",
    dropouts="any client before the sum is fixed, down to the least number of contributions; any "
    "holders beyond the threshold at any time",
    keys="signing keys only; encryption keys and their shares last one attempt",
    malicious="a server with more malicious holders than were allowed for opens two sums of a "
    "round, which differ by one client; a server can state a wrong sum, undetected; a client can "
    "bias the sum as far as its bounds allow, undetected, or keep it from opening; a holder's "
    "wrong share is outvoted where enough right ones come, and can shift a sum of one block where "
    "just as many come as it takes; too many silent holders stop the round",
    adversary="the server, every listener, and fewer key holders than the threshold",
    _exposed=enough_shares,
    _upload=_threshold_upload,
    _opening=_threshold_opening,
)

MASKED: Final = Promise(
    mode="ckks/decryptor",
    opened="masked in pairs and encrypted; only their weighted sum is opened, by a decryptor "
    "apart from the server",
    hidden_unless="all other clients of the group pool theirs",
    trust="another honest client in each group, and that server and decryptor do not both break "
    "the rules",
    dropouts="none: a missing client, or the decryptor, costs a new attempt",
    keys="signing keys only; the decryptor's keys, masks and seeds last one attempt",
    malicious="a server and a decryptor that both break the rules open two sums of a round, which "
    "differ by one client; the decryptor can state a wrong sum, undetected, a server's wrong sum "
    "is refused; a client can bias the sum as far as its bounds allow, undetected, keep it from "
    "opening, or learn its group's key, which opens no masked contribution; anyone stops the round",
    adversary="the server, every listener, and the decryptor",
    _exposed=nobody,
    _upload=_masked_upload,
    _opening=_integers,
)

RING: Final = Promise(
    mode="ring/decryptor",
    opened="masked around a ring and encrypted; only their sum is opened, by the decryptor",
    hidden_unless="both neighbours in the ring pool theirs with the decryptor, or all other "
    "clients of the group do",
    trust="one neighbour in the ring, or the decryptor",
    dropouts="none: a missing client, or the decryptor, costs a new attempt",
    keys="signing keys only; the decryptor's keys, sealing keys and masks last one attempt",
    malicious="both neighbours of a client and the first of the ring have that "
    "client's contribution opened in place of the sum; a client can put anything in place of "
    "what others added, undetected; a server and a decryptor that both break the rules open two "
    "sums of a round; the decryptor can state a "
    "wrong sum, undetected; anyone stops the round",
    adversary="the server, every listener, and the decryptor unless the clients are both "
    "neighbours of another in the ring",
    _exposed=between_two,
    _upload=_ring_upload,
    _opening=_integers,
)

PLAIN: Final = Promise(
    mode="plain/none",
    opened="unencrypted: the server sees every site's contribution",
    hidden_unless="the server or a listener is in it, or all other clients of the group are",
    trust="the server and the network",
    dropouts="none: a missing client costs a new attempt",
    keys="signing keys only",
    malicious="a server can state a wrong sum, undetected; a client can bias the sum without "
    "limit, undetected; anyone stops the round",
    adversary="nobody who sees the wire",
    _exposed=whoever_sees_them,
    _upload=lambda _, width: (4 * width,),
    _opening=_integers,
)

SLOTS: Final = Promise(
    mode="slots/shared",
    opened="encrypted with CKKS in slots under one key that all sites share, and the sums that "
    "are read give that key away",
    hidden_unless="the server or a listener is in it, which find the key in two blocks of "
    "published sums and at once with any client's help, or all other clients of the group are",
    trust="the server, the network and every client",
    dropouts="none: a missing client costs a new attempt",
    keys="signing keys, and one decryption key that every client keeps for the whole run",
    malicious="any client states a wrong sum when it is the one to read it, undetected; nothing "
    "bounds what a client adds; anyone stops the round",
    adversary="nobody who sees the wire",
    _exposed=whoever_sees_them,
    _upload=lambda _, width: (SLOTS18_140.upload_bytes(width), 0, 8 * width),
    _opening=_integers,
)

PROMISES: Final[Mapping[Mode, Promise]] = {
    promise.mode: promise for promise in (THRESHOLD, MASKED, RING, PLAIN, SLOTS)
}

_SIX: Final = ("a", "b", "c", "d", "e", "f")
_USUAL: Final[Mapping[str, tuple[str, bool, bool, bool]]] = {
    "A listener": ("", False, False, True),
    "The server": ("", True, False, False),
    "The server, a listener and half of the clients": ("abd", True, False, True),
    "The server and the decryptor, or four key holders": ("", True, True, False),
    "The same and both ring neighbours of a client": ("ac", True, True, False),
    "All clients but one": ("abcde", False, False, False),
}
"""Coalitions for people, of six clients: clients, server, key holders, network."""


def markdown() -> str:
    """The promises as two tables for SECURITY.md: usual coalitions, then what else each mode says.

    Where key shares are kept they are the clients', four of six open.
    """
    modes = [f"`{promise.mode}`" for promise in PROMISES.values()]
    reads = [
        [party, *(_read(promise, *coalition) for promise in PROMISES.values())]
        for party, coalition in _USUAL.items()
    ]
    said = {
        "Single contributions are read if": "hidden_unless",
        "Relied on": "trust",
        "Dropouts": "dropouts",
        "Keys that last": "keys",
        "Whoever breaks the rules": "malicious",
    }
    words = [
        [mode, *(getattr(promise, name) for name in said.values())]
        for mode, promise in zip(modes, PROMISES.values(), strict=True)
    ]
    return _table(["Coalition", *modes], reads) + "\n" + _table(["Mode", *said], words)


def _read(promise: Promise, clients: str, server: bool, opens: bool, network: bool) -> str:
    shared = promise is THRESHOLD
    holders = set(clients) if shared else set()
    openers = set(_SIX[:4] if shared else ["decryptor"]) if opens else set()
    coalition = Coalition(
        _SIX,
        clients=frozenset(clients),
        holders=frozenset(holders | openers),
        server=server,
        network=network,
        threshold=4 if shared else 1,
    )
    return "reads" if promise.exposes(coalition) else "hidden"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)

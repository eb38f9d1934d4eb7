"""Heads of a site's ledger, signed by the site, co-signed and kept by other clients.

A hash chain shows that no line was changed, not that lines at the end are missing: a site that
puts back an old copy of its file could spend the same budget twice. So a site signs where its
chain stands, other clients keep that, and `check_heads` finds a ledger that was rolled back or
forked by any one kept copy. A head says nothing about patients: it is a count and a hash.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocols.chain import SigningKey, canonical, digest, verify
from protocols.durable import append, written
from protocols.errors import LedgerError, ProtocolError
from protocols.ledger import Ledger

_Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Signature = Annotated[str, Field(pattern="^[0-9a-f]{128}$")]


class Head(BaseModel):
    """Where a ledger stood: the chain's hash after its first `seq` lines (0: an empty ledger).

    patients: the keyed digest of the patient set that was in use. signature: the site's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    site: str = Field(min_length=1, max_length=200)
    patients: str = Field(min_length=1, max_length=200)
    seq: int = Field(ge=0, lt=2**53)
    hash: _Hash
    signature: _Signature

    def said(self) -> bytes:
        """The bytes that the site signs."""
        return canonical({"kind": "ledger-head", **self.model_dump(exclude={"signature"})})


class KeptHead(BaseModel):
    """A head that another client has seen, and confirms to have kept.

    keeper: that client's name. signature: the keeper's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    head: Head
    keeper: str = Field(min_length=1, max_length=200)
    signature: _Signature

    def said(self) -> bytes:
        """The bytes that the keeper signs; the site's signature is part of them."""
        seen = digest(canonical(self.head.model_dump()))
        return canonical({"kind": "kept-ledger-head", "head": seen, "keeper": self.keeper})


def sign_head(ledger: Ledger, key: SigningKey) -> Head:
    """The site's statement of where its ledger stands; send it after each charge, before noise."""
    head = Head(
        site=ledger.site,
        patients=ledger.patients,
        seq=len(ledger.lines()),
        hash=ledger.head,
        signature="0" * 128,
    )
    return head.model_copy(update={"signature": key.sign(head.said()).hex()})


class HeadBook:
    """What one client keeps of other sites' heads: a file of one JSON line each, only appended.

    path: the file, made if missing. keeper: this client's name. sites: site → Ed25519 public key
    (32 bytes), as enrolled. Memory has each site's latest head alone. A LedgerError for a file
    that cannot be read or written.
    """

    def __init__(
        self, path: Path, keeper: str, key: SigningKey, sites: Mapping[str, bytes]
    ) -> None:
        self._path, self._keeper, self._key, self._sites = path, keeper, key, dict(sites)
        self._latest = {one.head.site: one for one in self._read()}

    @property
    def kept(self) -> tuple[KeptHead, ...]:
        """Everything that was kept, in order, from disk."""
        return tuple(self._read())

    def of(self, site: str) -> Iterator[KeptHead]:
        """What was kept of one site, in order, from disk."""
        return (one for one in self._read() if one.head.site == site)

    def keep(self, head: Head) -> KeptHead:
        """Check, write down durably, and co-sign a head that its site sent.

        Raises ProtocolError for an unknown site or a bad signature, LedgerError for a head that
        stands before one kept already, or beside it: that ledger was rolled back or forked.
        """
        _verify_site(head, self._sites)
        # None was kept that stands before one kept already, so the last one stands furthest.
        old = self._latest.get(head.site)
        if old and head.seq < old.head.seq:
            raise _rolled_back(head.site, old.head, head.seq)
        if old and head.seq == old.head.seq and head.hash != old.head.hash:
            raise _forked(old.head)
        draft = KeptHead(head=head, keeper=self._keeper, signature="0" * 128)
        kept = draft.model_copy(update={"signature": self._key.sign(draft.said()).hex()})
        if kept != old:
            self._write(kept)
            self._latest[head.site] = kept
        return kept

    def _read(self) -> Iterator[KeptHead]:
        try:
            if not self._path.exists():
                return
            whole = 0
            with self._path.open("rb") as file:
                for line in file:
                    if not line.endswith(b"\n"):
                        # A line that a crash cut off was not co-signed to anybody.
                        os.truncate(self._path, whole)
                        return
                    whole += len(line)
                    yield KeptHead.model_validate_json(line)
        except (OSError, ValueError) as error:
            raise self._unusable(error) from error

    def _write(self, kept: KeptHead) -> None:
        data = canonical(kept.model_dump()) + b"\n"
        try:
            with written("kept head"), self._path.open("ab") as out:
                append(out.fileno(), data)
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> LedgerError:
        return LedgerError(
            "the kept heads cannot be used",
            where=str(self._path),
            why=str(error),
            fix="make the file writable, or restore its last backup",
        )


def check_heads(
    ledger: Ledger,
    kept: Iterable[KeptHead],
    site_key: bytes,
    keepers: Mapping[str, bytes],
) -> int:
    """Compare a site's ledger with the heads that others kept; how many were compared.

    site_key: the site's public key. keepers: client → public key, as enrolled. The site calls it
    before it spends, an auditor at any time. LedgerError, naming the keeper, where the ledger ends
    before a kept head (rolled back) or has another chain (forked); ProtocolError for a head of
    another site, or with a signature that does not verify.
    """
    chain = ledger.chained()
    count = 0
    for copy in kept:
        verify_kept(copy, {ledger.site: site_key}, keepers)
        _compare(ledger, chain, copy.head, copy.keeper)
        count += 1
    return count


def check_own_head(ledger: Ledger, head: Head, site_key: bytes, keeper: str) -> None:
    """Compare a site's ledger with a head of its own that `keeper` gives back; as `check_heads`."""
    _verify_site(head, {ledger.site: site_key})
    _compare(ledger, ledger.chained(), head, keeper)


def _compare(ledger: Ledger, chain: Sequence[str], head: Head, keeper: str) -> None:
    if head.seq > len(chain):
        raise _rolled_back(ledger.site, head, len(chain), keeper)
    if head.hash != (chain[head.seq - 1] if head.seq else ledger.genesis):
        raise _forked(head, keeper)


def verify_kept(kept: KeptHead, sites: Mapping[str, bytes], keepers: Mapping[str, bytes]) -> None:
    """Return if both signatures on a kept head verify; ProtocolError otherwise."""
    _verify_site(kept.head, sites)
    if kept.keeper not in keepers:
        raise ProtocolError(
            f"a head kept by {kept.keeper}, who is not enrolled", fix="leave it out"
        )
    verify(keepers[kept.keeper], kept.said(), bytes.fromhex(kept.signature))


def parse_kept(data: bytes) -> KeptHead:
    """A kept head from the bytes of its canonical JSON; ProtocolError for anything else."""
    try:
        kept = KeptHead.model_validate_json(data) if len(data) <= 4096 else None
    except ValidationError:
        kept = None
    if kept is None or canonical(kept.model_dump()) != data:
        raise ProtocolError("this is no kept ledger head", fix="ask its keeper to send it again")
    return kept


def _verify_site(head: Head, sites: Mapping[str, bytes]) -> None:
    if head.site not in sites:
        raise ProtocolError(
            f"a ledger head of {head.site}",
            why=f"expected of {', '.join(sorted(sites))}",
            fix="compare only heads of the sites that are enrolled",
        )
    verify(sites[head.site], head.said(), bytes.fromhex(head.signature))


def _rolled_back(site: str, head: Head, lines: int, keeper: str = "this client") -> LedgerError:
    return LedgerError(
        f"the ledger of {site} has {lines} lines, and had {head.seq} before",
        where=f"kept by {keeper}",
        why="an old copy of the file was put back, or lines were cut off",
        fix="restore the latest copy; charges that are missing still count",
    )


def _forked(head: Head, keeper: str = "this client") -> LedgerError:
    return LedgerError(
        f"the ledger of {head.site} has another line before number {head.seq + 1}",
        where=f"kept by {keeper}",
        why="two copies of the file were written to, or it was begun anew",
        fix="restore the copy that was signed; what the other one charged must be added to it",
    )

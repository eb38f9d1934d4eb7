"""Checkpoints of an audit log: the server signs, every client of the round co-signs and keeps.

A hash chain shows that no record was changed by whoever cannot write the whole file; the server
can. So after each round it signs where the log stands, as size and root of a Merkle tree
(RFC 6962), and each client of the round signs and keeps that, once it is shown that the log only
grew. A server that makes its chain anew meets roots that it cannot sign for others, and copies
that it cannot reach.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from protocols.audit_events import Signature
from protocols.audit_log import Moment
from protocols.chain import SigningKey, canonical, digest, verify
from protocols.durable import append, written
from protocols.errors import ProtocolError, RunFolderError
from protocols.merkle import EMPTY, Tree, verify_consistency
from protocols.messages import Count, Digest, Name, Positive, StrictModel

_UNSIGNED = "0" * 128


class Checkpoint(StrictModel):
    """Where a log stood after a round: the root over its first `size` records.

    round: the last one that is in it. signature: the server's.
    """

    session: Name
    round: Count
    size: Positive
    root: Digest
    utc: Moment
    signature: Signature

    def said(self) -> bytes:
        """The bytes that the server signs."""
        body = self.model_dump(mode="json", exclude={"signature"})
        return canonical({"kind": "audit-checkpoint", **body})


class Cosignature(StrictModel):
    """A client's word that it has kept a checkpoint, whose log continues those it kept before."""

    client: Name
    signature: Signature

    def said(self, checkpoint: Checkpoint) -> bytes:
        """The bytes that the client signs; the server's signature is part of them."""
        seen = digest(canonical(checkpoint.model_dump(mode="json")))
        return canonical({"kind": "audit-cosignature", "checkpoint": seen, "client": self.client})


class Cosigned(StrictModel):
    """A checkpoint with the signatures of those who keep it."""

    checkpoint: Checkpoint
    cosignatures: tuple[Cosignature, ...]


@dataclass(frozen=True)
class Keys:
    """Ed25519 public keys (32 bytes), as enrolled."""

    server: bytes
    clients: Mapping[str, bytes]


def sign_checkpoint(
    tree: Tree, session: str, round_number: int, utc: str, key: SigningKey
) -> Checkpoint:
    """The server's statement of where its log stands; made after each round."""
    draft = Checkpoint(
        session=session,
        round=round_number,
        size=len(tree),
        root=tree.root().hex(),
        utc=utc,
        signature=_UNSIGNED,
    )
    return draft.model_copy(update={"signature": key.sign(draft.said()).hex()})


class CheckpointBook:
    """What one client keeps: a file of one JSON line per checkpoint that it co-signed.

    path: the file, made if missing. server: its enrolled public key. RunFolderError where the
    file cannot be read or written.
    """

    def __init__(self, path: Path, client: str, key: SigningKey, server: bytes) -> None:
        self._path, self._client, self._key, self._server = path, client, key, server

    def cosign(self, checkpoint: Checkpoint, proof: Iterable[bytes]) -> Cosignature:
        """Check, write down durably, and co-sign the server's checkpoint.

        proof: the consistency proof from `last_size` of this session. ProtocolError, and nothing
        is written, if the server did not sign it or its log does not continue the one kept.
        """
        verify(self._server, checkpoint.said(), bytes.fromhex(checkpoint.signature))
        last = self._last(checkpoint.session)
        old, old_root = (last.size, bytes.fromhex(last.root)) if last else (0, EMPTY)
        root = bytes.fromhex(checkpoint.root)
        verify_consistency(old, old_root, checkpoint.size, root, tuple(proof) if old else ())
        draft = Cosignature(client=self._client, signature=_UNSIGNED)
        signed = draft.model_copy(
            update={"signature": self._key.sign(draft.said(checkpoint)).hex()}
        )
        append_line(self._path, Cosigned(checkpoint=checkpoint, cosignatures=(signed,)))
        return signed

    def last_size(self, session: str) -> int:
        """Records that the last checkpoint kept of a session covers; 0 if none was kept."""
        last = self._last(session)
        return last.size if last else 0

    def _last(self, session: str) -> Checkpoint | None:
        kept = (one.checkpoint for one in _each(self._path))
        return max(
            (one for one in kept if one.session == session), key=lambda c: c.size, default=None
        )


def verify_cosigned(one: Cosigned, keys: Keys) -> tuple[str, ...]:
    """Who co-signed a checkpoint; ProtocolError if any signature on it does not verify."""
    checkpoint = one.checkpoint
    verify(keys.server, checkpoint.said(), bytes.fromhex(checkpoint.signature))
    for cosignature in one.cosignatures:
        if cosignature.client not in keys.clients:
            raise ProtocolError(
                f"a co-signature of {cosignature.client}, who is not enrolled",
                where=f"checkpoint of round {checkpoint.round}",
            )
        said, signature = cosignature.said(checkpoint), bytes.fromhex(cosignature.signature)
        verify(keys.clients[cosignature.client], said, signature)
    return tuple(cosignature.client for cosignature in one.cosignatures)


def check_covered(tree: Tree, checkpoint: Checkpoint) -> None:
    """Return if a log begins with exactly the records that a checkpoint covers.

    Auditors run it on each checkpoint of whatever keeper. ProtocolError where the log is shorter
    (cut) or other (changed, or made anew).
    """
    where = f"checkpoint of round {checkpoint.round}"
    if checkpoint.size > len(tree):
        raise ProtocolError(
            f"the log has {len(tree)} records, and had {checkpoint.size}",
            where=where,
            why="records at its end are missing",
            fix="restore the log from a copy",
        )
    if tree.root(checkpoint.size).hex() != checkpoint.root:
        raise ProtocolError(
            f"the first {checkpoint.size} records are others than those that were signed",
            where=where,
            why="the log was changed, or made anew",
            fix="restore the log from a copy",
        )


def read_checkpoints(path: Path) -> tuple[Cosigned, ...]:
    """The checkpoints of a file, in order, none where there is no file; nothing is verified.

    A line that a crash cut off was shown to nobody and is left out. RunFolderError for any other
    line that is no checkpoint in its one encoding.
    """
    return tuple(_each(path))


def append_line(path: Path, one: Cosigned) -> None:
    """Add a checkpoint to a file, durably; what a crash cut off at its end goes."""
    try:
        with written("checkpoint"), path.open("ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            append(file.fileno(), canonical(one.model_dump(mode="json")) + b"\n")
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error


def _each(path: Path) -> Iterator[Cosigned]:
    """The checkpoints of a file, one at a time."""
    try:
        if not path.exists():
            return
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    one = Cosigned.model_validate_json(line)
                    if canonical(one.model_dump(mode="json")) + b"\n" != line:
                        raise _unusable(path, "a line is not in its one encoding")
                    yield one
    except (OSError, ValidationError) as error:
        raise _unusable(path, str(error).splitlines()[0]) from error


def _unusable(path: Path, why: str) -> RunFolderError:
    return RunFolderError(
        "checkpoints cannot be read or written",
        where=str(path),
        why=why,
        fix="make the file writable, or restore it from a copy",
    )

"""The audit log of a run: what was agreed, charged, opened and learned, one signed tree over it.

    audit.jsonl    one RFC 8785 line per record, each bound to the line before it (protocols.chain)

A record is on disk before what it tells of is visible. A crash can leave a torn last line; it is
kept, and the next record is a note that carries its hash. Bodies hold names, counts, digests and
public figures as text, never data, results or messages of errors: see `protocols.audit_events`.
What a chain cannot show, a cut at the end or a chain made anew, is what checkpoints are for
(protocols.checkpoints).
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Annotated, Final

from pydantic import Field, StringConstraints, ValidationError

from protocols.audit_events import Event, Torn
from protocols.chain import GENESIS, canonical, digest, link
from protocols.durable import append, written
from protocols.errors import RunFolderError
from protocols.merkle import Tree, leaf_hash
from protocols.messages import Digest, Name, StrictModel

LOG: Final = "log"
"""The actor of records about the log itself."""

Moment = Annotated[
    str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z\z", max_length=27)
]
_Sequence = Annotated[int, Field(ge=0, lt=2**53)]
_BOUND: Final = re.compile(rb',"prev":"([0-9a-f]{64})","seq":([0-9]+),"utc":"[0-9TZ:.-]{27}"\}\Z')
"""The end of every line: keys are sorted, so this is where a record is bound to its place."""

_encode = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode


class Record(StrictModel):
    """One line: when, by whom, what.

    utc: the writer's clock. monotonic_ms: milliseconds that only grow until the machine restarts
    (nanoseconds would soon leave what JSON counts exactly). actor: "server", a site, or "log".
    prev: the chain's hash before this line.
    """

    seq: _Sequence
    prev: Digest
    utc: Moment
    monotonic_ms: _Sequence
    actor: Name
    body: Event


@dataclass(frozen=True)
class Log:
    """A log whose chain holds.

    lines: the bytes of each record, without newlines. tree: over `lines`. head: the chain's hash
    after the last. torn: bytes at the end that are no record. ended: whether a newline follows.
    """

    lines: tuple[bytes, ...]
    tree: Tree
    head: str
    torn: bytes
    ended: bool

    def records(self) -> Iterator[Record]:
        """What the lines say; RunFolderError for one that this version does not know."""
        for number, line in enumerate(self.lines):
            yield _record(line, number)


class AuditLog:
    """Opens or creates a log to write to; one writer. Every append is flushed to disk.

    RunFolderError where the file cannot be written, or was changed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            found = read_log(path.read_bytes() if path.exists() else b"", str(path))
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._file = os.open(path, flags, 0o600)
            self.records = list(found.records())
            self.tree, self.head = found.tree, found.head
            if not found.ended:
                self._put(b"\n")
            if found.torn:
                self.append(LOG, Torn(sha256=digest(found.torn), bytes=len(found.torn)))
        except OSError as error:
            raise self._unwritable(error) from error

    def append(self, actor: str, body: Event) -> Record:
        """Write one record, durably, and return it."""
        record = Record(
            seq=len(self.records),
            prev=self.head,
            utc=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}Z",
            monotonic_ms=time.monotonic_ns() // 1_000_000,
            actor=actor,
            body=body,
        )
        line = canonical(record.model_dump(mode="json"))
        try:
            self._put(line + b"\n")
        except OSError as error:
            raise self._unwritable(error) from error
        self.records.append(record)
        self.tree.append(leaf_hash(line))
        self.head = link(self.head, line)
        return record

    def close(self) -> None:
        """Close the file; further appends fail."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> AuditLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _put(self, data: bytes) -> None:
        with written("audit record"):
            append(self._file, data)

    def _unwritable(self, error: OSError) -> RunFolderError:
        return RunFolderError(
            "the audit log cannot be written",
            where=str(self.path),
            why=error.strerror or str(error),
            fix="free space or rights there, then resume; nothing goes on without its record",
        )


def read_log(data: bytes, where: str = "audit log") -> Log:
    """Check the chain of a log's bytes from the first record to the last, and build its tree.

    Writers and auditors run it; `Log.records` reads what it says. RunFolderError, naming the
    record, where anything does not follow; what is torn at the end is given back, to be judged.
    """
    lines: list[bytes] = []
    fragments: list[bytes] = []
    tree, head = Tree(), GENESIS
    *whole, last = data.split(b"\n")
    for line in [*whole, last] if last else whole:
        bound = _BOUND.search(line)
        if bound is None or not line.startswith(b'{"actor":"'):
            fragments.append(line)
            continue
        follows = bound[1] == head.encode() and bound[2] == b"%d" % len(lines)
        if not follows or (fragments and not _noted(fragments, _record(line, len(lines)))):
            raise _broken(where, len(lines))
        fragments.clear()
        lines.append(line)
        tree.append(leaf_hash(line))
        head = link(head, line)
    return Log(tuple(lines), tree, head, b"\n".join(fragments), not last)


def _noted(fragments: list[bytes], record: Record) -> bool:
    """Whether the record behind torn lines is the note on them."""
    joined = b"\n".join(fragments)
    return record.body == Torn(sha256=digest(joined), bytes=len(joined))


def _record(line: bytes, number: int) -> Record:
    """The record of a line, which must be in its one encoding."""
    try:
        record = Record.model_validate_json(line)
    except ValidationError as error:
        raise _broken("audit log", number, "it is no record of this version") from error
    # Without fractions this is the form of RFC 8785, ten times as fast.
    if _encode(json.loads(line)).encode() != line:
        raise _broken("audit log", number, "it is not in its one encoding")
    return record


def _broken(
    where: str, number: int, why: str = "it does not follow from the records before it"
) -> RunFolderError:
    return RunFolderError(
        "the audit log is damaged",
        where=f"{where}, record {number}",
        why=why,
        fix="restore the log from a copy; the checkpoints that sites keep show which one is right",
    )

"""The append-only record of every message: blobs beside a hash-chained index of JSON lines.

    folder/index.jsonl          one RFC 8785 line per message sent, each bound to the line before
    folder/messages/<sha256>    the message's bytes

A crash can leave a torn last line. It is never cut: on reopening it is kept, flagged, and the
next line is a note that carries its hash. What the chain cannot show is a cut of whole lines at
the end; whoever needs that compares `head` with a copy kept elsewhere.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from sys import intern
from typing import Final

from pydantic import ValidationError

from protocols.chain import GENESIS, canonical, digest, link
from protocols.durable import append, written
from protocols.envelope import outline
from protocols.errors import RunFolderError
from protocols.messages import Count, Digest, M, Message, Name, StrictModel

TORN: Final = "torn-line"
NETWORK: Final = "network"


class Entry(StrictModel):
    """One line of the index: who sent which bytes to whom, and the line before it (`prev`)."""

    seq: Count
    prev: Digest
    sha256: Digest
    bytes: Count
    sender: Name
    receivers: tuple[Name, ...]
    kind: Name
    round: Count
    attempt: Count


_FIELDS: Final = set(Entry.model_fields)


class View:
    """What a coalition saw: every message that one of its members sent or received.

    The member `network` sees the bytes of every message on the wire. Messages keep their order.
    """

    def __init__(self, transcript: "Transcript", coalition: Iterable[str]) -> None:
        self.coalition = frozenset(coalition)
        self._transcript = transcript
        self.entries = tuple(entry for entry in transcript.entries if self._saw(entry))

    def of(self, kind: type[M]) -> list[M]:
        """The messages of one kind, decoded, each once though it was relayed."""
        seen = {entry.sha256: entry for entry in self.entries if entry.kind == kind.kind}
        decoded = [outline(self._transcript.read(entry)) for entry in seen.values()]
        return [message for message in decoded if isinstance(message, kind)]

    def _saw(self, entry: Entry) -> bool:
        if entry.kind == TORN:
            return False
        return bool(self.coalition & {entry.sender, *entry.receivers, NETWORK})


class Transcript:
    """Opens or creates a folder; one writer. `durable` adds an fsync before `append` returns.

    `torn` says that the last writer was interrupted. RunFolderError if a line or a blob was
    changed.
    """

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        self.folder, self._durable = folder, durable
        self.entries: list[Entry] = []
        self.head, self.torn = GENESIS, False
        with self._writing():
            (folder / "messages").mkdir(parents=True, exist_ok=True)
            fragments, unfinished = self._replay()
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._index = os.open(folder / "index.jsonl", flags, 0o600)
            if unfinished:
                self._put(b"\n")
            if fragments:
                self._flag(fragments)

    def append(self, blob: bytes, sender: str, receivers: Sequence[str]) -> Entry:
        """Record one message before it is delivered."""
        message, name = outline(blob), digest(blob)
        with self._writing():
            self._write_blob(name, blob)
            return self._write_line(name, len(blob), sender, tuple(receivers), message)

    def read(self, entry: Entry) -> bytes:
        """The bytes of a recorded message; RunFolderError if they are not what was recorded."""
        try:
            blob = (self.folder / "messages" / entry.sha256).read_bytes()
        except OSError as error:
            raise self._damaged(entry.seq, "the message's file cannot be read") from error
        if digest(blob) != entry.sha256:
            raise self._damaged(entry.seq, "the message's bytes were changed")
        return blob

    def recall(self, kind: type[M], round_number: int) -> Iterator[tuple[M, bytes]]:
        """The messages of one kind and round, decoded and as bytes, each once though relayed."""
        entries = (e for e in self.entries if (e.kind, e.round) == (kind.kind, round_number))
        for blob in map(self.read, {entry.sha256: entry for entry in entries}.values()):
            message = outline(blob)
            if isinstance(message, kind):
                yield message, blob

    def verify(self) -> None:
        """Read every message again and check it against its line."""
        for entry in self.entries:
            if entry.kind == TORN:
                continue
            message = outline(self.read(entry))
            recorded = (entry.kind, entry.round, entry.attempt)
            if recorded != (message.kind, message.round, message.attempt):
                raise self._damaged(entry.seq, "line and message disagree")

    def view(self, coalition: Iterable[str]) -> View:
        """What these parties saw together up to now."""
        return View(self, coalition)

    def close(self) -> None:
        """Close the index; further appends fail."""
        if self._index >= 0:
            os.close(self._index)
            self._index = -1

    def __enter__(self) -> "Transcript":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _replay(self) -> tuple[list[bytes], bool]:
        """Read the index: what was torn at its end, and whether that lacks its newline."""
        path = self.folder / "index.jsonl"
        *lines, last = path.read_bytes().split(b"\n") if path.exists() else [b""]
        fragments: list[bytes] = []
        for line in [*lines, last] if last else lines:
            entry = _parse(line)
            if entry is None:
                fragments.append(line)
                continue
            noted = entry.kind == TORN and entry.sha256 == digest(b"\n".join(fragments))
            follows = entry.prev == self.head and entry.seq == len(self.entries)
            if not follows or (fragments and not noted):
                raise self._damaged(entry.seq, "it does not follow from the lines before it")
            fragments = []
            self._accept(entry, line)
        return fragments, bool(last)

    def _accept(self, entry: Entry, line: bytes) -> None:
        self.entries.append(_compact(entry))
        self.head = link(self.head, line)

    def _flag(self, fragments: list[bytes]) -> None:
        self.torn = True
        joined = b"\n".join(fragments)
        self._write_line(digest(joined), len(joined), "transcript", (), None)

    def _write_line(
        self,
        name: str,
        size: int,
        sender: str,
        receivers: tuple[str, ...],
        message: Message | None,
    ) -> Entry:
        entry = Entry(
            seq=len(self.entries),
            prev=self.head,
            sha256=name,
            bytes=size,
            sender=sender,
            receivers=receivers,
            kind=message.kind if message else TORN,
            round=message.round if message else 0,
            attempt=message.attempt if message else 0,
        )
        line = canonical(entry.model_dump(mode="json"))
        self._put(line + b"\n")
        self._accept(entry, line)
        return entry

    def _write_blob(self, name: str, blob: bytes) -> None:
        path = self.folder / "messages" / name
        if path.exists():
            return
        part = path.with_suffix(".part")
        with written(f"{self.folder.name} message"):
            with part.open("wb") as file:
                file.write(blob)
                if self._durable:
                    file.flush()
                    os.fsync(file.fileno())
            part.replace(path)
            if self._durable:
                _sync_folder(path.parent)

    def _put(self, data: bytes) -> None:
        with written(f"{self.folder.name} line"):
            append(self._index, data, flush=self._durable)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunFolderError(
                "transcript cannot be written",
                where=str(self.folder),
                why=error.strerror or str(error),
                fix="free space or rights there, then resume",
            ) from error

    def _damaged(self, seq: int, why: str) -> RunFolderError:
        return RunFolderError(
            "transcript is damaged",
            where=f"{self.folder}, line {seq + 1}",
            why=why,
            fix="restore the folder from a copy, or start a new run",
        )


def _compact(entry: Entry) -> Entry:
    """The same entry in half the memory: names and digests that recur are kept once.

    A thousand clients make eleven thousand entries in a round.
    """
    shared = {name: intern(getattr(entry, name)) for name in ("sha256", "sender", "kind")}
    receivers = tuple(map(intern, entry.receivers))
    return Entry.model_construct(_FIELDS, **entry.__dict__ | shared | {"receivers": receivers})


def _parse(line: bytes) -> Entry | None:
    """The entry of a whole line in its one encoding; None for a torn one."""
    try:
        entry = Entry.model_validate_json(line)
    except ValidationError:
        return None
    return entry if canonical(entry.model_dump(mode="json")) == line else None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

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
from typing import Final

from protocols.chain import digest
from protocols.durable import written
from protocols.envelope import outline
from protocols.errors import RunFolderError
from protocols.messages import M
from protocols.transcript_index import TORN as TORN
from protocols.transcript_index import Entry as Entry
from protocols.transcript_index import Index, damaged

NETWORK: Final = "network"


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
        with self._writing():
            (folder / "messages").mkdir(parents=True, exist_ok=True)
            self.entries = Index(folder / "index.jsonl", durable=durable)

    @property
    def head(self) -> str:
        """The chain's hash after the last line."""
        return self.entries.head

    @property
    def torn(self) -> bool:
        """Whether the last writer was interrupted."""
        return self.entries.torn

    def append(self, blob: bytes, sender: str, receivers: Sequence[str]) -> Entry:
        """Record one message before it is delivered."""
        message, name = outline(blob), digest(blob)
        with self._writing():
            self._write_blob(name, blob)
            return self.entries.append(name, len(blob), sender, tuple(receivers), message)

    def read(self, entry: Entry) -> bytes:
        """The bytes of a recorded message; RunFolderError if they are not what was recorded."""
        try:
            blob = (self.folder / "messages" / entry.sha256).read_bytes()
        except OSError as error:
            raise damaged(self.folder, entry.seq, "the message's file cannot be read") from error
        if digest(blob) != entry.sha256:
            raise damaged(self.folder, entry.seq, "the message's bytes were changed")
        return blob

    def recall(self, kind: type[M], round_number: int) -> Iterator[tuple[M, bytes]]:
        """The messages of one kind and round, decoded and as bytes, each once though relayed."""
        entries = (e for e in self.entries.of_round(round_number) if e.kind == kind.kind)
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
                raise damaged(self.folder, entry.seq, "line and message disagree")

    def view(self, coalition: Iterable[str]) -> View:
        """What these parties saw together up to now."""
        return View(self, coalition)

    def close(self) -> None:
        """Close the index; further appends fail."""
        self.entries.close()

    def __enter__(self) -> "Transcript":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

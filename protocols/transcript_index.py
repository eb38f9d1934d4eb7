"""The index of a transcript: hash-chained JSON lines that are read from disk when asked for.

A session may go on for months. What memory holds of it is where each round's lines begin; the
lines themselves are read again, and their chain is checked again, each time they are needed.
"""

import os
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, overload

from pydantic import ValidationError

from protocols.chain import GENESIS, canonical, digest, link
from protocols.durable import append, written
from protocols.errors import RunFolderError
from protocols.messages import Count, Digest, Message, Name, StrictModel

TORN: Final = "torn-line"


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


@dataclass(frozen=True, slots=True)
class _Run:
    """Where lines of one round that follow each other begin: in the chain, and in the file."""

    round: int
    seq: int
    head: str
    start: int


class Index:
    """Opens or creates the file of `path`; one writer, the transcript. A sequence of entries.

    head: the chain's hash after the last line. torn: whether the last writer was interrupted.
    durable: whether a line is on disk before `append` returns. RunFolderError where a line was
    changed, at once or when it is read again; OSError where the file cannot be opened or written.
    """

    def __init__(self, path: Path, *, durable: bool) -> None:
        self._path, self._durable = path, durable
        self.head, self.torn = GENESIS, False
        self._count, self._runs = 0, list[_Run]()
        fragments, unfinished = self._replay() if path.exists() else ([], False)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if unfinished:
            self._put(b"\n")
        if fragments:
            self.torn = True
            joined = b"\n".join(fragments)
            self.append(digest(joined), len(joined), "transcript", (), None)

    def append(
        self,
        name: str,
        size: int,
        sender: str,
        receivers: tuple[str, ...],
        message: Message | None,
    ) -> Entry:
        """Write the line of one message; None for what was torn, of which a hash is kept."""
        entry = Entry(
            seq=self._count,
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
        start = os.fstat(self._file).st_size
        self._put(line + b"\n")
        self._accept(entry, line, start)
        return entry

    def of_round(self, number: int) -> Iterator[Entry]:
        """A round's entries, in order."""
        for at in [at for at, run in enumerate(self._runs) if run.round == number]:
            yield from self._read(at)

    def close(self) -> None:
        """Close the file; further appends fail."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Entry]:
        return self._since(0)

    @overload
    def __getitem__(self, at: int) -> Entry: ...

    @overload
    def __getitem__(self, at: slice) -> list[Entry]: ...

    def __getitem__(self, at: int | slice) -> Entry | list[Entry]:
        if isinstance(at, int):
            return next(self._since(range(self._count)[at]))
        start, stop, step = at.indices(self._count)
        return list(islice(self._since(start), 0, max(stop - start, 0), step))

    def _since(self, seq: int) -> Iterator[Entry]:
        """The entries from number `seq` on."""
        first = bisect_right(self._runs, seq, key=lambda run: run.seq) - 1
        for at in range(max(first, 0), len(self._runs)):
            yield from (entry for entry in self._read(at) if entry.seq >= seq)

    def _read(self, at: int) -> Iterator[Entry]:
        """The entries of run number `at`; what the file has now must be what was accepted."""
        run = self._runs[at]
        last = _Run(0, self._count, self.head, 0)
        after = self._runs[at + 1] if at + 1 < len(self._runs) else last
        seq, head = run.seq, run.head
        try:
            with self._path.open("rb") as file:
                file.seek(run.start)
                while seq < after.seq and (line := file.readline()):
                    entry = _entry(line)
                    # What was torn between two lines is noted in the second.
                    if entry is not None:
                        if (entry.seq, entry.prev) != (seq, head):
                            break
                        seq, head = seq + 1, link(head, line.removesuffix(b"\n"))
                        yield entry
        except OSError as error:
            raise damaged(self._path, seq, f"it cannot be read: {error.strerror}") from error
        if (seq, head) != (after.seq, after.head):
            raise damaged(self._path, seq, "it is not as it was written")

    def _replay(self) -> tuple[list[bytes], bool]:
        """Read the whole file: what was torn at its end, and whether that lacks its newline."""
        fragments, start, last = list[bytes](), 0, b"\n"
        with self._path.open("rb") as file:
            for last in file:
                line = last.removesuffix(b"\n")
                entry = _entry(line)
                if entry is None or canonical(entry.model_dump(mode="json")) != line:
                    fragments.append(line)
                else:
                    noted = entry.kind == TORN and entry.sha256 == digest(b"\n".join(fragments))
                    follows = entry.prev == self.head and entry.seq == self._count
                    if not follows or (fragments and not noted):
                        why = "it does not follow from the lines before it"
                        raise damaged(self._path, entry.seq, why)
                    fragments.clear()
                    self._accept(entry, line, start)
                start += len(last)
        return fragments, not last.endswith(b"\n")

    def _accept(self, entry: Entry, line: bytes, start: int) -> None:
        if not self._runs or self._runs[-1].round != entry.round:
            self._runs.append(_Run(entry.round, entry.seq, self.head, start))
        self.head, self._count = link(self.head, line), self._count + 1

    def _put(self, data: bytes) -> None:
        with written(f"{self._path.parent.name} line"):
            append(self._file, data, flush=self._durable)


def damaged(where: Path, seq: int, why: str) -> RunFolderError:
    """The error for a transcript of which entry `seq` or its message is not what was recorded."""
    return RunFolderError(
        "transcript is damaged",
        where=f"{where}, line {seq + 1}",
        why=why,
        fix="restore the folder from a copy, or start a new run",
    )


def _entry(line: bytes) -> Entry | None:
    """The entry of a whole line; None for a torn one."""
    try:
        return Entry.model_validate_json(line)
    except ValidationError:
        return None

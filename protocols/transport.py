"""Bytes in, bytes out: mailboxes in one process, and parties in processes of their own.

Everything that is sent goes into the transcript first. On a pipe a message is a u32 length
followed by that many bytes; the receiver sets the most it will read.
"""

import contextlib
import os
import struct
import subprocess
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Final, Protocol, Self

from protocols.chain import canonical
from protocols.errors import AbsentError, ProtocolError
from protocols.policy import Enrolment
from protocols.transcript import Transcript

FRAME_LIMIT: Final = (1 << 26) + (1 << 19)
_LENGTH: Final = struct.Struct("<I")


class Transport(Protocol):
    """How a protocol moves messages; what lies underneath is not its concern."""

    def send(self, sender: str, receivers: Sequence[str], blob: bytes) -> None:
        """Deliver one message to each receiver, in order."""

    def receive(self, receiver: str, sender: str) -> bytes:
        """The next message from `sender` to `receiver`; AbsentError if none will come."""


class Remote(Protocol):
    """A party at the other end of a connection."""

    def write(self, blob: bytes) -> None:
        """Hand it one message."""

    def read(self) -> bytes:
        """Wait for its next message."""


def write_frame(stream: IO[bytes], blob: bytes) -> None:
    """Write one length-prefixed message and flush it."""
    stream.write(_LENGTH.pack(len(blob)) + blob)
    stream.flush()


def read_frame(stream: IO[bytes], limit: int = FRAME_LIMIT) -> bytes | None:
    """The next message; None at the end of the stream, ProtocolError if it is torn or too long."""
    head = stream.read(_LENGTH.size)
    if not head:
        return None
    length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else limit + 1
    if length > limit:
        raise ProtocolError("frame is torn or over the limit", where="pipe")
    blob = stream.read(length)
    if len(blob) != length:
        raise ProtocolError("frame is torn", where="pipe")
    return blob


class Child:
    """A party in a process of its own, spoken to over its standard input and output.

    It ends when its input closes: at `close`, or when this process ends in whatever way.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        self._name = module
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def write(self, blob: bytes) -> None:
        """Hand it one message; AbsentError if it has gone."""
        assert self._process.stdin is not None  # noqa: S101 - opened above
        try:
            write_frame(self._process.stdin, blob)
        except OSError as error:
            raise self._gone() from error

    def read(self) -> bytes:
        """Wait for its next message; AbsentError if it has gone."""
        assert self._process.stdout is not None  # noqa: S101 - opened above
        blob = read_frame(self._process.stdout)
        if blob is None:
            self._process.wait()
            raise self._gone()
        return blob

    def close(self) -> None:
        """Close its input and wait until it has ended; kill it if it does not."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _gone(self) -> AbsentError:
        return AbsentError(
            "party has gone",
            where=self._name,
            why=f"its process ended with {self._process.poll()}",
            fix="resume the run: what was opened is kept, the rest is asked again",
        )


class HolderProcess(Child):
    """A key holder beside this process. `verify_key` is its identity, kept in its folder.

    Start it, enrol it, connect it to the wire; then rounds can be played.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__("protocols.holder_process", str(folder))
        try:
            self.verify_key = self.read()
        except ProtocolError:
            self.close()
            raise

    def enrol(self, enrolment: Enrolment) -> None:
        """Tell it the parties and the floors; on a restart these must be the same."""
        self.write(canonical(enrolment.model_dump(mode="json")))


class Beside:
    """A party in this process that answers each message with messages: a `Remote` without a wire.

    A simulation's key holders are reached this way.
    """

    def __init__(self, answer: Callable[[bytes], list[bytes]]) -> None:
        self._answer, self._out = answer, deque[bytes]()

    def write(self, blob: bytes) -> None:
        """Hand it one message; its answers wait to be read."""
        self._out.extend(self._answer(blob))

    def read(self) -> bytes:
        """Its next answer; AbsentError if it has none."""
        if not self._out:
            raise AbsentError("party has no answer", where="party of this process")
        return self._out.popleft()


class Wire:
    """Mailboxes for the parties of this process, connections for the others; all is recorded."""

    def __init__(self, transcript: Transcript) -> None:
        self.transcript = transcript
        self._remotes: dict[str, Remote] = {}
        self._boxes: defaultdict[tuple[str, str], deque[bytes]] = defaultdict(deque)
        self._cut: set[str] = set()
        self.sent: Counter[tuple[str, str]] = Counter()

    def connect(self, party: str, remote: Remote) -> None:
        """From now on messages to and from `party` go over this connection."""
        self._remotes[party] = remote

    def cut(self, party: str) -> None:
        """From now on nothing that this party sends arrives, and nothing reaches it."""
        self._cut.add(party)

    def renewed(self) -> Self:
        """This wire without what a round that was broken off left undelivered."""
        self._boxes.clear()
        return self

    def send(self, sender: str, receivers: Sequence[str], blob: bytes) -> None:
        """Record, then deliver. `sent` counts bytes by sender and kind, once per receiver."""
        entry = self.transcript.append(blob, sender, receivers)
        self.sent[sender, entry.kind] += entry.bytes * len(entry.receivers)
        for receiver in receivers:
            if self._cut & {sender, receiver}:
                continue
            if receiver in self._remotes:
                # Who has gone is found out when its answer is awaited.
                with contextlib.suppress(AbsentError):
                    self._remotes[receiver].write(blob)
            else:
                self._boxes[sender, receiver].append(blob)

    def receive(self, receiver: str, sender: str) -> bytes:
        """The next message of this sender; one from a connection is recorded on arrival."""
        if self._cut & {sender, receiver}:
            raise AbsentError("party is cut off", where=f"{sender} to {receiver}")
        if sender in self._remotes:
            blob = self._remotes[sender].read()
            entry = self.transcript.append(blob, sender, (receiver,))
            self.sent[sender, entry.kind] += entry.bytes
            return blob
        box = self._boxes[sender, receiver]
        if not box:
            raise AbsentError("no message", where=f"{sender} to {receiver}")
        return box.popleft()

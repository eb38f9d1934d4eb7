"""A network that loses, delays, repeats, swaps and tears messages, and key holders that restart.

What a schedule does follows from its seed alone. Messages that are late lie on disk until a later
attempt, in another process, delivers them: long after their senders have gone.
"""

import json
import os
import resource
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from protocols.envelope import identity, kind_of, outline
from protocols.errors import AbsentError, ProtocolError
from protocols.holding import Holding
from protocols.messages import Contribution, KeyOpening, KeyShare, Opening, OpeningRequest
from protocols.transcript import Transcript
from protocols.transport import Wire


@dataclass(frozen=True)
class Schedule:
    """How often, per delivery, each thing happens.

    `cut` parties neither send nor receive, from the first message of the kind `when` on.
    """

    seed: int = 0
    drop: float = 0.0
    delay: float = 0.0
    duplicate: float = 0.0
    swap: float = 0.0
    tear: float = 0.0
    replay: float = 0.0
    restart: float = 0.0
    cut: tuple[str, ...] = ()
    when: str = "round-plan"


class Tape:
    """What an observer wrote down, outside every party: it survives however a process ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(self, what: str, **fields: Any) -> None:
        # The observer's own file is under none of the limits that a test sets.
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        os.write(self._file, json.dumps({"what": what, **fields}).encode() + b"\n")
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def read(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._path.read_bytes().splitlines()]

    def close(self) -> None:
        os.close(self._file)


class Restarting:
    """A key holder's end of the line; it may lose its memory, never its disk, between messages."""

    def __init__(self, open_holder: Callable[[], Holding]) -> None:
        self._open, self.restarts = open_holder, lambda: False
        self.holder = open_holder()
        self._out: deque[bytes] = deque()

    def write(self, blob: bytes) -> None:
        if self.restarts():
            self.holder.close()
            self.holder = self._open()
        try:
            answers = self.holder.answer(blob)
        except ProtocolError as error:
            raise AssertionError(f"{self.holder.name} raised for a message: {error}") from error
        if answers:
            # What was left unread belongs to a question before this one.
            self._out = deque(answers)

    def read(self) -> bytes:
        if not self._out:
            raise AbsentError("no answer came", where=self.holder.name)
        return self._out.popleft()


class Lossy(Wire):
    """The product's wire, with everything that may happen to a message between send and receive."""

    def __init__(self, transcript: Transcript, schedule: Schedule, tape: Tape, late: Path) -> None:
        super().__init__(transcript)
        self._schedule, self._tape, self._late = schedule, tape, late
        self._draw = np.random.default_rng(schedule.seed)
        self._held: list[tuple[str, str, bytes]] = []
        late.mkdir(exist_ok=True)

    def happens(self, rate: float) -> bool:
        return bool(rate) and self._draw.random() < rate

    def send(self, sender: str, receivers: Sequence[str], blob: bytes) -> None:
        entry = self.transcript.append(blob, sender, receivers)
        self.sent[sender, entry.kind] += entry.bytes * len(receivers)
        observe(self._tape, blob)
        if entry.kind == self._schedule.when:
            self._cut.update(self._schedule.cut)
        for receiver in receivers:
            if not self._cut & {sender, receiver}:
                self._carry(sender, receiver, blob)

    def receive(self, receiver: str, sender: str) -> bytes:
        if sender in self._remotes and not self._cut & {sender, receiver}:
            if self.happens(self._schedule.drop):
                raise AbsentError("the answer was lost", where=sender)
            blob = self._remotes[sender].read()
            observe(self._tape, blob)
            if self.happens(self._schedule.tear):
                blob = self._torn(blob)
            self.transcript.append(blob, sender, (receiver,))
            return blob
        return super().receive(receiver, sender)

    def _carry(self, sender: str, receiver: str, blob: bytes) -> None:
        plan = self._schedule
        if self.happens(plan.drop):
            return
        if self.happens(plan.delay):
            self._keep(sender, receiver, blob)
            return
        if self.happens(plan.swap):
            self._held.append((sender, receiver, blob))
            return
        if self.happens(plan.tear):
            blob = self._torn(blob)
        self._deliver(sender, receiver, blob)
        if self.happens(plan.duplicate):
            self._deliver(sender, receiver, blob)
        if self.happens(plan.replay):
            self._deliver_late()
        if self._held and self.happens(0.5):
            self._deliver(*self._held.pop(int(self._draw.integers(len(self._held)))))

    def _deliver(self, sender: str, receiver: str, blob: bytes) -> None:
        if receiver in self._remotes:
            self._remotes[receiver].write(blob)
        else:
            self._boxes[sender, receiver].append(blob)

    def _keep(self, sender: str, receiver: str, blob: bytes) -> None:
        (self._late / f"{os.urandom(8).hex()}.{sender}~{receiver}").write_bytes(blob)

    def _deliver_late(self) -> None:
        """A message of this attempt or of one long over arrives after all, perhaps again."""
        found = sorted(self._late.iterdir())
        if found:
            one = found[int(self._draw.integers(len(found)))]
            sender, receiver = one.name.split(".", 1)[1].split("~")
            if not self._cut & {sender, receiver}:
                self._deliver(sender, receiver, one.read_bytes())

    def _torn(self, blob: bytes) -> bytes:
        at = int(self._draw.integers(len(blob)))
        if self._draw.random() < 0.5:
            return blob[:at]
        return blob[:at] + bytes([blob[at] ^ (1 << int(self._draw.integers(8)))]) + blob[at + 1 :]


def observe(tape: Tape, blob: bytes) -> None:
    """Note what a network sees of one message: its kind, its author, what it is about."""
    kind = kind_of(blob)
    fields: dict[str, Any] = {"kind": kind.kind}
    if kind is not KeyShare:
        message = outline(blob)
        fields |= {"by": message.sender, "round": message.round, "attempt": message.attempt}
        if isinstance(message, Opening):
            fields |= {"group": message.group, "sha256": message.sha256}
        elif isinstance(message, KeyOpening):
            fields |= {"group": message.group, "request": message.request}
        elif isinstance(message, Contribution | OpeningRequest):
            fields |= {"group": message.group, "id": identity(blob)}
    tape.note("sent", **fields)

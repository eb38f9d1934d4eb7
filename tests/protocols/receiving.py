"""One receiver, one message: what must hold whether it is accepted or refused."""

import copy
import shutil
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mutants
import numpy as np
import rules
import wire

from protocols import __version__
from protocols.chain import SigningKey, digest
from protocols.envelope import kind_of
from protocols.errors import NatflError, ProtocolError
from protocols.messages import OpeningRequest
from protocols.residues import WeightedSum

PEAK, SLOWEST, LONGEST = 16 << 20, 10.0, 100_000
"""Bytes that a receiver may hold and seconds it may take for a message; the longest message."""


@dataclass(frozen=True)
class Signed(mutants.Original):
    """An honest message, taken apart, with its sender's verify key in hexadecimal."""

    key: str = ""


def signed(blob: bytes, key: SigningKey) -> Signed:
    """An honest message and the key that its sender signs with."""
    return Signed(blob, key.sign, key.public.hex())


@dataclass
class Receiver:
    """One real receiver of one message: `take` raises NatflError unless it accepts the bytes.

    `state` is all that a refusal must leave as it was; `renew` brings back the state before.
    """

    name: str
    original: Any
    free: frozenset[str]
    take: Callable[[bytes], object]
    state: Callable[[], object] = lambda: None
    renew: Callable[[], None] = lambda: None
    second: Callable[[bytes], bool] | None = None


class Live:
    """A key holder that stands where a snapshot of it stood, as often as needed."""

    def __init__(self, holder: Any, folder: Path) -> None:
        self._kind, self._folder, self._made = type(holder), folder, 0
        self._given = holder._enrolment, holder.name, holder._key
        self._pristine = folder / "pristine"
        shutil.copytree(holder._journal.folder.parent, self._pristine)
        self._attempt = _copied(holder._attempt)
        self.refusal = holder._refusal()
        self.renew()

    def renew(self) -> None:
        if self._made:
            self.holder.close()
            shutil.rmtree(self._folder / str(self._made))
        self._made += 1
        fresh = self._folder / str(self._made)
        shutil.copytree(self._pristine, fresh)
        self.holder = self._kind(fresh, *self._given)
        self.holder._attempt = _copied(self._attempt)

    def state(self) -> tuple[object, ...]:
        attempt = self.holder._attempt
        seen = None if attempt is None else {k: _seen(v) for k, v in vars(attempt).items()}
        files = len(list((self.holder._journal.folder / "messages").iterdir()))
        return self.holder._journal.head, files, seen

    def take(self, blob: bytes) -> None:
        """ProtocolError for a refusal, and for a message that is left out."""
        before = self.state()
        answers = self.holder.answer(blob)
        if answers == [self.refusal] or (not answers and self.state() == before):
            raise ProtocolError("refused")


def _copied(attempt: Any) -> Any:
    made = copy.copy(attempt)
    for name, value in vars(attempt).items():
        if isinstance(value, list | dict | set | WeightedSum):
            setattr(made, name, copy.copy(value))
    return made


def _seen(value: Any) -> object:
    if isinstance(value, WeightedSum):
        return value.body()
    return copy.copy(value) if isinstance(value, list | dict | set) else value


def judge(receiver: Receiver, sort: str, blob: bytes, seen: Counter[str]) -> tuple[float, int]:
    """One message to one receiver, all assertions; the seconds and bytes that it took."""
    before, original = receiver.state(), receiver.original
    tracemalloc.reset_peak()
    held, start = tracemalloc.get_traced_memory()[0], time.perf_counter()
    try:
        receiver.take(blob)
        accepted = True
    except NatflError:
        accepted = False
    took, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1] - held
    # Any other exception has ended the test by now, with the mutant in the traceback.
    if accepted:
        differs = _differences(original, blob)
        assert differs <= receiver.free, (receiver.name, sort, differs)
        assert authentic_to_second(original, blob)
        taken = mutants.Original(blob, original.sign)
        assert taken.header.get("sha256", digest(taken.body)) == digest(taken.body)
        seen[receiver.name] += blob != original.blob
        receiver.renew()
    else:
        assert blob != original.blob, receiver.name
        after = receiver.state()
        if after != before:
            # A request of the server's that is refused ends the attempt; nothing is written.
            assert after[:2] == before[:2], (receiver.name, sort)
            assert after[2] is None, (receiver.name, sort)
            assert authentic_to_second(original, blob, OpeningRequest.kind)
            receiver.renew()
    if receiver.second is not None:
        assert receiver.second(blob) == accepted, (receiver.name, sort, blob[:2000])
    seen["messages"] += 1
    return took, peak


def _differences(original: Any, blob: bytes) -> set[str]:
    message = mutants.Original(blob, original.sign)
    before, after = original.header, message.header
    names = {name for name in before | after if before.get(name) != after.get(name)}
    return names | ({"body"} if message.body != original.body else set())


def authentic_to_second(original: Signed, blob: bytes, kind: str = "") -> bool:
    """Whether the second verifier finds frame, signature, header and sender in order."""
    try:
        size = mutants.PREFIX.unpack_from(blob)[4]
        header = wire.parsed(mutants.Original(blob, original.sign).text)
        awaits = {name: header[name] for name in ("session", "round", "attempt")}
        awaits |= {"sender": original.header["sender"], "verify_key": original.key}
        awaited = kind or kind_of(original.blob).kind
        wire.receive(blob, awaited, {**awaits, "body_bytes": size})
    except (wire.RefusedError, mutants.NoFrameError, LookupError, TypeError):
        return False
    return True


def run(receivers: list[Receiver], count: int, seed: int) -> None:
    """So many mutants, each to the receiver of its kind; what they cost is printed."""
    supply = mutants.Mutants([receiver.original for receiver in receivers], seed)
    seen: Counter[str] = Counter()
    costs = []
    tracemalloc.start()
    try:
        for number in range(count):
            receiver = receivers[number % len(receivers)]
            sort, blob = supply.of(receiver.original)
            if len(blob) <= LONGEST:
                costs.append(judge(receiver, sort, blob, seen))
    finally:
        tracemalloc.stop()
    times, peaks = zip(*costs, strict=True)
    assert supply.unsigned <= 0.1 * supply.made
    assert len(costs) >= 0.9 * count
    assert max(peaks) < PEAK
    assert max(times) < SLOWEST
    accepted = {name: number for name, number in seen.items() if name != "messages"}
    sys.stdout.write(
        f"{len(costs)} messages, accepted where the sender is free: {accepted}\n"
        f"seconds each: median {np.median(times):.5f}, most {max(times):.3f}; "
        f"bytes held: median {np.median(peaks):.0f}, most {max(peaks)}\n"
    )


def plan_rules(
    enrolment: Any, receiver: Receiver, holds: Callable[[dict[str, Any]], bool]
) -> Callable[[bytes], bool]:
    """The whole judgement of the second verifier on a plan, in place of the receiver."""
    agreed = enrolment.model_dump(mode="json")
    document = {"version": __version__, "enrolments": {"agreed": agreed}}

    def second(blob: bytes) -> bool:
        if not authentic_to_second(receiver.original, blob):
            return False
        message = mutants.Original(blob, receiver.original.sign)
        plan = {"header": message.header, "body": message.body.hex()}
        try:
            rules.plan({"plan": plan, "enrolment": "agreed"}, document)
            return holds(plan)
        except wire.RefusedError:
            return False

    return second

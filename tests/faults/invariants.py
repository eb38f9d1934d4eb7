"""What must hold of a federation whenever none of its processes is alive."""

from abc import ABC, abstractmethod
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from protocols.accounting import compose
from protocols.audit_events import RoundOpened
from protocols.audit_log import read_log
from protocols.chain import digest
from protocols.checkpoints import (
    check_covered,
    read_checkpoints,
)
from protocols.envelope import outline
from protocols.ledger import Ledger, ReleaseKey
from protocols.messages import KeyOpening, RoundPlan
from protocols.noise_plan import NoisePlan
from protocols.policy import Enrolment
from protocols.quantize import Layout
from protocols.transcript import Transcript
from secure_natfl.kept_heads import KeptHeads
from tests.faults.network import Tape


@dataclass(frozen=True)
class Counts:
    """What `Federation.check` looked at."""

    charges: int
    releases: int
    openings: int
    records: int


class Checked(ABC):
    """A federation whose state on disk, and what an observer saw of it, can be checked."""

    folder: Path
    names: tuple[str, ...]
    plan: NoisePlan
    layout: Layout
    enrolment: Enrolment
    tape: Tape

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], str] = {}

    @abstractmethod
    def ledger(self, name: str) -> Ledger:
        """A site's ledger."""

    @abstractmethod
    def heads(self, ledgers: dict[str, Ledger]) -> KeptHeads:
        """The sites' books."""

    def check(self) -> Counts:
        """Every invariant, from disk and tape alone; AssertionError names the one that broke."""
        tape = self.tape.read()
        charges = sum(self._check_site(name, tape) for name in self.names)
        openings = self._check_openings(tape)
        for name in self.enrolment.holders:
            self._check_holder(name, tape)
        records = self._check_records()
        releases = sum(note["what"] == "release" for note in tape)
        return Counts(charges, releases, openings, records)

    def opened(self, number: int) -> dict[str, Any] | None:
        """The round's sum as the server had it, None while it is shut."""
        found = [n for n in self.tape.read() if n["what"] == "opened" and n["round"] == number]
        return found[-1] if found else None

    def _check_site(self, name: str, tape: list[dict[str, Any]]) -> int:
        with self.ledger(name) as ledger:
            ledger.verify()
            lines, chain = ledger.lines(), ledger.chained()
            for note in tape:
                if note["what"] == "checked" and note["site"] == name:
                    stood = chain[: note["lines"]][-1:]
                    assert stood == note["last"], f"{name}: a line was changed or taken back"
            self.tape.note("checked", site=name, lines=len(chain), last=chain[-1:])
            charged = [line["round"] for line in lines]
            assert len(charged) == len(set(charged)), f"{name}: a key was charged twice"
            event = self.plan.mechanisms[name].event()
            spent = compose([event] * len(charged), 1e-5).epsilon
            assert abs(ledger.spent().epsilon - spent) < 1e-9, f"{name}: ε is not the lines' sum"
            sent = {n["round"] for n in tape if n.get("kind") == "contribution" and n["by"] == name}
            assert sent <= set(charged), f"{name}: sent without a charge"
            assert spent >= compose([event] * len(sent), 1e-5).epsilon if sent else True
            for note in tape:
                if note["what"] == "release" and note["site"] == name:
                    self._check_release(name, note, ledger)
            return len(charged)

    def _check_release(self, name: str, note: dict[str, Any], ledger: Ledger) -> None:
        stored = ledger.stored(ReleaseKey("study", note["round"]))
        assert stored is not None, f"{name}: released what it had not stored"
        assert sha256_of(stored) == note["sha256"], f"{name}: a retry drew other integers"
        first = self._seen.setdefault((name, note["round"]), note["sha256"])
        assert first == note["sha256"], f"{name}: two releases for one round"

    def _check_openings(self, tape: list[dict[str, Any]]) -> int:
        sums, requests = defaultdict(set), defaultdict(set)
        for note in tape:
            if note["what"] == "opened" or note.get("kind") == "opening":
                sums[note["round"], note["group"]].add(note["sha256"])
            if note.get("kind") == "key-opening":
                place = (note["by"], note["round"], note["group"])
                requests[place].add(note["request"])
        assert all(len(found) == 1 for found in sums.values()), "two sums of one group and round"
        assert all(len(found) == 1 for found in requests.values()), "a holder answered two requests"
        for note in tape:
            if note["what"] == "opened":
                assert note["sha256"] == self._expected(note), "the sum is not of what was stored"
        return len(sums)

    def _expected(self, note: dict[str, Any]) -> str:
        total = np.zeros(self.layout.size, np.int64)
        for name in note["participants"]:
            with self.ledger(name) as ledger:
                stored = ledger.stored(ReleaseKey("study", note["round"]))
            assert stored is not None
            total += stored
        return digest(total.astype("<i8").tobytes())

    def _check_holder(self, name: str, tape: list[dict[str, Any]]) -> None:
        """An attempt that a later plan has closed stays closed; what was answered is on disk."""
        folder = self.folder / "holders" / name
        if not (folder / "journal").exists():
            return
        with Transcript(folder / "journal", durable=True) as journal:
            journal.verify()
            blobs = [journal.read(e) for e in journal.entries if e.kind != "torn-line"]
        latest: dict[int, int] = {}
        answered = set()
        for message in map(outline, blobs):
            if isinstance(message, RoundPlan):
                assert message.attempt > latest.get(message.round, 0), f"{name}: an attempt again"
                latest[message.round] = message.attempt
            elif isinstance(message, KeyOpening):
                live = latest[message.round]
                assert message.attempt == live, f"{name}: opened a closed attempt"
                answered.add((message.round, message.request))
        heard = {
            (n["round"], n["request"])
            for n in tape
            if n.get("kind") == "key-opening" and n["by"] == name
        }
        assert heard <= answered, f"{name}: said what its journal does not know"

    def _check_records(self) -> int:
        with Transcript(self.folder / "transcript") as transcript:
            transcript.verify()
        path = self.folder / "audit.jsonl"
        log = read_log(path.read_bytes() if path.exists() else b"")
        rounds = [r.body.round for r in log.records() if isinstance(r.body, RoundOpened)]
        places = [self.folder, *(self.folder / "sites" / name for name in self.names)]
        for place in places:
            kept = [one.checkpoint for one in read_checkpoints(place / "checkpoints.jsonl")]
            for checkpoint in kept:
                check_covered(log.tree, checkpoint)
            assert all(a.size <= b.size for a, b in pairwise(kept))
        with ExitStack() as stack:
            ledgers = {one: stack.enter_context(self.ledger(one)) for one in self.names}
            self.heads(ledgers).check()
        return len(rounds)


def sha256_of(values: np.ndarray) -> str:
    return digest(values.astype("<i8").tobytes())

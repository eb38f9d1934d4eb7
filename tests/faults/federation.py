"""A whole federation on one disk, of which every attempt is a process of its own.

Four sites with real ledgers and mechanisms that are their own key holders, any three of whom
open; a server with its transcript and audit log; the sites' books of heads and checkpoints. An
attempt is forked, opens everything from disk, plays, and ends as told: well, with an error, or at
a named moment around a durable write, without a word to anybody.
"""

import os
import traceback
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from protocols import durable
from protocols.accounting import compose
from protocols.audit_events import RoundOpened, SessionOpened, Sum
from protocols.audit_log import AuditLog, read_log
from protocols.chain import SigningKey, digest
from protocols.checkpoints import (
    CheckpointBook,
    Cosigned,
    append_line,
    check_covered,
    read_checkpoints,
    sign_checkpoint,
)
from protocols.envelope import outline
from protocols.errors import NatflError
from protocols.holding import Holding
from protocols.ledger import Ledger, ReleaseKey
from protocols.messages import Group, KeyOpening, RoundPlan
from protocols.multikey import MK18_39
from protocols.noise_plan import NoisePlan
from protocols.outcome import Outcome
from protocols.parties import Client, Server
from protocols.policy import Enrolment, holder_name, threshold_of
from protocols.quantize import Layout, Segment
from protocols.release import Released
from protocols.secagg import Threshold, draft
from protocols.share_holder import ShareHolder
from protocols.transcript import Transcript
from secure_natfl.kept_heads import KeptHeads
from tests.faults.network import Lossy, Restarting, Schedule, Tape

SHARDS, PROXIES = 5, 10
Watcher = Callable[[str], None]


class Ended(Enum):
    """How an attempt's process ended."""

    WELL = 0
    REFUSED = 3
    DEFECT = 4
    KILLED = 9


@dataclass(frozen=True)
class Counts:
    """What `Federation.check` looked at."""

    charges: int
    releases: int
    openings: int
    records: int


class Federation:
    """Keys, agreed terms and private data of all; whatever else it knows lies in `folder`."""

    def __init__(
        self,
        folder: Path,
        *,
        names: Sequence[str] = "abcd",
        rounds: int = 4,
        size: int = 24,
        least: int = 3,
        holders: Sequence[str] | None = None,
        threshold: tuple[int, int] | None = None,
        tape: Path | None = None,
    ) -> None:
        self.folder, self.names, self.rounds = folder, tuple(names), rounds
        self.layout = Layout((Segment("logits", size, 1),))
        self.server_key = SigningKey.generate(os.urandom)
        self.keys = {name: SigningKey.generate(os.urandom) for name in self.names}
        holding = tuple(holders or map(holder_name, self.names))
        self.holder_keys = {name: SigningKey.generate(os.urandom) for name in holding}
        alphas = dict.fromkeys(self.names, 1)
        self.plan = NoisePlan.calibrate(
            epsilon=8.0,
            delta=1e-5,
            rounds=rounds,
            alphas=alphas,
            groups=dict.fromkeys(self.names, "all"),
            colluders=1,
            dropouts=len(self.names) - least,
            shards=dict.fromkeys(self.names, SHARDS),
            clip_norm=4.0,
            size=size,
            bits=MK18_39.bits,
        )
        self.group = Group(
            name="all", participants=self.names, alphas=tuple(alphas.values()), least=least
        )
        needed, malicious = threshold or threshold_of(len(holding))
        self.enrolment = Enrolment(
            session="study",
            mode="ckks/threshold",
            server=self.server_key.public.hex(),
            clients={name: key.public.hex() for name, key in self.keys.items()},
            holders={name: key.public.hex() for name, key in self.holder_keys.items()},
            threshold=needed,
            malicious=malicious,
            preset=MK18_39.name,
            proxies=digest(b"proxies"),
            terms=digest(b"terms"),
        )
        draw = np.random.default_rng(11)
        shape = (len(self.names), rounds, SHARDS, size)
        self.teachers = draw.normal(size=shape)
        for name in self.names:
            (folder / "sites" / name).mkdir(parents=True)
        self.tape = Tape(tape or folder / "tape")
        self._seen: dict[tuple[str, int], str] = {}
        self._chains: dict[str, list[str]] = {name: [] for name in self.names}

    # What one process does.

    def attempt(
        self, round_number: int, schedule: Schedule | None = None, watcher: Watcher | None = None
    ) -> Ended:
        """Play one attempt of a round in a process of its own, to whatever end."""
        child = os.fork()
        if child:
            ended = Ended(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            if ended is Ended.DEFECT:
                raise AssertionError(self.tape.read()[-1]["trace"])
            return ended
        ended = Ended.DEFECT
        try:
            with durable.watched(watcher or (lambda _: None)):
                self._played(round_number, schedule or Schedule())
            ended = Ended.WELL
        except NatflError as error:
            self.tape.note("refused", round=round_number, why=str(error))
            ended = Ended.REFUSED
        except BaseException:
            self.tape.note("defect", trace=traceback.format_exc())
        finally:
            os._exit(ended.value)

    def _played(self, number: int, schedule: Schedule) -> None:
        with ExitStack() as stack:
            ledgers = {name: stack.enter_context(self.ledger(name)) for name in self.names}
            transcript = stack.enter_context(Transcript(self.folder / "transcript"))
            wire = Lossy(transcript, schedule, self.tape, self.folder / "late")
            for name in self.enrolment.holders:
                end = Restarting(self._opener(name), lambda: wire.happens(schedule.restart))
                wire.connect(name, end)
            clients = {
                name: Client(name, self.keys[name], self.enrolment, self._releaser(name, ledgers))
                for name in self.names
            }
            heads = self._heads(ledgers)
            heads.check()
            server = Server(self.server_key, self.enrolment)
            plan = draft(
                self.enrolment,
                transcript,
                round_number=number,
                groups=[self.group],
                layout=digest(b"layout"),
                size=self.layout.size,
                subset=np.arange(number * PROXIES, (number + 1) * PROXIES),
            )
            outcome = Threshold(server, clients, wire).play(plan)
            self._opened(number, outcome)
            heads.keep()
            self._record(number, outcome, transcript)

    def _heads(self, ledgers: dict[str, Ledger]) -> KeptHeads:
        """Every site's head is kept by three others."""
        fours = [self.names[at : at + 4] for at in range(0, len(self.names), 4)]
        return KeptHeads(self.folder / "sites", fours, self.keys, ledgers)

    def ledger(self, name: str) -> Ledger:
        path = self.folder / "sites" / name / "ledger.db"
        return Ledger(path, name, "patients", budget_epsilon=None, delta=1e-5)

    def holder(self, name: str) -> Holding:
        folder = self.folder / "holders" / name
        folder.mkdir(parents=True, exist_ok=True)
        return ShareHolder(folder, self.enrolment, name, self.holder_keys[name])

    def _opener(self, name: str) -> Callable[[], Holding]:
        return lambda: self.holder(name)

    def _releaser(self, name: str, ledgers: dict[str, Ledger]) -> Callable[[RoundPlan], Released]:
        def release(plan: RoundPlan) -> Released:
            mechanism = self.plan.mechanisms[name]
            teachers = self.teachers[self.names.index(name), plan.round]
            bounded = mechanism.bound(teachers, self.layout)
            key = ReleaseKey(plan.session, plan.round)
            released = mechanism.release(bounded, ledgers[name], key, os.urandom)
            self.tape.note("release", site=name, round=plan.round, sha256=_sha256(released.values))
            return released

        return release

    def _opened(self, number: int, outcome: Outcome) -> None:
        for group, found in outcome.aggregates.items():
            self.tape.note(
                "opened",
                round=number,
                group=group,
                sha256=found.sha256,
                attempt=found.attempt,
                participants=found.participants,
            )

    def _record(self, number: int, outcome: Outcome, transcript: Transcript) -> None:
        """The server's record of the round, and every site's signature under where it stands."""
        sums = tuple(
            Sum(group=g, attempt=a.attempt, participants=a.participants, sha256=a.sha256)
            for g, a in outcome.aggregates.items()
        )
        with AuditLog(self.folder / "audit.jsonl") as log:
            if not any(isinstance(record.body, SessionOpened) for record in log.records):
                log.append("server", self._beginning())
            log.append(
                "server",
                RoundOpened(
                    round=number,
                    sums=sums,
                    absent=tuple(sorted(outcome.absent)),
                    transcript_entries=len(transcript.entries),
                    transcript_head=transcript.head,
                ),
            )
            last = log.records[-1]
            checkpoint = sign_checkpoint(log.tree, "study", number, last.utc, self.server_key)
            signed = []
            for name in self.names:
                book = self._book(name)
                old = book.last_size("study")
                proof = log.tree.consistency(old, len(log.tree)) if old else []
                signed.append(book.cosign(checkpoint, proof))
            one = Cosigned(checkpoint=checkpoint, cosignatures=tuple(signed))
            append_line(self.folder / "checkpoints.jsonl", one)

    def _book(self, name: str) -> CheckpointBook:
        path = self.folder / "sites" / name / "checkpoints.jsonl"
        return CheckpointBook(path, name, self.keys[name], self.server_key.public)

    def _beginning(self) -> SessionOpened:
        rules = self.enrolment
        return SessionOpened(
            session="study",
            version="0",
            config=digest(b"config"),
            enrolment=digest(b"enrolment"),
            server=rules.server,
            clients=rules.clients,
            holders=rules.holders,
            threshold=rules.threshold,
            simulated=True,
            seeded=False,
        )

    # What must hold whenever no process is alive.

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
            before = self._chains[name]
            assert chain[: len(before)] == before, f"{name}: a line was changed or taken back"
            self._chains[name] = chain
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
        assert _sha256(stored) == note["sha256"], f"{name}: a retry drew other integers"
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
            self._heads(ledgers).check()
        return len(rounds)


def killed_at(wanted: int, moments: Callable[[str], bool] = lambda _: True) -> Watcher:
    """Ends the process, as kill -9 would, at the `wanted`-th moment (from 0) that counts."""
    left = [wanted]

    def watcher(moment: str) -> None:
        if moments(moment):
            if not left[0]:
                os._exit(Ended.KILLED.value)
            left[0] -= 1

    return watcher


def _sha256(values: np.ndarray) -> str:
    return digest(values.astype("<i8").tobytes())

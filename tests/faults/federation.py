"""A whole federation on one disk, of which every attempt is a process of its own.

Four sites with real ledgers and mechanisms that are their own key holders, any three of whom
open; a server with its transcript and audit log; the sites' books of heads and checkpoints. An
attempt is forked, opens everything from disk, plays, and ends as told: well, with an error, or at
a named moment around a durable write, without a word to anybody.
"""

import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np

from protocols import durable
from protocols.audit_events import RoundOpened, SessionOpened, Sum
from protocols.audit_log import AuditLog
from protocols.chain import SigningKey, digest
from protocols.checkpoints import (
    CheckpointBook,
    Cosigned,
    append_line,
    sign_checkpoint,
)
from protocols.errors import NatflError
from protocols.holding import Holding
from protocols.ledger import Ledger, ReleaseKey
from protocols.messages import Group, RoundPlan
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
from tests.faults.invariants import Checked, sha256_of
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
class AtWork:
    """What one process has open: ledgers, the server's records, key holders, kept heads."""

    ledgers: dict[str, Ledger]
    transcript: Transcript
    log: AuditLog
    holders: dict[str, Restarting]
    heads: KeptHeads


class Federation(Checked):
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
        super().__init__()

    # What one process does.

    def attempt(
        self, round_number: int, schedule: Schedule | None = None, watcher: Watcher | None = None
    ) -> Ended:
        """Play one attempt of a round in a process of its own, to whatever end."""
        return self.apart(lambda: self._played(round_number, schedule or Schedule()), watcher)

    def apart(self, work: Callable[[], None], watcher: Watcher | None = None) -> Ended:
        """Do `work` in a process of its own, to whatever end."""
        child = os.fork()
        if child:
            ended = Ended(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            if ended is Ended.DEFECT:
                raise AssertionError(self.tape.read()[-1]["trace"])
            return ended
        ended = Ended.DEFECT
        try:
            with durable.watched(watcher or (lambda _: None)):
                work()
            ended = Ended.WELL
        except NatflError as error:
            self.tape.note("refused", why=str(error))
            ended = Ended.REFUSED
        except BaseException:
            self.tape.note("defect", trace=traceback.format_exc())
        finally:
            os._exit(ended.value)

    @contextmanager
    def at_work(self) -> Iterator[AtWork]:
        """Every party's files, opened from disk by this process, and what was kept of ledgers."""
        with ExitStack() as stack:
            ledgers = {name: stack.enter_context(self.ledger(name)) for name in self.names}
            transcript = stack.enter_context(Transcript(self.folder / "transcript"))
            ends = {name: Restarting(self._opener(name)) for name in self.enrolment.holders}
            log = stack.enter_context(AuditLog(self.folder / "audit.jsonl"))
            heads = self.heads(ledgers)
            heads.check()
            yield AtWork(ledgers, transcript, log, ends, heads)

    def play(self, at_work: AtWork, number: int, schedule: Schedule) -> None:
        """One attempt of a round by parties that are at work, over connections of its own."""
        wire = Lossy(at_work.transcript, schedule, self.tape, self.folder / "late")
        for name, end in at_work.holders.items():
            end.restarts = lambda: wire.happens(schedule.restart)
            wire.connect(name, end)
        clients = {
            name: Client(
                name, self.keys[name], self.enrolment, self._releaser(name, at_work.ledgers)
            )
            for name in self.names
        }
        server = Server(self.server_key, self.enrolment)
        plan = draft(
            self.enrolment,
            at_work.transcript,
            round_number=number,
            groups=[self.group],
            layout=digest(b"layout"),
            size=self.layout.size,
            subset=np.arange(number * PROXIES, (number + 1) * PROXIES),
        )
        outcome = Threshold(server, clients, wire).play(plan)
        self._opened(number, outcome)
        at_work.heads.keep()
        self._record(number, outcome, at_work.transcript, at_work.log)

    def _played(self, number: int, schedule: Schedule) -> None:
        with self.at_work() as at_work:
            self.play(at_work, number, schedule)

    def heads(self, ledgers: dict[str, Ledger]) -> KeptHeads:
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
            self.tape.note(
                "release", site=name, round=plan.round, sha256=sha256_of(released.values)
            )
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

    def _record(self, number: int, outcome: Outcome, transcript: Transcript, log: AuditLog) -> None:
        """The server's record of the round, and every site's signature under where it stands."""
        sums = tuple(
            Sum(group=g, attempt=a.attempt, participants=a.participants, sha256=a.sha256)
            for g, a in outcome.aggregates.items()
        )
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


def killed_at(wanted: int, moments: Callable[[str], bool] = lambda _: True) -> Watcher:
    """Ends the process, as kill -9 would, at the `wanted`-th moment (from 0) that counts."""
    left = [wanted]

    def watcher(moment: str) -> None:
        if moments(moment):
            if not left[0]:
                os._exit(Ended.KILLED.value)
            left[0] -= 1

    return watcher

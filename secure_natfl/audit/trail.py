"""Writes a run's audit log and has each round's checkpoint co-signed; the run calls it.

In the run folder stand `audit.jsonl`, `enrolment.json` and `checkpoints.jsonl`, and in each site's
own folder the `checkpoints.jsonl` that it keeps. In a simulation all of them are on one disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from protocols.audit_events import (
    Charged,
    Event,
    PlannedGroup,
    Refused,
    RoundLearned,
    RoundOpened,
    RoundPlanned,
    SessionClosed,
    SessionOpened,
    SessionResumed,
    Sum,
)
from protocols.audit_log import AuditLog
from protocols.chain import SigningKey, canonical, digest
from protocols.checkpoints import (
    CheckpointBook,
    Cosigned,
    append_line,
    read_checkpoints,
    sign_checkpoint,
)
from protocols.errors import RunFolderError
from protocols.ledger_heads import sign_head
from protocols.outcome import Outcome
from protocols.policy import SERVER, Enrolment
from secure_natfl import __version__
from secure_natfl.config import Config
from secure_natfl.protection import Protection
from secure_natfl.run_folder import write
from secure_natfl.site_state import secret, state_folder

LOG = "audit.jsonl"
ENROLMENT = "enrolment.json"
CHECKPOINTS = "checkpoints.jsonl"
RECORDED = ("config.toml", "run.json", ENROLMENT, "report.json", "metrics.parquet")
"""Files whose digests close the log."""


class Trail:
    """One run's log: opened once all keys are enrolled, taken up again on resuming.

    enrolment: None to go on with the one that the log names. A context manager: an error that
    ends a round is recorded by its kind. RunFolderError where the log cannot be written, or is
    another session's.
    """

    def __init__(self, config: Config, folder: Path, enrolment: Enrolment | None = None) -> None:
        self._folder, self._sites = folder, state_folder(config, folder)
        self._round = 0
        self._log = AuditLog(folder / LOG)
        if not self._log.records and enrolment is not None:
            write(folder / ENROLMENT, enrolment.model_dump_json(indent=2).encode())
            self._append(SERVER, _opening(config, enrolment))
        elif enrolment is not None:
            self._append(SERVER, SessionResumed(version=__version__))
        self._opened = self._first(enrolment)

    def planned(self, round_number: int, proxies: int, protection: Protection) -> None:
        """Before a round is played."""
        self._round = round_number
        groups = tuple(
            PlannedGroup(name=group.name, participants=group.participants, alphas=group.alphas)
            for group in protection.schedule.groups(round_number)
        )
        self._append(SERVER, RoundPlanned(round=round_number, proxies=proxies, groups=groups))

    def opened(self, round_number: int, outcome: Outcome, protection: Protection) -> None:
        """After a round's sums were opened, before anything is learned from them."""
        for site in protection.ledgers:
            charged = self._charged(site, round_number, protection)
            if charged is not None:
                self._append(site, charged)
        sums = tuple(
            Sum(
                group=group,
                attempt=found.attempt,
                participants=found.participants,
                sha256=found.sha256,
            )
            for group, found in outcome.aggregates.items()
        )
        self._append(
            SERVER,
            RoundOpened(
                round=round_number,
                sums=sums,
                absent=tuple(sorted(outcome.absent)),
                transcript_entries=len(protection.transcript.entries),
                transcript_head=protection.transcript.head,
            ),
        )

    def learned(self, round_number: int, model: Path) -> None:
        """After a round's models are on disk: record, sign, have it co-signed. Nothing twice."""
        body = RoundLearned(round=round_number, model=digest(model.read_bytes()))
        if body not in (record.body for record in self._log.records):
            self._append(SERVER, body)
        signed = (one.checkpoint.round for one in read_checkpoints(self._folder / CHECKPOINTS))
        if round_number not in signed:
            self._checkpoint(round_number, self._clients_of(round_number))

    def taken_up(self, round_number: int, model: Path) -> None:
        """A round whose models are taken from disk: they must be those that the log names."""
        bodies = (record.body for record in self._log.records)
        named = {
            body.model
            for body in bodies
            if isinstance(body, RoundLearned) and body.round == round_number
        }
        if named and digest(model.read_bytes()) not in named:
            raise RunFolderError(
                "the model on disk is not the one that the audit log names",
                where=str(model),
                why=f"it was changed after round {round_number}",
                fix="remove this step and those after it, then resume",
            )
        self.learned(round_number, model)

    def end(self) -> None:
        """Once every file is written: record their digests; every client co-signs."""
        files = {
            name: digest((self._folder / name).read_bytes())
            for name in RECORDED
            if (self._folder / name).exists()
        }
        self._append(SERVER, SessionClosed(files=files))
        rounds = [
            record.body.round
            for record in self._log.records
            if isinstance(record.body, RoundLearned)
        ]
        self._checkpoint(max(rounds, default=0), self._opened.clients)

    def refused(self, kind: type[BaseException]) -> None:
        """A round ended in an error, of which no more than its kind is recorded."""
        self._append(SERVER, Refused(round=self._round, error=kind.__name__))

    def __enter__(self) -> Trail:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is not None:
                self.refused(kind)
        finally:
            self._log.close()

    def _append(self, actor: str, body: Event) -> None:
        self._log.append(actor, body)

    def _first(self, enrolment: Enrolment | None) -> SessionOpened:
        opened = self._log.records[0].body if self._log.records else None
        stated = enrolment and digest_of(enrolment)
        if isinstance(opened, SessionOpened) and stated in (None, opened.enrolment):
            return opened
        self._log.close()
        raise RunFolderError(
            "the audit log is of another session",
            where=str(self._folder / LOG),
            why="parties, keys or terms differ from those that it began with",
            fix="start a new folder",
        )

    def _charged(self, site: str, round_number: int, protection: Protection) -> Charged | None:
        """What a site's ledger says of a round; None if it never came to be charged."""
        ledger = protection.ledgers[site]
        wanted = (ledger.patients, protection.session, round_number)
        events = [
            line["event"]
            for line in ledger.lines()
            if (line["patients"], line["session"], line["round"]) == wanted
        ]
        if not events:
            return None
        head = sign_head(ledger, SigningKey(secret(self._sites / site, "signing", os.urandom)))
        return Charged(
            round=round_number,
            cost=canonical(events[0]).decode(),
            patients=head.patients,
            seq=head.seq,
            head=head.hash,
            signature=head.signature,
        )

    def _clients_of(self, round_number: int) -> list[str]:
        names: dict[str, None] = {}
        for record in self._log.records:
            if isinstance(record.body, RoundOpened) and record.body.round == round_number:
                names |= dict.fromkeys(n for one in record.body.sums for n in one.participants)
        return list(names)

    def _checkpoint(self, round_number: int, clients: Iterable[str]) -> None:
        """Signed by the server, then shown to each client with what proves that the log grew."""
        key = SigningKey(secret(self._folder / "server", "signing", os.urandom))
        tree, last = self._log.tree, self._log.records[-1]
        checkpoint = sign_checkpoint(tree, self._opened.session, round_number, last.utc, key)
        cosignatures = []
        for client in clients:
            book = CheckpointBook(
                self._sites / client / CHECKPOINTS,
                client,
                SigningKey(secret(self._sites / client, "signing", os.urandom)),
                key.public,
            )
            old = book.last_size(checkpoint.session)
            proof = tree.consistency(old, len(tree)) if old else []
            cosignatures.append(book.cosign(checkpoint, proof))
        one = Cosigned(checkpoint=checkpoint, cosignatures=tuple(cosignatures))
        append_line(self._folder / CHECKPOINTS, one)


def digest_of(enrolment: Enrolment) -> str:
    """SHA-256 by which the log names an enrolment."""
    return digest(canonical(enrolment.model_dump(mode="json")))


def _opening(config: Config, enrolment: Enrolment) -> SessionOpened:
    return SessionOpened(
        session=enrolment.session,
        version=__version__,
        config=config.identity,
        enrolment=digest_of(enrolment),
        server=enrolment.server,
        clients=enrolment.clients,
        holders=enrolment.holders,
        threshold=enrolment.threshold,
        simulated=True,
        seeded=config.seeded,
    )

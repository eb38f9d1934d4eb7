"""The deployed server's audit log: written before what it tells of, signed, shown to every site."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from pydantic import ValidationError

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
from protocols.chain import SigningKey, canonical, digest, verify
from protocols.checkpoints import (
    Checkpoint,
    Cosignature,
    Cosigned,
    Keys,
    append_line,
    read_checkpoints,
    sign_checkpoint,
    verify_cosigned,
)
from protocols.errors import ProtocolError, RunFolderError
from protocols.ledger_heads import Head
from protocols.messages import Group, Opening
from protocols.policy import SERVER
from protocols.transcript import Transcript
from secure_natfl import __version__
from secure_natfl.audit.trail import CHECKPOINTS, ENROLMENT, LOG, RECORDED, digest_of
from secure_natfl.deploy.enrolled import Enrolled
from secure_natfl.run_folder import write

SHOWN: Final = "shown.jsonl"
"""Every checkpoint before it was shown to anybody: proofs begin at one of these."""


class Minutes:
    """A session's log in the run folder; taken up again where a killed server left it.

    RunFolderError where it cannot be written, or is another session's.
    """

    def __init__(self, folder: Path, enrolled: Enrolled, key: SigningKey) -> None:
        self._folder, self._key, self._enrolment = folder, key, enrolled.enrolment
        self._log = AuditLog(folder / LOG)
        opening = _opening(enrolled)
        if not self._log.records:
            write(folder / ENROLMENT, self._enrolment.model_dump_json(indent=2).encode())
            self._append(SERVER, opening)
        elif self._log.records[0].body != opening:
            self._log.close()
            raise RunFolderError(
                "the audit log is of another session",
                where=str(folder / LOG),
                why="parties, keys or terms differ from those that it began with",
                fix="give a new session a folder of its own",
            )
        elif not self.over:
            self._append(SERVER, SessionResumed(version=__version__))

    @property
    def bodies(self) -> list[Event]:
        """What the log says so far."""
        return [record.body for record in self._log.records]

    @property
    def records(self) -> list[tuple[str, Event]]:
        """(actor, what it says), in the log's order."""
        return [(record.actor, record.body) for record in self._log.records]

    @property
    def over(self) -> bool:
        """Whether the session was closed."""
        return any(isinstance(body, SessionClosed) for body in self.bodies)

    def planned(self, round_number: int, proxies: int, groups: Iterable[Group]) -> None:
        """Before an attempt of a round."""
        said = tuple(
            PlannedGroup(name=g.name, participants=g.participants, alphas=g.alphas) for g in groups
        )
        self._append(SERVER, RoundPlanned(round=round_number, proxies=proxies, groups=said))

    def charged(self, site: str, charges: Iterable[Charged]) -> None:
        """What a site says of its ledger, each round once; all of it, or nothing of it.

        ProtocolError where it did not sign, or charged a round that was not planned.
        """
        said = list(charges)
        planned = {body.round for body in self.bodies if isinstance(body, RoundPlanned)}
        for one in said:
            head = _head(site, one)
            verify(self._enrolment.verify_key(site), head.said(), bytes.fromhex(one.signature))
            if one.round not in planned:
                raise ProtocolError(f"round {one.round} was charged and not planned", where=site)
        known = {
            (record.actor, record.body.round)
            for record in self._log.records
            if isinstance(record.body, Charged)
        }
        for one in said:
            if (site, one.round) not in known:
                self._append(site, one)

    def heads(self) -> dict[str, bytes]:
        """Each site's latest signed ledger head: for the others to keep, and for its own check."""
        latest = {r.actor: r.body for r in self._log.records if isinstance(r.body, Charged)}
        return {site: canonical(_head(site, body).model_dump()) for site, body in latest.items()}

    def opened(
        self,
        round_number: int,
        openings: Iterable[Opening],
        absent: Mapping[str, str],
        transcript: Transcript,
    ) -> None:
        """After a round's sums were opened, before anything is learned from them."""
        sums = tuple(
            Sum(group=o.group, attempt=o.attempt, participants=o.participants, sha256=o.sha256)
            for o in openings
        )
        parties = {party for party in absent if not party.startswith("attempt-")}
        body = RoundOpened(
            round=round_number,
            sums=sums,
            absent=tuple(sorted(parties)),
            transcript_entries=len(transcript.entries),
            transcript_head=transcript.head,
        )
        self._append(SERVER, body)

    def learned(self, round_number: int, model: Path) -> None:
        """After a round's model is on disk; nothing twice, and no other model than was logged."""
        body = RoundLearned(round=round_number, model=digest(model.read_bytes()))
        before = [b for b in self.bodies if isinstance(b, RoundLearned) and b.round == round_number]
        if before and before[0] != body:
            raise RunFolderError(
                "the model on disk is not the one that the audit log names",
                where=str(model),
                why=f"it was changed after round {round_number}",
                fix="remove this step and those after it, then resume",
            )
        if not before:
            self._append(SERVER, body)

    def refused(self, round_number: int, kind: type[BaseException]) -> None:
        """An attempt ended in an error, of which no more than its kind is recorded."""
        self._append(SERVER, Refused(round=round_number, error=kind.__name__))

    def closed(self) -> None:
        """Once every file is written: record their digests."""
        files = {
            name: digest((self._folder / name).read_bytes())
            for name in RECORDED
            if (self._folder / name).exists()
        }
        self._append(SERVER, SessionClosed(files=files))

    def checkpoint(self, round_number: int) -> tuple[Checkpoint, bytes, bytes]:
        """Where the log stands, signed: the statement, its bytes, proofs from every earlier one.

        It is written down before anybody sees it.
        """
        tree, utc = self._log.tree, self._log.records[-1].utc
        known = [one.checkpoint for one in read_checkpoints(self._folder / SHOWN)]
        made = next((one for one in known if one.size == len(tree)), None) or sign_checkpoint(
            tree, self._enrolment.session, round_number, utc, self._key
        )
        if made not in known:
            append_line(self._folder / SHOWN, Cosigned(checkpoint=made, cosignatures=()))
        proofs = {
            str(one.size): [node.hex() for node in tree.consistency(one.size, len(tree))]
            for one in (*known, made)
        }
        return made, canonical(made.model_dump(mode="json")), canonical(proofs)

    def cosigned(self, checkpoint: Checkpoint, answers: Mapping[str, bytes]) -> None:
        """Keep who co-signed; ProtocolError for a signature that does not verify."""
        if answers:
            one = Cosigned(
                checkpoint=checkpoint,
                cosignatures=tuple(_cosignature(n, blob) for n, blob in answers.items()),
            )
            verify_cosigned(one, self._keys)
            append_line(self._folder / CHECKPOINTS, one)

    def cosigners(self, round_number: int) -> set[str]:
        """Clients who have co-signed a log that tells what this round taught."""
        found: set[str] = set()
        for one in read_checkpoints(self._folder / CHECKPOINTS):
            told = self.bodies[: one.checkpoint.size]
            if any(isinstance(b, RoundLearned) and b.round == round_number for b in told):
                found |= {signed.client for signed in one.cosignatures}
        return found

    def signed_end(self) -> set[str]:
        """Clients who have co-signed the whole log."""
        return {
            signed.client
            for one in read_checkpoints(self._folder / CHECKPOINTS)
            if one.checkpoint.size == len(self._log.records)
            for signed in one.cosignatures
        }

    def close(self) -> None:
        """Close the file."""
        self._log.close()

    @property
    def _keys(self) -> Keys:
        clients = {name: bytes.fromhex(key) for name, key in self._enrolment.clients.items()}
        return Keys(self._key.public, clients)

    def _append(self, actor: str, body: Event) -> None:
        self._log.append(actor, body)


def _head(site: str, one: Charged) -> Head:
    return Head(
        site=site, patients=one.patients, seq=one.seq, hash=one.head, signature=one.signature
    )


def _cosignature(client: str, blob: bytes) -> Cosignature:
    try:
        found = Cosignature.model_validate_json(blob)
    except ValidationError as error:
        raise ProtocolError("a co-signature cannot be read", where=client) from error
    if found.client != client:
        raise ProtocolError("a co-signature of somebody else", where=client)
    return found


def _opening(enrolled: Enrolled) -> SessionOpened:
    enrolment, config = enrolled.enrolment, enrolled.config
    return SessionOpened(
        session=enrolment.session,
        version=__version__,
        config=config.identity,
        enrolment=digest_of(enrolment),
        server=enrolment.server,
        clients=enrolment.clients,
        holders=enrolment.holders,
        threshold=enrolment.threshold,
        simulated=False,
        seeded=config.seeded,
    )

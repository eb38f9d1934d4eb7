"""The coordinator: it plans, adds, opens with the holders' help, distils, and keeps the log.

All its state is in its folder, so a new process goes on where a killed one stopped. It holds no
key that opens anything, and no private image.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.console import Console

from protocols.chain import SigningKey, canonical
from protocols.checkpoints import Checkpoint
from protocols.envelope import outline
from protocols.errors import AbsentError, ProtocolError
from protocols.ledger_heads import KeptHead, parse_kept
from protocols.messages import Opening, RoundPlan
from protocols.parties import Server
from protocols.secagg.topology import Absent, draft
from protocols.transcript import Transcript
from secure_natfl.deploy.agreement import agreed
from secure_natfl.deploy.driver import Played, Rounds
from secure_natfl.deploy.enrolled import read_enrolled
from secure_natfl.deploy.learning import Learning
from secure_natfl.deploy.minutes import Minutes
from secure_natfl.deploy.party import Exchange
from secure_natfl.deploy.post import Post
from secure_natfl.deploy.server_file import Patience, read_patience
from secure_natfl.deploy.standing import Standing, read_charges, read_standing
from secure_natfl.progress import Stages
from secure_natfl.run_folder import RunFolder, write
from secure_natfl.site_state import secret
from secure_natfl.systems.natimg_fl import Rows

T = TypeVar("T")
RUN = "run"
"""The run folder within the server's own: what the auditor gets."""


class Coordinator:
    """One session on one exchange. A context manager; RunFolderError where another process has it.

    folder: the server's, with the enrolment list and its signing key.
    """

    def __init__(self, folder: Path, exchange: Exchange, console: Console) -> None:
        self.enrolled = read_enrolled(folder)
        self._console, self.stages = console, Stages(console)
        self.started = time.perf_counter()
        enrolment = self.enrolled.enrolment
        key = SigningKey(secret(folder, "signing", os.urandom))
        if key.public.hex() != enrolment.server:
            raise ProtocolError(
                "the enrolment list has another key for the server",
                where=str(folder),
                fix="take the list that was signed for this folder",
            )
        self.patience: Patience = read_patience(folder)
        self.agreed = agreed(self.enrolled)
        self.folder = self._open(folder / RUN)
        path = self.folder.path
        self._transcript = Transcript(path / "transcript", durable=True)
        self.minutes = Minutes(path, self.enrolled, key)
        self.post = Post(enrolment, key, exchange, self.patience.deadlines)
        self._rounds = Rounds(Server(key, enrolment), self._transcript, self.post, self._charged)
        self._learning = Learning(self.agreed, self.folder, self.stages)
        self._kept: dict[str, list[KeptHead]] = {}

    def run(self, write_reports: Callable[[Coordinator], None]) -> Path:
        """All rounds, the report, the end of the log; the path of report.html.

        write_reports: called once, before the log is closed; of `deploy.reporting`.
        """
        if not self.minutes.over:
            with self.stages.stage("Meet"):
                self._meet()
            for number in range(self.agreed.config.system.rounds):
                self._round(number)
            with self.stages.stage("Write the report"):
                write_reports(self)
            self.minutes.closed()
        with self.stages.stage("Have the log co-signed"):
            self._end()
        return self.folder.path / "report.html"

    @property
    def transcript(self) -> Transcript:
        """All messages of the protocol that the server sent and received."""
        return self._transcript

    @property
    def learning(self) -> Learning:
        """The central model and what it learned from."""
        return self._learning

    def standings(self, number: int) -> dict[str, Standing]:
        """What the sites said of themselves after a round."""
        folder = self.folder.path / "standings" / f"{number:03d}"
        files = sorted(folder.glob("*.json")) if folder.exists() else []
        return {file.stem: read_standing(file.read_bytes()) for file in files}

    def close(self) -> None:
        """Close every file."""
        self.minutes.close()
        self._transcript.close()

    def __enter__(self) -> Coordinator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, path: Path) -> RunFolder:
        """The run folder of this session, made on the first start."""
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        config, seeds = self.agreed.config, self.agreed.seeds
        if not (path / "run.json").exists():
            stated = {
                "config_sha256": config.identity,
                "nonce": self.enrolled.nonce,
                "root": seeds.root.hex(),
            }
            write(path / "config.toml", self.enrolled.text.encode())
            write(path / "run.json", json.dumps(stated, indent=2).encode())
        return RunFolder.open(path, config, self.enrolled.text, resume=True)

    def _meet(self) -> None:
        """Every party shows that it goes by this list; sites hand out what they keep of others."""
        parts = {party: [self.enrolled.digest.encode()] for party in self.enrolled.parties}
        met: set[str] = set()

        def ask() -> None:
            left_out = Absent()
            waiting = {party: own for party, own in parts.items() if party not in met}
            answers = self.post.ask("meet", (0, 0), waiting, left_out)
            for party, blobs in answers.items():
                met.add(party)
                with left_out.noted(party, ProtocolError):
                    for line in (line for blob in blobs for line in blob.splitlines()):
                        copy = parse_kept(line)
                        self._kept.setdefault(copy.head.site, []).append(copy)
            self._say(left_out)
            if len(met) < len(parts):
                raise AbsentError(
                    f"{', '.join(sorted(set(parts) - met))} did not answer",
                    where="meet",
                    fix="have them start, or look into their refusals.jsonl; then resume",
                )

        self._patiently(ask)

    def _round(self, number: int) -> None:
        """Play a round, or take it from disk; then let every site take it up."""
        name = f"round-{number:03d}"
        if not self.folder.done(name):
            with self.stages.stage("Ask, add and open", f"round {number + 1}"):
                played = self._patiently(lambda: self._attempt(number), number)
            self._file(number, played)
            self._learning.learn(number, self._asked(number), _openings(played), played.absent)
        self._learning.restore(number)
        self.minutes.learned(number, self.folder.intact(name) / "central.safetensors")
        last = number + 1 == self.agreed.config.system.rounds
        clients = len(self.enrolled.enrolment.clients)
        needed = clients if last else max(group.least for group in self.agreed.groups)
        with self.stages.stage("Sites take it up", f"round {number + 1}"):
            self._patiently(lambda: self._teach(number, needed=needed))

    def _asked(self, number: int) -> Rows:
        """The images of a round: none is asked in two rounds."""
        count = self.agreed.config.proxies.per_round
        order = np.random.default_rng(self.agreed.seeds.integer("proxies")).permutation(
            len(self.agreed.federation.natural_records)
        )
        return np.sort(order[number * count : (number + 1) * count]).astype(np.int64)

    def _attempt(self, number: int) -> Played:
        """One attempt; sites that were away are first sent what they missed."""
        for before in range(number):
            self._teach(before, needed=0)
        rows = self._asked(number)
        plan = draft(
            self.enrolled.enrolment,
            self._transcript,
            round_number=number,
            groups=self.agreed.groups,
            layout=self.agreed.layout_id,
            size=self.agreed.layout.size,
            subset=rows,
        )
        self.minutes.planned(number, len(rows), self.agreed.groups)
        copies = {
            site: b"\n".join(_line(copy) for copy in kept) for site, kept in self._kept.items()
        }
        return self._rounds.play(plan, copies, self.minutes.heads())

    def _charged(self, site: str, blob: bytes) -> None:
        """What a site says of its ledger, into the log; ProtocolError for what cannot be."""
        agreed = self.agreed.terms.mechanisms[site].event()
        self.minutes.charged(site, read_charges(blob, agreed))

    def _file(self, number: int, played: Played) -> None:
        """Sums into the log, before anything is learned from them."""
        self.minutes.opened(number, _openings(played), played.absent, self._transcript)
        self._say(played.absent)

    def _teach(self, number: int, *, needed: int) -> None:
        """Every site that has not co-signed this round gets sums, model and checkpoint.

        AbsentError if fewer than `needed` have then.
        """
        clients = self.enrolled.enrolment.clients
        waiting = [name for name in clients if name not in self.minutes.cosigners(number)]
        if not waiting:
            return
        checkpoint, said, proofs = self.minutes.checkpoint(number)
        plan, openings = self._signed(number)
        central = (self.folder.step(f"round-{number:03d}") / "central.safetensors").read_bytes()
        heads = b"\n".join(self.minutes.heads().values())
        left_out = Absent()
        answers = self.post.ask(
            "learn",
            (number, checkpoint.size),
            {
                name: [plan, central, said, proofs, heads, *_of(name, plan, openings)]
                for name in waiting
            },
            left_out,
        )
        self._hear(number, answers, checkpoint, left_out)
        self._say(left_out)
        missing = set(clients) - self.minutes.cosigners(number)
        if len(clients) - len(missing) < needed:
            raise AbsentError(
                f"{', '.join(sorted(missing))} did not take up round {number + 1}",
                where="learn",
                fix="start them again; the session goes on when they are back",
            )

    def _hear(
        self,
        number: int,
        answers: Mapping[str, tuple[bytes, ...]],
        checkpoint: Checkpoint,
        left_out: Absent,
    ) -> None:
        folder = self.folder.path / "standings" / f"{number:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        for name, parts in answers.items():
            with left_out.noted(name, ProtocolError):
                if len(parts) != 3:
                    raise ProtocolError("an answer of another shape", where=name)
                signed, figures, charged = parts
                read_standing(figures)
                self._charged(name, charged)
                write(folder / f"{name}.json", figures)
                self.minutes.cosigned(checkpoint, {name: signed})

    def _signed(self, number: int) -> tuple[bytes, list[bytes]]:
        """The round's last plan, and the sum of each group, as they were signed."""
        *_, (_, plan) = self._transcript.recall(RoundPlan, number)
        found = {m.group: blob for m, blob in self._transcript.recall(Opening, number)}
        return plan, list(found.values())

    def _end(self) -> None:
        """Every client co-signs the whole log."""

        def ask() -> None:
            rounds = self.agreed.config.system.rounds
            checkpoint, said, proofs = self.minutes.checkpoint(rounds - 1)
            clients = self.enrolled.enrolment.clients
            waiting = [name for name in clients if name not in self.minutes.signed_end()]
            left_out = Absent()
            place = (rounds, checkpoint.size)
            answers = self.post.ask(
                "close", place, {name: [said, proofs] for name in waiting}, left_out
            )
            for name, parts in answers.items():
                with left_out.noted(name, ProtocolError):
                    if len(parts) != 1:
                        raise ProtocolError("an answer of another shape", where=name)
                    self.minutes.cosigned(checkpoint, {name: parts[0]})
            self._say(left_out)
            missing = set(clients) - self.minutes.signed_end()
            if missing:
                raise AbsentError(
                    f"{', '.join(sorted(missing))} did not co-sign the end", where="close"
                )

        self._patiently(ask)

    def _patiently(self, act: Callable[[], T], number: int | None = None) -> T:
        """Do it; where parties are missing, again and again until they are back or time is up."""
        until = time.monotonic() + self.patience.total
        while True:
            try:
                return act()
            except ProtocolError as error:
                if number is not None:
                    self.minutes.refused(number, type(error))
                if time.monotonic() + self.patience.pause > until:
                    raise
                self._console.print(f"  waiting: {error}", highlight=False, markup=False)
                time.sleep(self.patience.pause)

    def _say(self, absent: Mapping[str, str]) -> None:
        for party, why in absent.items():
            self._console.print(f"  without {party}: {why}", highlight=False, markup=False)


def _line(copy: KeptHead) -> bytes:
    return canonical(copy.model_dump())


def _of(site: str, plan: bytes, openings: Sequence[bytes]) -> Iterator[bytes]:
    """The sums of a site's own groups."""
    said = outline(plan)
    if isinstance(said, RoundPlan):
        groups = {group.name for group in said.groups_of(site)}
        for blob in openings:
            message = outline(blob)
            if isinstance(message, Opening) and message.group in groups:
                yield blob


def _openings(played: Played) -> list[Opening]:
    found = (outline(blob) for blob in played.openings.values())
    return [opening for opening in found if isinstance(opening, Opening)]

"""A run folder as an auditor reads it: parsed, verified elsewhere, and never written to.

Ledgers and the transcript are opened from copies, because opening them as their owners do may
write: the ledger takes a lock, and a torn transcript gets a note.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from protocols.audit_events import Charged, RoundLearned, RoundOpened, RoundPlanned, SessionOpened
from protocols.audit_log import Log, Record, read_log
from protocols.checkpoints import Keys
from protocols.errors import ConfigError, NatflError, RunFolderError
from protocols.ledger import Ledger
from protocols.policy import Enrolment
from protocols.transcript import Transcript
from secure_natfl.audit.trail import ENROLMENT, LOG
from secure_natfl.config import Config
from secure_natfl.report.model import Report
from secure_natfl.site_state import state_folder
from secure_natfl.toml_config import load


@dataclass(frozen=True)
class RunFiles:
    """What a run left behind, as far as it could be read.

    sites: where the sites' own folders are. stated: run.json. records: what the log says, empty
    where the log is broken.
    """

    path: Path
    sites: Path
    config: Config
    stated: Mapping[str, Any]

    def log(self) -> Log:
        """The log, its chain verified; RunFolderError where it is missing or damaged."""
        return read_log((self.path / LOG).read_bytes(), LOG)

    def enrolment(self) -> Enrolment:
        """Who takes part; ValueError where it is malformed."""
        return Enrolment.model_validate_json((self.path / ENROLMENT).read_bytes())

    def report(self) -> Report:
        """The consortium's report; ValueError where it is malformed."""
        return Report.model_validate_json((self.path / "report.json").read_bytes())

    @contextmanager
    def transcript(self) -> Iterator[Transcript]:
        """The transcript, read from a copy of its index. RunFolderError where it is damaged."""
        own = self.path / "transcript"
        with TemporaryDirectory() as folder:
            copy = Path(folder)
            shutil.copyfile(own / "index.jsonl", copy / "index.jsonl")
            (copy / "messages").symlink_to((own / "messages").resolve(), target_is_directory=True)
            with Transcript(copy) as transcript:
                yield transcript

    @contextmanager
    def ledger(self, site: str, patients: str, relation: str, delta: float) -> Iterator[Ledger]:
        """A copy of a site's ledger. LedgerError where it is damaged or another's."""
        file = self.sites / site / "ledger.db"
        if not file.exists():
            raise RunFolderError("the ledger is missing", where=str(file), fix="restore it")
        with TemporaryDirectory() as folder:
            for part in (file, file.with_name("ledger.db-wal")):
                if part.exists():
                    shutil.copyfile(part, Path(folder) / part.name)
            with Ledger(
                Path(folder) / file.name,
                site,
                patients,
                relation=relation,
                budget_epsilon=None,
                delta=delta,
            ) as ledger:
                yield ledger


@dataclass(frozen=True)
class Story:
    """What a log tells, by kind; `opened` is its first record, None where that is another."""

    records: tuple[Record, ...]

    @property
    def session(self) -> SessionOpened:
        """The first record's body; RunFolderError where it is another."""
        body = self.records[0].body if self.records else None
        if not isinstance(body, SessionOpened):
            raise RunFolderError("the audit log does not begin with a session", where=LOG)
        return body

    @property
    def keys(self) -> Keys:
        """The enrolled keys, as the log's first record has them."""
        session = self.session
        clients = {name: bytes.fromhex(key) for name, key in session.clients.items()}
        return Keys(bytes.fromhex(session.server), clients)

    def planned(self) -> dict[int, RoundPlanned]:
        """Round → its plan; the last, where a round was begun several times."""
        bodies = (record.body for record in self.records)
        return {body.round: body for body in bodies if isinstance(body, RoundPlanned)}

    def opened(self) -> dict[int, RoundOpened]:
        """Round → what was opened; the last, where a round was played several times."""
        bodies = (record.body for record in self.records)
        return {body.round: body for body in bodies if isinstance(body, RoundOpened)}

    def learned(self) -> dict[int, RoundLearned]:
        """Round → the model after it."""
        bodies = (record.body for record in self.records)
        return {body.round: body for body in bodies if isinstance(body, RoundLearned)}

    def charged(self) -> Iterator[tuple[str, Charged]]:
        """(site, charge) in the log's order."""
        for record in self.records:
            if isinstance(record.body, Charged):
                yield record.actor, record.body


def read_run(path: Path) -> RunFiles:
    """Find out whose run a folder holds; ConfigError where it is not a run's folder at all."""
    try:
        stated = json.loads((path / "run.json").read_text(encoding="utf-8"))
        config = load(str(path / "config.toml"), [])
    except (OSError, ValueError, NatflError) as error:
        raise ConfigError(
            "this is no run's folder",
            where=str(path),
            why=str(error),
            fix="name a folder that `natfl run` has written",
        ) from error
    if not isinstance(stated, dict):
        stated = {}
    return RunFiles(path, state_folder(config, path), config, stated)

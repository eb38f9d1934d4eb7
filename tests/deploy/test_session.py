"""A whole session between processes: killed on the way, resumed, and the sums of one process."""

import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from io import StringIO
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from rich.console import Console

from secure_natfl.audit.conduct import audit
from secure_natfl.deploy.demo import SITES, gather, write_kit
from secure_natfl.deploy.loopback import Beside, Sockets
from secure_natfl.deploy.party import Absent, Exchange, Phase
from secure_natfl.deploy.reporting import write_reports
from secure_natfl.deploy.serve import SOCKET, open_party, serve
from secure_natfl.deploy.server import Coordinator
from tests.deploy.again import sums, sums_in_one_process

VICTIM = SITES[1]


class CrashError(Exception):
    """The server's process ends here."""


def _serve(folder: str) -> None:
    path = Path(folder)
    serve(open_party(path), path / SOCKET)


class Processes:
    """The parties of a kit, one process each, forked from an interpreter that has torch loaded."""

    def __init__(self, root: Path) -> None:
        self._root, self._alive = root, dict[str, BaseProcess]()
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload(["secure_natfl.deploy.site"])
        for name in SITES:
            self.start(name)
        for name in SITES:
            self.ready(name)

    @property
    def sockets(self) -> dict[str, Path]:
        return {name: self._root / name / SOCKET for name in SITES}

    def start(self, name: str) -> None:
        self.sockets[name].unlink(missing_ok=True)
        process = self._context.Process(target=_serve, args=(str(self._root / name),), daemon=True)
        process.start()
        self._alive[name] = process

    def ready(self, name: str) -> None:
        until = time.monotonic() + 60
        while not self.sockets[name].exists():
            assert time.monotonic() < until
            time.sleep(0.02)

    def kill(self, name: str) -> None:
        process = self._alive.pop(name)
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.join()

    def end(self) -> None:
        for name in list(self._alive):
            self.kill(name)


class Unlucky(Sockets):
    """Before the first question of a phase a site is killed; after another the server is."""

    def __init__(self, parties: Processes) -> None:
        super().__init__(parties.sockets)
        self._parties, self.happened = parties, set[str]()

    def ask(
        self, questions: Mapping[str, bytes], phase: Phase, deadline: float
    ) -> Mapping[str, bytes | Absent]:
        if phase == "contribute" and self._first("site"):
            self._parties.kill(VICTIM)
            self._parties.start(VICTIM)
            self._parties.ready(VICTIM)
        answers = super().ask(questions, phase, deadline)
        if phase == "learn" and self._first("answers to the model are lost"):
            raise CrashError
        if phase == "open" and "resumed" in self.happened and self._first("key shares are lost"):
            raise CrashError
        return answers

    def _first(self, what: str) -> bool:
        new = what not in self.happened
        self.happened.add(what)
        return new


def _server(root: Path, exchange: Exchange) -> Coordinator:
    return Coordinator(root / "server", exchange, Console(file=StringIO()))


@pytest.fixture(scope="module")
def played(kit: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The session of the kit, with a site and twice the server killed on the way."""
    root = tmp_path_factory.mktemp("s") / "k"
    shutil.copytree(kit, root)
    parties = Processes(root)
    exchange = Unlucky(parties)
    try:
        for _ in range(2):
            with pytest.raises(CrashError), _server(root, exchange) as server:
                server.run(write_reports)
            exchange.happened.add("resumed")
        with _server(root, exchange) as server:
            server.run(write_reports)
            assert len(exchange.happened) == 4
        yield root
    finally:
        parties.end()


def test_the_session_ends_with_a_report_log_and_ledgers_that_verify(played: Path):
    gather(played)
    found = audit(played / "server" / "run").findings
    assert not found.broken, found.broken
    assert len(found.found) > 20


def test_no_round_is_charged_twice_and_no_site_was_left_out_of_a_sum(played: Path):
    from protocols.audit_events import Charged, RoundOpened
    from protocols.audit_log import read_log

    log = played / "server" / "run" / "audit.jsonl"
    records = list(read_log(log.read_bytes()).records())
    charged = [(r.actor, r.body.round) for r in records if isinstance(r.body, Charged)]
    assert sorted(charged) == sorted((name, number) for name in SITES for number in (0, 1))
    sums = [one for r in records if isinstance(r.body, RoundOpened) for one in r.body.sums]
    assert [one.participants for one in sums] == [SITES, SITES]
    # The killed site's live key died with it; the two others opened the sum.
    opened = [r.body for r in records if isinstance(r.body, RoundOpened)]
    assert opened[0].absent == (f"{VICTIM}.holder",)


def test_one_process_opens_the_same_sums_from_the_same_stored_integers(played, tmp_path):
    found = sums_in_one_process(played, tmp_path)
    assert len(found) == 2
    assert found == sums(played)


@pytest.mark.nightly
def test_independent_holders_open_in_the_sites_place(tmp_path: Path):
    bodies = ("notary-1", "notary-2", "notary-3")
    write_kit(tmp_path / "k", rounds=1, images=60, holders=bodies)
    folders = {name: tmp_path / "k" / name for name in (*SITES, *bodies)}
    parties = {name: open_party(folder) for name, folder in folders.items()}
    try:
        with _server(tmp_path / "k", Beside(parties)) as server:
            server.run(write_reports)
            assert server.enrolled.independent == bodies
    finally:
        for party in parties.values():
            party.close()
    gather(tmp_path / "k")
    assert not audit(tmp_path / "k" / "server" / "run").findings.broken

"""When a folder is ill: nothing in it, nobody at work in it, or silence beyond every deadline."""

import io
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from protocols.audit_events import Charged, RoundPlanned, SessionClosed
from protocols.audit_log import AuditLog
from secure_natfl.cli import app
from secure_natfl.deploy import processes
from secure_natfl.deploy.demo import SITES, write_kit
from secure_natfl.deploy.enrolled import read_enrolled
from secure_natfl.deploy.server_file import Patience
from secure_natfl.observe.metrics import ailments, metrics
from secure_natfl.observe.state import QUIET_S, look
from secure_natfl.observe.view import watch

NOTHING = "there is no audit log and no journal: nothing has begun here"
Start = Callable[[Path, str], int]


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kit") / "k"
    write_kit(root, rounds=2, images=60)
    return root


@pytest.fixture
def start() -> Iterator[Start]:
    """A process of a party's folder, written down as the launcher does."""
    begun: list[int] = []

    def act(folder: Path, name: str) -> int:
        pid = os.posix_spawn("/bin/sleep", ["sleep", "600"], os.environ, setsid=True)
        begun.append(pid)
        processes.record(folder, name, pid)
        return pid

    yield act
    for pid in begun:
        _kill(pid)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def _log(run: Path) -> None:
    """A log of a round that was planned just now."""
    run.mkdir(exist_ok=True)
    with AuditLog(run / "audit.jsonl") as log:
        log.append("server", RoundPlanned(round=0, proxies=1, groups=()))


def test_a_folder_of_nothing_is_ill(tmp_path: Path, kit: Path) -> None:
    done = CliRunner().invoke(app, ["watch", str(tmp_path), "--health"])
    assert (done.exit_code, json.loads(done.output)["why"]) == (1, [NOTHING])
    assert ailments(look(kit / "server")) == [NOTHING, "not running: superlink, coordinator"]
    assert ailments(look(kit / SITES[0])) == [NOTHING, "not running: party, supernode"]


def test_a_server_is_well_while_its_processes_live(kit: Path, start: Start) -> None:
    folder = kit / "server"
    _log(folder / "run")
    start(folder, "superlink")
    pid = start(folder, "coordinator")
    assert ailments(look(folder)) == []
    _kill(pid)
    assert ailments(look(folder)) == ["not running: coordinator"]
    with AuditLog(folder / "run" / "audit.jsonl") as log:
        log.append("server", SessionClosed(files={}))
    assert ailments(look(folder)) == []


def test_a_site_is_shown_from_its_journal(kit: Path, start: Start) -> None:
    folder = kit / SITES[1]
    journal = folder / "journal" / read_enrolled(folder).session
    journal.mkdir(parents=True)
    for name in ("0-0-meet", "1-2-plan", "0-1-learn"):
        (journal / name).write_bytes(b"")
    start(folder, "party")
    pid = start(folder, "supernode")
    seen = look(folder)
    assert ailments(seen) == []
    assert 'natfl_answered_round{phase="plan"} 2' in metrics(seen)
    out = io.StringIO()
    watch(folder, Console(file=out, width=100), once=True)
    assert f"{SITES[1]}, running" in out.getvalue()
    assert "learn" in out.getvalue()
    _kill(pid)
    assert ailments(look(folder)) == ["not running: supernode"]
    (journal / "2-9-close").write_bytes(b"")
    assert ailments(look(folder)) == []


def test_a_round_within_its_deadlines_is_well_and_silence_beyond_them_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _log(tmp_path)
    due, now = sum(Patience().deadlines.values()), time.time()
    assert due > Patience().contribute >= 3600
    monkeypatch.setattr(time, "time", lambda: now + due)
    assert ailments(look(tmp_path)) == []
    monkeypatch.setattr(time, "time", lambda: now + due + QUIET_S + 60)
    assert ailments(look(tmp_path)) == [f"no record for {(due + QUIET_S + 60) / 60:.0f} minutes"]
    (tmp_path / "server.toml").write_text("contribute = 36000.0\n")
    assert ailments(look(tmp_path)) == []


def test_a_log_with_a_cost_that_is_none_is_a_fault_and_no_traceback(tmp_path: Path) -> None:
    with AuditLog(tmp_path / "audit.jsonl") as log:
        zeros = {"head": "0" * 64, "signature": "0" * 128}
        log.append("a", Charged(round=0, cost="{x}", patients="p", seq=1, **zeros))
    assert ailments(look(tmp_path)) == ["the folder cannot be read (JSONDecodeError)"]
    done = CliRunner().invoke(app, ["watch", str(tmp_path), "--once"])
    assert done.exit_code == 0

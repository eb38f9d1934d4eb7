"""Metrics, health, logs and the view of a federation that was really played."""

import io
import json
import logging
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from rich.console import Console

from protocols.accounting import compose
from protocols.audit_events import Charged, Refused, RoundPlanned, SessionClosed
from protocols.audit_log import AuditLog
from protocols.chain import canonical
from protocols.errors import ConfigError, RunFolderError
from protocols.ledger_heads import sign_head
from secure_natfl.deploy.loopback import ask_socket
from secure_natfl.observe.logs import JsonFormatter, follow
from secure_natfl.observe.metrics import ailments, metrics
from secure_natfl.observe.serve import endpoint
from secure_natfl.observe.state import look
from secure_natfl.observe.view import watch
from tests.faults.federation import Ended, Federation
from tests.faults.network import Schedule
from tests.observe.failing import CANARY, error_paths


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> Federation:
    """Two rounds, one client missing in the second; a third is planned and broken off."""
    made = Federation(tmp_path_factory.mktemp("observed"))
    assert made.attempt(0) is Ended.WELL
    assert made.attempt(1, Schedule(cut=("d",))) is Ended.WELL
    assert made.attempt(2, Schedule(drop=1.0)) is Ended.REFUSED
    with AuditLog(made.folder / "audit.jsonl") as log:
        for number in range(3):
            log.append("server", RoundPlanned(round=number, proxies=10, groups=()))
        for name in made.names:
            with made.ledger(name) as ledger:
                head = sign_head(ledger, made.keys[name])
                for line in ledger.lines():
                    log.append(
                        name,
                        Charged(
                            round=line["round"],
                            cost=canonical(line["event"]).decode(),
                            patients=head.patients,
                            seq=head.seq,
                            head=head.hash,
                            signature=head.signature,
                        ),
                    )
        log.append("server", Refused(round=2, error="ProtocolError"))
    return made


def parsed(text: str) -> dict[str, float]:
    """Samples of the exposition format, by name and labels; every line must be one or a comment."""
    found = {}
    for line in text.splitlines():
        if not line.startswith(("# HELP natfl_", "# TYPE natfl_")):
            name, value = line.rsplit(" ", 1)
            assert name not in found
            found[name] = float(value)
    return found


def test_the_figures_are_those_of_the_ledgers_and_the_transcript(played) -> None:
    found = parsed(metrics(look(played.folder)))
    assert found["natfl_up"] == 1
    assert found['natfl_rounds{stage="planned"}'] == 3
    assert found['natfl_rounds{stage="opened"}'] == 2
    assert found['natfl_absences_total{party="d"}'] == 1
    assert found["natfl_broken_attempts_total"] == 1
    for name, rounds in {"a": 2, "d": 1}.items():
        event = played.plan.mechanisms[name].event()
        expected = compose([event] * rounds, 1e-5).epsilon
        assert found[f'natfl_epsilon{{site="{name}"}}'] == pytest.approx(expected)
    assert found['natfl_messages_total{kind="contribution"}'] == 7
    assert found["natfl_closed"] == 0


def test_a_folder_is_well_until_its_log_is_changed(played, tmp_path) -> None:
    assert ailments(look(played.folder)) == []
    run = tmp_path / "run"
    run.mkdir()
    data = (played.folder / "audit.jsonl").read_bytes()
    (run / "audit.jsonl").write_bytes(data.replace(b'"round":1', b'"round":7', 1))
    # A deployed server's folder has its run in `run`.
    seen = look(tmp_path)
    assert ailments(seen) == ["the folder cannot be read (RunFolderError)"]
    assert parsed(metrics(seen))["natfl_up"] == 0
    with pytest.raises(RunFolderError, match="no such folder"):
        look(tmp_path / "nowhere")


@pytest.fixture
def served(played):
    with endpoint(played.folder, 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own server
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_metrics_and_health_are_served_on_this_machine(served, played) -> None:
    status, text = get(f"{served}/metrics")
    assert status == 200
    assert parsed(text).keys() == parsed(metrics(look(played.folder))).keys()
    assert get(f"{served}/health") == (200, '{"healthy": true, "why": []}\n')
    assert get(f"{served}/../../etc/passwd")[0] == 404


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "hospital.example", ""])  # noqa: S104
def test_no_other_machine_is_served(played, host) -> None:
    with pytest.raises(ConfigError, match="this machine alone"):
        endpoint(played.folder, 0, host)


def test_the_log_is_one_object_a_line_of_known_fields(played) -> None:
    lines = [json.loads(line) for line in follow(played.folder, once=True)]
    assert [line["seq"] for line in lines] == list(range(len(lines)))
    opened = [line for line in lines if line["event"] == "round-opened"]
    assert [line["participants"] for line in opened] == [4, 3]
    assert {"cost", "signature", "head", "patients"}.isdisjoint(key for one in lines for key in one)


def test_five_hundred_error_paths_leave_no_canary_in_the_log() -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonFormatter())
    logger = logging.Logger("federation")
    logger.addHandler(handler)
    for number, error in enumerate(error_paths()):
        try:
            raise error
        except Exception as caught:
            extra = {"round": number, "party": CANARY, "patient": CANARY, "bytes": CANARY}
            logger.exception("attempt-failed %s", CANARY, extra=extra)
            logger.exception(str(caught), extra={"path": CANARY, "seconds": 0.5})
            logger.exception("attempt-failed", extra={"round": number, "phase": "open"})
    lines = out.getvalue().splitlines()
    assert len(lines) == 1500
    assert CANARY not in out.getvalue()
    last = json.loads(lines[-1])
    assert (last["event"], last["round"], last["error"]) == ("attempt-failed", 499, "KeyError")
    assert {json.loads(line)["event"] for line in lines} == {"attempt-failed", "unnamed"}


def test_five_hundred_error_paths_leave_no_canary_in_a_partys_own_log(tmp_path) -> None:
    """The process that answers at a site, on a socket; each of its answers ends in an error."""
    path, log = tmp_path / "party.sock", tmp_path / "party.log"
    command = [sys.executable, "-m", "tests.observe.failing", str(path)]
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as party:
        try:
            until = time.monotonic() + 60
            while not path.exists():
                assert time.monotonic() < until
                time.sleep(0.05)
            for _ in error_paths():
                with pytest.raises(ConnectionResetError):
                    ask_socket(path, "plan", CANARY.encode(), 10)
        finally:
            party.kill()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert CANARY not in log.read_text()
    failed = [line for line in lines if line["event"] == "question-failed"]
    assert len(failed) == 500
    assert {line["phase"] for line in failed} == {"plan"}
    assert {line["error"] for line in failed} >= {"NatflError", "ValueError", "KeyError"}
    # What other libraries log and warn of comes without its text, too.
    assert len([line for line in lines if line["event"] == "unnamed"]) == 1000


def test_what_is_private_on_disk_is_in_no_view(played, tmp_path) -> None:
    """Refusals, secrets and ledgers lie in the same folder: none of it is shown."""
    (played.folder / "refusals.log").write_text(f"{CANARY}\n")
    (played.folder / "sites" / "a" / "identity.key").write_text(CANARY)
    out = io.StringIO()
    watch(played.folder, Console(file=out, width=100), once=True)
    text = out.getvalue() + metrics(look(played.folder))
    text += "".join(follow(played.folder, once=True))
    assert CANARY not in text
    assert "patients" not in text
    assert all(key.private_bytes().hex() not in text for key in played.keys.values())


def test_the_view_ends_when_the_session_is_closed(played, tmp_path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    path = Path(folder / "audit.jsonl")
    path.write_bytes((played.folder / "audit.jsonl").read_bytes())
    with AuditLog(path) as log:
        log.append("server", SessionClosed(files={}))
    out = io.StringIO()
    watch(folder, Console(file=out, width=100), every=0.01)
    assert "closed: 0 rounds learned, 1 attempts broken off" in out.getvalue()
    assert "rounds missed" in out.getvalue()

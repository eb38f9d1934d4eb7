"""Over Flower itself, on loopback: TLS, registered machines, the same session; takes minutes."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="needs the extra flower")

from secure_natfl.audit.conduct import audit
from secure_natfl.deploy import launch, processes
from secure_natfl.deploy.demo import SITES, gather
from secure_natfl.deploy.kit import CA, own_keys

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1200)]
PORT = 18443


@pytest.fixture(scope="module")
def link(kit: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A kit whose SuperLink runs with TLS, the list's machines registered."""
    root = tmp_path_factory.mktemp("f") / "k"
    shutil.copytree(kit, root)
    try:
        launch.start_link(root / "server", "127.0.0.1", PORT)
        launch.register(root / "server", "127.0.0.1", PORT)
        yield root
    finally:
        for name in (*SITES, "server"):
            processes.stop(root / name)


def _log_of_node(folder: Path, seconds: float, until: str) -> str:
    """What a SuperNode says in so many seconds, or until it says `until`."""
    launch.start_node(folder, f"127.0.0.1:{PORT}", PORT + 50)
    log, end = folder / "supernode.log", time.monotonic() + seconds
    try:
        while time.monotonic() < end and until not in log.read_text(errors="replace"):
            time.sleep(0.5)
        return log.read_text(errors="replace")
    finally:
        processes.stop(folder)


def test_a_machine_that_is_not_registered_is_refused(link: Path, tmp_path: Path):
    folder = tmp_path / "stranger"
    own_keys(folder)
    shutil.copyfile(link / "server" / CA, folder / CA)
    said = _log_of_node(folder, 90, "Failed to activate")
    assert "Failed to activate" in said
    assert "SuperNode ID" not in said


def test_a_server_under_another_authority_is_refused(link: Path, tmp_path: Path):
    from secure_natfl.deploy.kit import _certificates

    folder = tmp_path / SITES[0]
    shutil.copytree(link / SITES[0], folder)
    _certificates(tmp_path / "foreign", tmp_path / "other", ["localhost"])
    shutil.copyfile(tmp_path / "foreign" / CA, folder / CA)
    said = _log_of_node(folder, 30, "SuperNode ID")
    assert "SuperNode ID" not in said


def test_a_session_over_flower_ends_with_a_report_log_and_ledgers_that_verify(link: Path):
    command = [sys.executable, "-m", "secure_natfl", "deploy", "client"]
    clients = [
        subprocess.Popen(
            [
                *(*command, str(link / name)),
                *("--server", f"localhost:{PORT}", "--port", str(PORT + 1 + at)),
            ],
            env=os.environ,
        )
        for at, name in enumerate(SITES)
    ]
    assert [client.wait(timeout=300) for client in clients] == [0, 0, 0]
    server = link / "server"
    launch.submit(server)
    outcome, end = server / launch.OUTCOME, time.monotonic() + 900
    while not outcome.exists() and time.monotonic() < end:
        time.sleep(1)
    assert outcome.read_text().startswith("report ")
    for name in SITES:
        processes.stop(link / name)
    gather(link)
    assert not audit(server / "run").findings.broken

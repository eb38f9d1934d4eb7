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
from tests.deploy.again import sums, sums_in_one_process

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


def test_a_session_over_flower_verifies_and_has_the_sums_of_one_process(link: Path, tmp_path: Path):
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
    found = sums_in_one_process(link, tmp_path)
    assert len(found) == 2
    assert found == sums(link)

"""What keeps a party's processes running, and where they may listen."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from protocols.errors import ConfigError
from secure_natfl.deploy.launch import check_free

SAY = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(60)"


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture
def kept():
    keeping = [sys.executable, "-m", "secure_natfl.deploy.keep", sys.executable, "-c", SAY]
    with subprocess.Popen(keeping, stdout=subprocess.PIPE, text=True) as keeper:
        yield keeper
        keeper.kill()


def test_what_was_killed_is_started_again(kept):
    first = int(kept.stdout.readline())
    os.kill(first, signal.SIGKILL)
    second = int(kept.stdout.readline())
    assert second != first
    assert alive(second)
    assert not alive(first)


def test_what_is_kept_dies_with_its_keeper(kept):
    child = int(kept.stdout.readline())
    os.kill(kept.pid, signal.SIGKILL)
    until(lambda: not alive(child))


def test_a_port_that_somebody_has_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of this machine is taken"):
            check_free(port)
    check_free(port)

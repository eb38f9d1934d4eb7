"""How Flower is started, and what is waited for; its programs are stood in for by scripts."""

import json
import socket
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from protocols.errors import ConfigError, RunFolderError
from secure_natfl.deploy import command, launch, processes
from secure_natfl.deploy.admission import await_admission
from secure_natfl.deploy.demo import SITES
from secure_natfl.deploy.kit import CA, NODE_KEY, TLS, TLS_KEY

NAME = SITES[0]
TELL = """
    import json, os, pathlib, sys
    told = {"argv": sys.argv[1:], "env": dict(os.environ)}
    pathlib.Path(sys.argv[0] + ".json").write_text(json.dumps(told))
"""
LISTEN = """
    import socket, time
    at = sys.argv.index("--port")
    server = socket.create_server(("127.0.0.1", int(sys.argv[at + 1])))
    time.sleep(600)
"""
Tool = Callable[[str, str], Path]


@pytest.fixture
def tool(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tool]:
    """Puts a script in the place of one of Flower's programs; what was started is ended."""

    def place(name: str, script: str) -> Path:
        path = tmp_path / name
        path.write_text(f"#!{sys.executable}\n{textwrap.dedent(TELL)}{textwrap.dedent(script)}")
        path.chmod(0o700)
        return path

    monkeypatch.setattr(launch, "_tool", lambda name: str(tmp_path / name))
    yield place
    for folder in (fresh / NAME, fresh / "server"):
        processes.stop(folder)


def _free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def _told(path: Path) -> tuple[list[str], dict[str, str]]:
    told = path.with_name(f"{path.name}.json")
    until = time.monotonic() + 60
    while not (told.exists() and told.stat().st_size):
        assert time.monotonic() < until
        time.sleep(0.05)
    said = json.loads(told.read_text())
    return said["argv"], said["env"]


def _demand_quiet(env: dict[str, str], folder: Path) -> None:
    assert env["FLWR_TELEMETRY_ENABLED"] == "0"
    assert env["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert Path(env["FLWR_HOME"]).is_relative_to(folder)


def test_the_server_has_tls_admits_by_key_and_tells_nobody(fresh: Path, tool: Tool):
    folder, port = fresh / "server", _free()
    path = tool("flower-superlink", LISTEN)
    launch.start_link(folder, "127.0.0.1", port)
    argv, env = _told(path)
    assert {"--enable-supernode-auth", "--disable-runtime-dependency-installation"} <= set(argv)
    assert "--insecure" not in argv
    for option, file in (
        ("--ssl-ca-certfile", CA),
        ("--ssl-certfile", TLS),
        ("--ssl-keyfile", TLS_KEY),
    ):
        assert argv[argv.index(option) + 1] == str(folder / file)
    _demand_quiet(env, folder)


def test_a_machine_has_the_consortiums_authority_its_own_key_and_tells_nobody(
    fresh: Path, tool: Tool
):
    folder = fresh / NAME
    path = tool("flower-supernode", "import time; time.sleep(600)")
    launch.start_node(folder, "fl.example.org:8443", _free())
    argv, env = _told(path)
    assert "--insecure" not in argv
    assert argv[argv.index("--root-certificates") + 1] == str(folder / CA)
    assert argv[argv.index("--auth-supernode-private-key") + 1] == str(folder / NODE_KEY)
    assert argv[argv.index("--superlink") + 1] == "fl.example.org:8443"
    _demand_quiet(env, folder)


def test_a_server_does_not_start_beside_another_on_its_port(fresh: Path, tool: Tool):
    tool("flower-superlink", LISTEN)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0"):  # noqa: S104 - nothing is started
            with pytest.raises(ConfigError, match=f"port {port} of this machine is taken"):
                launch.start_link(fresh / "server", host, port)
    with pytest.raises(ConfigError, match="cannot be opened"):
        launch.start_link(fresh / "server", "192.0.2.1", port)
    assert processes.recorded(fresh / "server") == {}


def _start(fresh: Path, tool: Tool, says: str) -> Path:
    tool("flower-supernode", f"import time; print({says!r}, flush=True); time.sleep(600)")
    launch.start_node(fresh / NAME, "fl.example.org:8443", _free())
    return fresh / NAME


def test_a_party_takes_part_once_the_server_has_admitted_it(fresh: Path, tool: Tool):
    folder = _start(fresh, tool, "\x1b[92mINFO\x1b[0m: SuperNode ID: 7")
    await_admission(folder, 0, 60)
    # What an earlier start was told counts for nothing.
    size = (folder / "supernode.log").stat().st_size
    with pytest.raises(RunFolderError, match="has not admitted this machine"):
        await_admission(folder, size, 0.3)


def test_a_party_that_was_turned_away_is_told_at_once(fresh: Path, tool: Tool):
    folder = _start(fresh, tool, "Exit Code: 305\nFailed to initialize.\nNot registered.\nbye")
    with pytest.raises(RunFolderError, match=r"Failed to initialize\. Not registered\.") as caught:
        await_admission(folder, 0, 60)
    assert "node.pub" in str(caught.value)
    assert "supernode" in processes.running(folder)


def test_a_party_whose_server_is_away_is_told_so_in_time(fresh: Path, tool: Tool):
    folder = _start(fresh, tool, "Connection attempt failed, retrying in 2 seconds")
    with pytest.raises(RunFolderError, match="goes on trying"):
        await_admission(folder, 0, 5)
    processes.stop(folder)
    with pytest.raises(RunFolderError, match="give the same command again"):
        await_admission(folder, 0, 60)


def test_a_server_whose_coordinator_never_starts_does_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(command, "_BEGIN", 0.2)
    monkeypatch.setattr(command, "_LOOK", 0.05)
    said = command._awaited(tmp_path / "outcome", lambda: True, lambda: False)
    assert said.startswith("error no coordinator started")
    (tmp_path / "outcome").write_text("report x\n")
    assert command._awaited(tmp_path / "outcome", lambda: True, lambda: True) == "report x"

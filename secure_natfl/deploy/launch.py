"""Start and stop what a party runs: the party's own process, and Flower's beside it.

Flower gets a home of its own in the party's folder, reports to nobody, looks for no updates and
installs nothing at run time. What was started is written down (`processes`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import tomli_w

from protocols.errors import ConfigError, RunFolderError
from secure_natfl import __version__
from secure_natfl.deploy.enrolled import read_enrolled
from secure_natfl.deploy.kit import CA, NODE_KEY, TLS, TLS_KEY
from secure_natfl.deploy.processes import record, started
from secure_natfl.deploy.serve import SOCKET
from secure_natfl.run_folder import write

FLOWER: Final = "flower"
COORDINATOR: Final = "coordinator"
LOG: Final = "coordinator.log"
OUTCOME: Final = "outcome.txt"
RELAY: Final = Path(__file__).parent / "relay"
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_PATIENCE: Final = 120.0


def start_party(folder: Path, module: str = "secure_natfl.deploy.serve") -> int:
    """The party's own process, once it is ready; its number. RunFolderError if it fails."""
    command = [sys.executable, "-m", module, str(folder)]
    (folder / SOCKET).unlink(missing_ok=True)
    pid = _start(folder, "party", command, kept=True)
    _until(lambda: _listens(folder / SOCKET), pid, folder / "party.log")
    return pid


def start_node(folder: Path, server: str, port: int, *, insecure: bool = False) -> int:
    """Flower's SuperNode for a party's folder; its number. `server` is host:port."""
    check_insecure(address(server)[0], insecure=insecure)
    check_free(port)
    config = f'party="{folder.name}" socket="{folder / SOCKET}"'
    transport = ["--insecure"] if insecure else ["--root-certificates", str(folder / CA)]
    command = [
        _tool("flower-supernode"),
        *transport,
        *("--superlink", server),
        *("--auth-supernode-private-key", str(folder / NODE_KEY)),
        *("--node-config", config),
        *("--port", str(port)),
    ]
    return _start(folder, "supernode", command, kept=True)


def start_link(folder: Path, host: str, port: int, *, insecure: bool = False) -> int:
    """Flower's SuperLink for the server's folder: TLS, and registered machines only."""
    check_insecure(host, insecure=insecure)
    check_free(port, host)
    home = folder / FLOWER
    home.mkdir(exist_ok=True, mode=0o700)
    transport = (
        ["--insecure"]
        if insecure
        else [
            *("--ssl-ca-certfile", str(folder / CA)),
            *("--ssl-certfile", str(folder / TLS)),
            *("--ssl-keyfile", str(folder / TLS_KEY)),
        ]
    )
    command = [
        _tool("flower-superlink"),
        *transport,
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        *("--host", host),
        *("--port", str(port)),
        *("--database", str(home / "state.db")),
    ]
    pid = _start(folder, "superlink", command)
    _until(lambda: _answers(host, port), pid, folder / "superlink.log")
    return pid


def register(folder: Path, host: str, port: int, *, insecure: bool = False) -> None:
    """Admit the machines of the enrolment list, and no others; again is no fault."""
    _write_connection(folder, host, port, insecure=insecure)
    for party, key in read_enrolled(folder).nodes.items():
        file = folder / FLOWER / f"{party}.pub"
        write(file, f"{key}\n".encode())
        done = _flwr(folder, "supernode", "register", str(file), "natfl", "--name", party)
        if done.returncode and "already" not in done.stdout + done.stderr:
            raise RunFolderError(
                f"the machine of {party} could not be registered",
                where=str(folder),
                why=_last_line(done.stdout + done.stderr),
                fix="look into superlink.log",
            )


def submit(folder: Path, source: Path = RELAY) -> None:
    """Bundle an app, the `client.py` and `server.py` of `source`, and start it on the SuperLink."""
    app = folder / FLOWER / "app"
    package = app / "natfl_relay"
    package.mkdir(parents=True, exist_ok=True)
    for file in source.glob("*.py"):
        write(package / file.name, file.read_bytes())
    stated = {
        "build-system": {"requires": ["hatchling"], "build-backend": "hatchling.build"},
        "project": {
            "name": "natfl-relay",
            "version": __version__,
            "description": "Carries letters between a coordinator and parties",
            "license": "Apache-2.0",
            "dependencies": [],
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "natfl",
                    "components": {
                        "serverapp": "natfl_relay.server:app",
                        "clientapp": "natfl_relay.client:app",
                    },
                    "config": {"folder": str(folder)},
                }
            }
        },
    }
    write(app / "pyproject.toml", tomli_w.dumps(stated).encode())
    done = _flwr(folder, "run", str(app), "natfl")
    if done.returncode:
        raise RunFolderError(
            "the session could not be started on the SuperLink",
            where=str(folder),
            why=_last_line(done.stdout + done.stderr),
            fix="look into superlink.log",
        )


def flower_environment(folder: Path) -> dict[str, str]:
    """What Flower's processes see: a home in the folder, no telemetry, no look for updates."""
    return {
        **os.environ,
        "FLWR_HOME": str(folder / FLOWER),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        # Between a message's arrival and the start of its process; Flower's own is a second.
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",
        # Flower starts its own helpers by name.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def _start(folder: Path, name: str, command: Sequence[str], *, kept: bool = False) -> int:
    """Start a command as the leader of a session of its own; `kept`: again whenever it dies.

    It outlives this process, so there is nothing here that waits for it.
    """
    (folder / FLOWER).mkdir(exist_ok=True, mode=0o700)
    keeping = [sys.executable, "-m", "secure_natfl.deploy.keep"] if kept else []
    log, flags = folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND
    whole = [*keeping, *command]
    pid = os.posix_spawn(
        whole[0],
        whole,
        flower_environment(folder),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    record(folder, name, pid)
    return pid


def _flwr(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(  # noqa: S603 - Flower's own command beside our interpreter
            [_tool("flwr"), *arguments],
            env=flower_environment(folder),
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE,
        )
    except subprocess.TimeoutExpired as error:
        raise RunFolderError(
            "the SuperLink did not answer in time",
            where=str(folder),
            why=f"{_PATIENCE:.0f} s went by",
            fix="look into superlink.log, then start it again",
        ) from error


def _write_connection(folder: Path, host: str, port: int, *, insecure: bool) -> None:
    address = {"address": f"{_own(host)}:{port}"}
    how: dict[str, object] = (
        {"insecure": True} if insecure else {"root-certificates": str(folder / CA)}
    )
    table = {"superlink": {"default": "natfl", "natfl": address | how}}
    write(folder / FLOWER / "config.toml", tomli_w.dumps(table).encode())


def _tool(name: str) -> str:
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise ConfigError(
            f"{name} is not installed here",
            where=str(path.parent),
            fix="in a clone of the repository: pip install '.[flower]' into this environment",
        )
    return str(path)


def address(server: str) -> tuple[str, int]:
    """Host and port of host:port; ConfigError for anything else."""
    host, _, port = server.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ConfigError(
            f"{server!r} is no address of a server",
            where="--server",
            fix="give host:port, as fl.example.org:8443",
        )
    return host, int(port)


def check_insecure(host: str, *, insecure: bool) -> None:
    """ConfigError for a connection without TLS to, or on, any address but this machine's own."""
    if insecure and host not in _LOOPBACK:
        raise ConfigError(
            "a connection without TLS off this machine is never opened",
            where=f"--insecure, {host}",
            fix="leave --insecure out; `natfl deploy keys` made the certificates",
        )


def _until(ready: Callable[[], bool], pid: int, log: Path) -> None:
    until = time.monotonic() + _PATIENCE
    while not ready():
        if not started(pid) or time.monotonic() > until:
            last = _last_line(log.read_text(encoding="utf-8", errors="replace"))
            raise RunFolderError(
                "it did not start",
                where=str(log),
                why=last or "nothing was said in time",
                fix="look into the log; on a busy machine give the same command again",
            )
        time.sleep(0.1)


def check_free(port: int, host: str = "127.0.0.1") -> None:
    """ConfigError where nobody can listen on the port: mostly another program does already."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            raise ConfigError(
                f"port {port} of this machine {'is taken' if taken else 'cannot be opened'}",
                where=host,
                why="another party's Flower, or another program, listens there"
                if taken
                else error.strerror or str(error),
                fix="give a free one with --port, and with --host an address of this machine",
            ) from error


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _own(host: str) -> str:
    """Where this machine itself reaches an address that it listens on."""
    return "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104 - compared, not bound


def _answers(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((_own(host), port), timeout=1):
        return True
    return False


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""

"""Start and stop what a party runs: the party's own process, and Flower's beside it.

Flower gets a home of its own in the party's folder, reports to nobody, looks for no updates and
installs nothing at run time. What was started is written down with its process number and start
time; `stop` ends that and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
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
from secure_natfl.deploy.serve import SOCKET
from secure_natfl.run_folder import write

PROCESSES: Final = "processes.json"
FLOWER: Final = "flower"
COORDINATOR: Final = "coordinator"
LOG: Final = "coordinator.log"
OUTCOME: Final = "outcome.txt"
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_PATIENCE: Final = 60.0


def start_party(folder: Path) -> int:
    """The party's own process, once it is ready; its number. RunFolderError if it fails."""
    command = [sys.executable, "-m", "secure_natfl.deploy.serve", str(folder)]
    (folder / SOCKET).unlink(missing_ok=True)
    process = _start(folder, "party", command, kept=True)
    _until(lambda: _listens(folder / SOCKET), process, folder / "party.log")
    return process.pid


def start_node(folder: Path, server: str, port: int, *, insecure: bool = False) -> int:
    """Flower's SuperNode for a party's folder; its number. `server` is host:port."""
    check_insecure(server.rpartition(":")[0], insecure=insecure)
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
    return _start(folder, "supernode", command, kept=True).pid


def start_link(folder: Path, host: str, port: int, *, insecure: bool = False) -> int:
    """Flower's SuperLink for the server's folder: TLS, and registered machines only."""
    check_insecure(host, insecure=insecure)
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
    process = _start(folder, "superlink", command)
    _until(lambda: _answers(host, port), process, folder / "superlink.log")
    return process.pid


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


def submit(folder: Path) -> None:
    """Bundle the app and start it on the SuperLink."""
    app = folder / FLOWER / "app"
    package = app / "natfl_relay"
    package.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).parent / "relay"
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


def record(folder: Path, name: str, pid: int) -> None:
    """Write a started process down."""
    found = recorded(folder)
    found[name] = (pid, _started(pid))
    write(folder / PROCESSES, json.dumps(found).encode())


def forget(folder: Path) -> None:
    """Nothing runs here any more: what ran before is of no interest."""
    (folder / PROCESSES).unlink(missing_ok=True)


def recorded(folder: Path) -> dict[str, tuple[int, str]]:
    """Name → number and start time of what was started here and may still run."""
    try:
        stated = json.loads((folder / PROCESSES).read_bytes())
        return {name: (int(pid), str(since)) for name, (pid, since) in stated.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RunFolderError(
            "the list of processes is damaged", where=str(folder / PROCESSES), why=str(error)
        ) from None


def running(folder: Path) -> dict[str, int]:
    """Name → number of what was started here and still runs: the very process, not its number."""
    known = recorded(folder).items()
    return {name: pid for name, (pid, since) in known if since and _started(pid) == since}


def stop(folder: Path, *names: str) -> list[str]:
    """End what was started here (all, or `names`), each with its children; their names."""
    ended = []
    for name, pid in running(folder).items():
        if not names or name in names:
            _end(pid)
            ended.append(name)
    return ended


def _end(pid: int) -> None:
    """Each was started as the leader of a session of its own, so its group is its children."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, how)
        for _ in range(50):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            if not _group_lives(pid):
                return
            time.sleep(0.1)


def _group_lives(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _started(pid: int) -> str:
    """When a process was started, in clock ticks since the machine was; empty if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    state, *rest = stat.rpartition(") ")[2].split()
    return "" if state == "Z" else rest[18]


def flower_environment(folder: Path) -> dict[str, str]:
    """What Flower's processes see: a home in the folder, no telemetry, no look for updates."""
    return {
        **os.environ,
        "FLWR_HOME": str(folder / FLOWER),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        # Flower starts its own helpers by name.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def _start(
    folder: Path, name: str, command: Sequence[str], *, kept: bool = False
) -> subprocess.Popen[bytes]:
    """Start a command as the leader of a session of its own; `kept`: again whenever it dies."""
    (folder / FLOWER).mkdir(exist_ok=True, mode=0o700)
    keeping = [sys.executable, "-m", "secure_natfl.deploy.keep"] if kept else []
    with (folder / f"{name}.log").open("ab") as out:
        process = subprocess.Popen(  # noqa: S603 - our own commands, and Flower's beside ours
            [*keeping, *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=flower_environment(folder),
            start_new_session=True,
        )
    record(folder, name, process.pid)
    return process


def _flwr(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - Flower's own command beside our interpreter
        [_tool("flwr"), *arguments],
        env=flower_environment(folder),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


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
            fix="pip install 'secure_natfl[flower]' into this environment",
        )
    return str(path)


def check_insecure(host: str, *, insecure: bool) -> None:
    """ConfigError for a connection without TLS to, or on, any address but this machine's own."""
    if insecure and host not in _LOOPBACK:
        raise ConfigError(
            "a connection without TLS off this machine is never opened",
            where=f"--insecure, {host}",
            fix="leave --insecure out; `natfl deploy keys` made the certificates",
        )


def _until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _PATIENCE
    while not ready():
        if process.poll() is not None or time.monotonic() > until:
            last = _last_line(log.read_text(encoding="utf-8", errors="replace"))
            raise RunFolderError(
                "it did not start", where=str(log), why=last or "nothing was said in time"
            )
        time.sleep(0.1)


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

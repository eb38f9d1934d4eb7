"""`make demo-deploy`: three sites and a server on this machine, over TLS, killed on the way.

Every party is a process of its own in a folder of its own, as on machines of their own. One site is
killed in the first round and the server in the second; both are started again, and the session
ends with a report, an audit log that every site co-signed, and ledgers that verify.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import tomli_w
from rich.console import Console

from protocols.errors import NatflError, RunFolderError
from secure_natfl.config import Config
from secure_natfl.data.phantoms import HOSPITALS
from secure_natfl.deploy.kit import SERVER_FOLDER, make_kit
from secure_natfl.deploy.processes import stop
from secure_natfl.deploy.site_file import SITE_FILE
from secure_natfl.deploy.status import status
from secure_natfl.federation import build
from secure_natfl.toml_config import parse

SITES: Final = ("north", "east", "south")
SOURCE: Final = "consortium.toml"
KEPT: Final = ("ledger.db", "ledger.db-wal", "heads.jsonl", "checkpoints.jsonl")
"""What a site lets the auditor copy: no image, no model."""

_PORT: Final = 8443
_PATIENCE: Final = 900.0


def write_kit(root: Path, rounds: int = 2, images: int = 120, holders: Sequence[str] = ()) -> None:
    """Configuration, keys and site files of three sites with phantoms, ready to be started."""
    shared = {
        "run": {"name": "demo-deploy"},
        "proxies": {"images": 240, "per_round": 120},
        "models": {"central": "test_resnet", "pretrain_epochs": 1},
        "system": {"rounds": rounds, "local_epochs": 1, "distill_epochs": 2},
        "privacy": {"mechanism": "dp-sgd", "epsilon": 8.0},
    }
    networks = dict(zip(SITES, ("test_resnet", "test_byobnet", "test_efficientnet"), strict=True))
    own = {
        name: {"kind": "phantom", "hospital": look, "images": images}
        for name, look in zip(SITES, HOSPITALS, strict=False)
    }
    tables = [
        {"name": name, "architectures": [networks[name]], **table} for name, table in own.items()
    ]
    config = _config(shared | {"data": {"size": 32, "hospitals": tables}})
    # Each site counts its own patients; here one process stands in for all three.
    federation = build(config, lambda name: name.encode().ljust(32))
    remote = [
        {
            "name": site.name,
            "kind": "remote",
            "architectures": [site.architecture],
            "patients": site.patients,
            "unit": site.unit,
            "classes": list(site.task.classes),
        }
        for site in federation.sites
    ]
    root.mkdir(parents=True, exist_ok=True)
    source = root / SOURCE
    source.write_text(tomli_w.dumps(shared | {"data": {"size": 32, "hospitals": remote}}))
    made = make_kit(source, root, ["localhost"], {}, holders)
    policy = {
        "max_epsilon": 10.0,
        "max_rounds": rounds,
        "proxies": [made.enrolment.proxies],
        "architectures": sorted({*networks.values(), "test_resnet"}),
        "share_scores": True,
    }
    for name in SITES:
        stated = {"hospital": own[name], "policy": policy}
        (root / name / SITE_FILE).write_text(tomli_w.dumps(stated))
    (root / SERVER_FOLDER / "server.toml").write_text("meet = 60\npause = 2\n")


def gather(root: Path) -> None:
    """Copy what the sites let the auditor see into the auditor's copy of the run folder."""
    for name in SITES:
        folder = root / SERVER_FOLDER / "run" / "sites" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file in KEPT:
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(root / name / file, folder / file)


def play(root: Path, console: Console) -> int:
    """The whole demonstration in an empty folder; the exit code of `natfl audit`."""
    write_kit(root)
    server = root / SERVER_FOLDER
    serving = None
    try:
        _say(console, "Three sites and the server start, each in a folder of its own")
        serving = _serve(server)
        for process in [_client(root, number) for number in range(len(SITES))]:
            process.wait()
        _until("the first round is planned", server, lambda: _stands(server, "planned") > 0)
        victim = root / SITES[1]
        _say(console, f"kill -9: the site {victim.name}, in the first round")
        stop(victim, at_once=True)
        time.sleep(5)
        _say(console, f"{victim.name} is started again")
        _client(root, 1).wait()
        _until("the first round is opened", server, lambda: _stands(server, "opened") > 0)
        _until("the second round is planned", server, lambda: _stands(server, "planned") > 1)
        _say(console, "kill -9: the server, in the second round")
        stop(server, at_once=True)
        serving.wait()
        _say(console, "The server is started again, and goes on")
        serving = _serve(server)
        if serving.wait():
            raise RunFolderError("the session did not end well", where=str(server))
    finally:
        if serving is not None and serving.poll() is None:
            serving.terminate()
        for folder in (*(root / name for name in SITES), server):
            stop(folder)
    gather(root)
    console.print(f"Report: {server / 'run' / 'report.html'}", soft_wrap=True, highlight=False)
    return _natfl("audit", str(server / "run")).wait()


def _client(root: Path, number: int) -> subprocess.Popen[bytes]:
    folder = root / SITES[number]
    return _natfl(
        *("deploy", "client", str(folder)),
        *("--server", f"localhost:{_PORT}", "--port", str(_PORT + 1 + number)),
    )


def _serve(folder: Path) -> subprocess.Popen[bytes]:
    return _natfl("deploy", "server", str(folder), "--host", "127.0.0.1", "--port", str(_PORT))


def _natfl(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-m", "secure_natfl", *arguments], stdin=subprocess.DEVNULL
    )


def _stands(server: Path, what: str) -> int:
    """How many rounds were planned, or opened; 0 while there is no log."""
    return int(status(server).get(what, 0))


def _until(what: str, server: Path, ready: Callable[[], bool]) -> None:
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        # A line of the log may be half written at this very moment.
        with contextlib.suppress(RunFolderError):
            if ready():
                return
        time.sleep(0.5)
    raise RunFolderError(f"waited in vain until {what}", where=str(server))


def _config(table: dict[str, object]) -> Config:
    return parse(table, "demo-deploy")


def _say(console: Console, text: str) -> None:
    console.print(f"[bold]{text}[/bold]", highlight=False)


def main() -> int:
    """Run it in the folder that is named; what is there is a demonstration's and is replaced."""
    root = Path(sys.argv[1]).resolve()
    console = Console()
    try:
        if root.exists() and any(root.iterdir()) and not (root / SOURCE).exists():
            raise RunFolderError("the folder holds other files", where=str(root))
        shutil.rmtree(root, ignore_errors=True)
        return play(root, console)
    except NatflError as error:
        Console(stderr=True).print(f"error: {error}", highlight=False, markup=False)
        return 2


if __name__ == "__main__":
    sys.exit(main())

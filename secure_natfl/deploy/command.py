"""`natfl deploy`: a federation on real machines, one folder per party."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from protocols.errors import ConfigError, RunFolderError

app = typer.Typer(help="Play a federation between machines, over Flower.", no_args_is_help=True)
console = Console()

Folder = Annotated[Path, typer.Argument(help="The party's own folder, named as the party.")]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Without TLS; on this machine alone, for trying out.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a machine to read.")]
_LOOK = 1.0
_BEGIN = 300.0
"""Seconds in which Flower must have started the coordinator."""


@app.command()
def keys(
    source: Annotated[
        Path | None, typer.Argument(help="The shared configuration, all hospitals remote.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The kit: a folder with one folder per party.")] = Path(
        "kit"
    ),
    own: Annotated[
        str, typer.Option(help="Make this party's own keys only, and its public.json.")
    ] = "",
    host: Annotated[
        list[str] | None, typer.Option(help="Name or address of the server; may be repeated.")
    ] = None,
    public: Annotated[
        list[Path] | None, typer.Option(help="A party's public.json; may be repeated.")
    ] = None,
    holder: Annotated[
        list[str] | None,
        typer.Option(help="An independent key holder; may be repeated. Default: the sites."),
    ] = None,
) -> None:
    """Make keys, certificates, and the enrolment list that the consortium signs."""
    from secure_natfl.deploy.kit import PUBLIC, make_kit, own_keys, party_name, read_public

    if own:
        own_keys(out / party_name(own))
        _say(f"Wrote {out / own}. Hand {out / own / PUBLIC} to the consortium, nothing else.")
        return
    if source is None:
        raise ConfigError("no configuration was named", where="natfl deploy keys")
    given = {one.name: one for one in map(read_public, public or [])}
    made = make_kit(source, out, host or ["localhost", "127.0.0.1"], given, holder or [])
    _say(f"Session {made.session}: {len(made.enrolment.clients)} sites.")
    _say(f"Public images: {made.enrolment.proxies} (each site's policy must name it)")
    _say(f"Keep {out / 'consortium'} off the network; hand every party its own folder.")


@app.command()
def server(
    folder: Folder,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8443,
    insecure: Insecure = False,
) -> None:
    """Coordinate the session of this folder, or go on with it, until its report is written."""
    from secure_natfl.deploy import launch, processes

    folder = folder.resolve()
    outcome = folder / launch.OUTCOME
    if processes.running(folder):
        raise RunFolderError(
            "this server is at work already", where=str(folder), fix="natfl deploy stop first"
        )
    outcome.unlink(missing_ok=True)
    processes.forget(folder)
    launch.start_link(folder, host, port, insecure=insecure)
    try:
        launch.register(folder, host, port, insecure=insecure)
        launch.submit(folder)
        _say(f"Listening on {host}:{port}; what happens is in {folder / launch.LOG}")
        said = _awaited(outcome, lambda: _works(folder), lambda: _begun(folder))
    finally:
        processes.stop(folder)
    kind, _, rest = said.partition(" ")
    if kind != "report":
        raise RunFolderError("the session ended in an error", where=str(folder), why=rest)
    _say(f"Report: {rest}")


@app.command()
def client(
    folder: Folder,
    server: Annotated[str, typer.Option(help="The server, as host:port.")],
    port: Annotated[int, typer.Option(help="A free port of this machine, for Flower.")] = 9094,
    insecure: Insecure = False,
) -> None:
    """Take part as a site, in the background; returns once the server has admitted it."""
    _take_part(folder, server, port, insecure=insecure)


@app.command()
def holder(
    folder: Folder,
    server: Annotated[str, typer.Option(help="The server, as host:port.")],
    port: Annotated[int, typer.Option(help="A free port of this machine, for Flower.")] = 9094,
    insecure: Insecure = False,
) -> None:
    """Take part as an independent key holder, in the background; returns once admitted."""
    _take_part(folder, server, port, insecure=insecure)


@app.command()
def status(folder: Folder, as_json: AsJson = False) -> None:
    """How a party stands, from its disk."""
    from secure_natfl.deploy.status import status as found

    said = found(folder.resolve())
    if as_json:
        typer.echo(json.dumps(said, indent=2))
        return
    for name, value in said.items():
        console.print(f"{name:16} {value}", soft_wrap=True, highlight=False, markup=False)


@app.command()
def doctor(
    folder: Folder,
    server: Annotated[str, typer.Option(help="The server, as host:port, to try it.")] = "",
    as_json: AsJson = False,
) -> None:
    """Check versions, clock, certificates, keys, disk, images and policy before the start."""
    from secure_natfl.deploy.doctor import examine

    found = examine(folder.resolve(), server)
    if as_json:
        typer.echo(json.dumps([one._asdict() for one in found], indent=2))
    else:
        for one in found:
            mark = "ok   " if one.holds else "FAULT"
            console.print(
                f"{mark} {one.what}: {one.said}", soft_wrap=True, highlight=False, markup=False
            )
    raise typer.Exit(0 if all(one.holds for one in found) else 1)


@app.command()
def stop(folder: Folder) -> None:
    """End what was started from this folder, and nothing else."""
    from secure_natfl.deploy import processes

    ended = processes.stop(folder.resolve())
    _say(f"Ended: {', '.join(ended) or 'nothing was running'}")


def _take_part(folder: Path, server: str, port: int, *, insecure: bool) -> None:
    from secure_natfl.deploy import launch, processes
    from secure_natfl.deploy.admission import SUPERNODE_LOG, await_admission

    folder = folder.resolve()
    launch.check_insecure(launch.address(server)[0], insecure=insecure)
    alive = processes.running(folder)
    if "party" not in alive:
        launch.start_party(folder)
    log, since = folder / SUPERNODE_LOG, 0
    if "supernode" not in alive:
        since = log.stat().st_size if log.exists() else 0
        launch.start_node(folder, server, port, insecure=insecure)
    await_admission(folder, since)
    _say(f"{folder.name} takes part; natfl deploy status {folder}")


def _awaited(file: Path, lives: Callable[[], bool], begun: Callable[[], bool]) -> str:
    until = time.monotonic() + _BEGIN
    while not file.exists():
        if not lives():
            return "error a process of the server ended: look into superlink.log"
        if time.monotonic() > until and not begun():
            return f"error no coordinator started in {_BEGIN:.0f} s: look into superlink.log"
        time.sleep(_LOOK)
    return file.read_text(encoding="utf-8").strip()


def _works(folder: Path) -> bool:
    """Whether the SuperLink runs, and the coordinator too if it ever did."""
    from secure_natfl.deploy import launch, processes

    needed = {"superlink", launch.COORDINATOR} & set(processes.recorded(folder))
    return needed <= set(processes.running(folder)) or (folder / launch.OUTCOME).exists()


def _begun(folder: Path) -> bool:
    """Whether the coordinator ever ran since the SuperLink was started."""
    from secure_natfl.deploy import launch, processes

    return launch.COORDINATOR in processes.recorded(folder)


def _say(text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)

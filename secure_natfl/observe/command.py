"""`natfl watch`: a running federation on the terminal, as metrics, or as structured logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def watch(
    folder: Annotated[Path, typer.Argument(help="A run's folder, or a deployed party's.")],
    once: Annotated[bool, typer.Option("--once", help="Print one picture and end.")] = False,
    port: Annotated[
        int | None, typer.Option(help="Serve /metrics and /health on this loopback port instead.")
    ] = None,
    logs: Annotated[bool, typer.Option("--logs", help="Print structured logs instead.")] = False,
    health: Annotated[
        bool, typer.Option("--health", help="Print the health as JSON; exit 1 if ill.")
    ] = False,
) -> None:
    """Show how a federation stands, from its folder alone; nothing is asked or written."""
    from secure_natfl.observe.logs import follow
    from secure_natfl.observe.metrics import ailments
    from secure_natfl.observe.serve import endpoint
    from secure_natfl.observe.state import look
    from secure_natfl.observe.view import watch as shown

    console = Console()
    if health:
        found = ailments(look(folder))
        typer.echo(json.dumps({"healthy": not found, "why": found}))
        raise typer.Exit(1 if found else 0)
    try:
        if port is not None:
            look(folder)
            with endpoint(folder, port) as server:
                console.print(f"http://127.0.0.1:{server.server_port}/metrics")
                server.serve_forever()
        elif logs:
            for line in follow(folder, once=once):
                typer.echo(line)
        else:
            shown(folder, console, once=once)
    except KeyboardInterrupt:
        return

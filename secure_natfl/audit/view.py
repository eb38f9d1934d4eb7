"""What `natfl audit` and `natfl verify` print."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from secure_natfl.audit.findings import Findings

_MARKS = {"holds": "[green]holds[/green]", "broken": "[red]broken[/red]", "unchecked": "not made"}


def show(findings: Findings, auditor: str, console: Console, *, as_json: bool) -> None:
    """Every check with its outcome, then the verdict in one line.

    auditor: the key (hex) that signed the evidence, empty where there is none.
    """
    verdict = "broken" if findings.broken else "holds"
    if as_json:
        checks = [asdict(one) for one in findings.found]
        said = {"verdict": verdict, "auditor": auditor, "checks": checks}
        typer.echo(json.dumps(said, indent=2))
        return
    table = Table(show_header=False, box=None)
    for one in findings.found:
        table.add_row(one.check, _MARKS[one.outcome], escape(one.said))
    console.print(table)
    if findings.broken:
        console.print(f"[red]{len(findings.broken)} broken[/red] of {len(findings.found)} checks.")
    else:
        held = sum(one.outcome == "holds" for one in findings.found)
        console.print(f"{held} checks hold, none is broken.")
    if auditor:
        console.print(
            f"Signed with {auditor}: compare it with what the auditor states elsewhere.",
            soft_wrap=True,
            highlight=False,
        )

"""The `natfl` command."""

from __future__ import annotations

import json
import os
import shlex
import sys
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from protocols.errors import ConfigError, NatflError, RunFolderError
from secure_natfl import __version__
from secure_natfl.deploy.command import app as deploy
from secure_natfl.observe.command import watch

app = typer.Typer(
    help="Privacy-hardened federated learning for medical images over natural images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(deploy, name="deploy")
app.command()(watch)
console = Console()

Source = Annotated[str, typer.Argument(help="A TOML file, or a preset's name.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a machine to read.")]


@app.command()
def init(
    out: Annotated[Path, typer.Argument(help="The file to write.")] = Path("run.toml"),
    preset: Annotated[str, typer.Option(help="The preset to start from.")] = "demo",
) -> None:
    """Write a commented configuration to start from."""
    from secure_natfl.toml_config import presets

    known = presets()
    if preset not in known:
        raise ConfigError("no such preset", where=preset, fix=f"one of {', '.join(sorted(known))}")
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(known[preset].read_text(encoding="utf-8"))
    except FileExistsError:
        raise ConfigError("the file exists already", where=str(out), fix="name another") from None
    except OSError as error:
        raise ConfigError("cannot be written", where=str(out), why=str(error.strerror)) from None
    console.print(f"Wrote {out}. Next: natfl check {out}", soft_wrap=True)


@app.command()
def check(source: Source, changes: Changes = None, as_json: AsJson = False) -> None:
    """Say what a run will need, cost and promise; train nothing, spend nothing."""
    from secure_natfl.check import check as preflight
    from secure_natfl.toml_config import load

    config = load(source, changes or [])
    with console.status("Loading and checking images"):
        found = preflight(config)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    from secure_natfl.check_view import show

    show(found, console)


@app.command()
def run(
    source: Source,
    out: Annotated[Path | None, typer.Option(help="Run folder; a new one by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Take up the run in --out.")] = False,
    changes: Changes = None,
) -> None:
    """Play a whole federation and write its report."""
    from secure_natfl.toml_config import load

    config = load(source, changes or [])
    if resume and out is None:
        raise RunFolderError("--resume needs a folder", fix="add --out with the run's folder")
    folder = out or _new_folder(config.run.name)
    console.print(f"[dim]Run folder[/dim] {folder}", soft_wrap=True, highlight=False)
    from secure_natfl.execute import as_command, execute

    command = as_command(source, changes or [])
    report = execute(config, folder, command, console, resume=resume)
    console.print(f"Report: {report}", soft_wrap=True, highlight=False)


@app.command()
def attack(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    attacks: Annotated[
        str, typer.Option(help="Rows to play, such as G1,L1; by default all of the tier.")
    ] = "",
    tier: Annotated[
        str, typer.Option(help="fast: a minute. full: every row, 200 targets.")
    ] = "fast",
    truth: Annotated[
        Path | None, typer.Option(help="Folder that the private images' paths start from.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Time for all arms; the same command goes on later.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Attack a finished run as its adversaries could, and say what leaks."""
    from secure_natfl.leakage.execute import Wish, execute
    from secure_natfl.leakage.view import show

    wish = Wish.read(attacks, tier, truth, seconds)
    quiet = Console(stderr=True) if as_json else console
    report = execute(run, wish, shlex.join(["natfl", *sys.argv[1:]]), quiet)
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
        return
    show(report, console)
    console.print(f"Report: {run / 'attacks' / 'attacks.html'}", soft_wrap=True, highlight=False)


@app.command()
def study(
    source: Annotated[str, typer.Argument(help="A study file, or a shipped study's name.")],
    out: Annotated[Path | None, typer.Option(help="Study folder; a new one by default.")] = None,
    budget: Annotated[str, typer.Option(help='Time for all cells, such as "8h".')] = "",
    resume: Annotated[
        bool, typer.Option("--resume", help="Take up, or extend, the study in --out.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and estimate; play and write nothing.")
    ] = False,
) -> None:
    """Compare many runs on images held back: which ε, which parts, at which price."""
    from secure_natfl.study.conduct import Wish, conduct
    from secure_natfl.study.file import read_study, seconds_of

    if resume and out is None:
        raise RunFolderError("--resume needs a folder", fix="add --out with the study's folder")
    chosen = read_study(source)
    try:
        seconds = seconds_of(budget) if budget else None
    except ValueError as error:
        raise ConfigError(str(error), where="--budget") from None
    folder = out or _new_folder(chosen.name)
    command = shlex.join(["natfl", *sys.argv[1:]])
    done = conduct(chosen, Wish(folder, command, seconds, resume, dry_run), console)
    if done is not None:
        console.print(f"Study: {done.page}", soft_wrap=True, highlight=False)
        raise typer.Exit(1 if done.failed else 0)


@app.command()
def fit(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    hospital: Annotated[str, typer.Argument(help="TOML: data.root and one data.hospitals.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("fitted"),
) -> None:
    """Fit a run's central model to a hospital that took no part, by a few labelled images."""
    from secure_natfl.newcomer_fit import fit as fitted

    network = fitted(run, hospital, out, console)
    console.print(f"Network: {network}", soft_wrap=True, highlight=False)


@app.command()
def audit(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    operator: Annotated[
        Path | None, typer.Option(help="What only people know; operator.toml of the run's folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a run from what it left behind, and write evidence that others can verify."""
    from secure_natfl.audit.conduct import audit as conducted
    from secure_natfl.audit.view import show

    done = conducted(run, operator)
    signed = done.auditor if done.page else ""
    show(done.findings, signed, console, as_json=as_json)
    if not as_json:
        made = f"Evidence: {done.page}" if done.page else "No evidence was written."
        console.print(made, soft_wrap=True, highlight=False)
    raise typer.Exit(1 if done.findings.broken else 0)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="An evidence folder, or a run folder with one.")],
    key: Annotated[str, typer.Option(help="The auditor's public key, 64 hex digits.")] = "",
    as_json: AsJson = False,
) -> None:
    """Verify an audit's evidence without the run."""
    from secure_natfl.audit.verify import verify_evidence
    from secure_natfl.audit.view import show

    done = verify_evidence(folder, key or None)
    show(done.findings, done.auditor, console, as_json=as_json)
    raise typer.Exit(1 if done.findings.broken else 0)


@app.command()
def info(as_json: AsJson = False) -> None:
    """Versions, cores, presets and the folders in use."""
    from importlib.metadata import version

    from secure_natfl.pretraining import cache_folder
    from secure_natfl.toml_config import presets

    facts: dict[str, Any] = {
        "secure_natfl": __version__,
        "python": sys.version.split()[0],
        **{name: version(name) for name in ("torch", "timm", "opacus", "tenseal", "numpy")},
        "cores": os.cpu_count(),
        "presets": sorted(presets()),
        "pre-training cache": str(cache_folder()),
    }
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        shown = ", ".join(value) if isinstance(value, list) else str(value)
        table.add_row(f"[dim]{name}[/dim]", shown)
    console.print(table)


def main() -> None:
    """Entry point: a person's mistake is one line and exit code 2, never a traceback."""
    # Third parties' warnings mean nothing to a user of this command.
    warnings.filterwarnings("ignore")
    try:
        app(prog_name="natfl")
    except NatflError as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", soft_wrap=True, highlight=False)
        sys.exit(2)


def _new_folder(name: str) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{name}-{stamp}"

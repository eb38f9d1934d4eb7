"""A run from configuration to written reports."""

from __future__ import annotations

import shlex
from pathlib import Path

import tomli_w
from rich.console import Console

from secure_natfl.audit.trail import Trail
from secure_natfl.config import Config
from secure_natfl.metrics_table import write_metrics
from secure_natfl.report.render import write_report, write_site_report
from secure_natfl.reporting import consortium
from secure_natfl.run import Run
from secure_natfl.run_folder import RunFolder
from secure_natfl.site_reporting import site_report


def execute(
    config: Config, path: Path, command: str, console: Console, *, resume: bool = False
) -> Path:
    """Play the run in folder `path` and write everything; returns the path of report.html."""
    text = f"# {command}\n\n" + tomli_w.dumps(config.model_dump(mode="json"))
    folder = RunFolder.open(path, config, text, resume=resume)
    run = Run(config, folder, console)
    results = run.play()
    with run.stages.stage("Score and write the report"):
        report = consortium(config, results, command)
        for site in results.federation.sites:
            write_site_report(site_report(config, results, site, command), path)
        write_metrics(report, path)
        write_report(report, path)
        with Trail(config, path) as trail:
            trail.end()
    return path / "report.html"


def as_command(source: str, changes: list[str]) -> str:
    """The command line that starts such a run."""
    return shlex.join(["natfl", "run", source, *(p for c in changes for p in ("--set", c))])

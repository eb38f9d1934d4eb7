"""A run from configuration to written reports."""

from __future__ import annotations

import shlex
from pathlib import Path

import tomli_w
from rich.console import Console

from secure_natfl.audit.trail import Trail
from secure_natfl.config import Config
from secure_natfl.metrics_table import write_metrics
from secure_natfl.progress import Stages
from secure_natfl.report.model import Report
from secure_natfl.report.render import write_report, write_site_report
from secure_natfl.report.site_model import SiteReport
from secure_natfl.reporting import consortium
from secure_natfl.run import Run
from secure_natfl.run_folder import RunFolder
from secure_natfl.site_reporting import site_report
from secure_natfl.summed.reporting import summed_report, summed_site_report
from secure_natfl.summed.run import SummedRun
from secure_natfl.system_tables import NatImg


def execute(
    config: Config, path: Path, command: str, console: Console, *, resume: bool = False
) -> Path:
    """Play the run in folder `path` and write everything; returns the path of report.html."""
    text = f"# {command}\n\n" + tomli_w.dumps(config.model_dump(mode="json"))
    folder = RunFolder.open(path, config, text, resume=resume)
    report, sites = _played(config, folder, command, console)
    with Stages(console).stage("Write the report"):
        for site in sites:
            write_site_report(site, path)
        write_metrics(report, path)
        write_report(report, path)
        with Trail(config, path) as trail:
            trail.end()
    return path / "report.html"


def _played(
    config: Config, folder: RunFolder, command: str, console: Console
) -> tuple[Report, list[SiteReport]]:
    """Play the run of whatever system is configured; its report, and every site's own."""
    if isinstance(config.system, NatImg):
        run = Run(config, folder, console)
        results = run.play()
        with run.stages.stage("Score"):
            sites = [site_report(config, results, s, command) for s in results.federation.sites]
            return consortium(config, results, command), sites
    summed = SummedRun(config, folder, console)
    found = summed.play()
    with summed.stages.stage("Score"):
        sites = [summed_site_report(config, found, s, command) for s in found.federation.sites]
        return summed_report(config, found, command), sites


def as_command(source: str, changes: list[str]) -> str:
    """The command line that starts such a run."""
    return shlex.join(["natfl", "run", source, *(p for c in changes for p in ("--set", c))])

"""Verdicts as a person reads them on a terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from attacks.verdicts import Verdict
from secure_natfl.leakage.record import AttackReport
from secure_natfl.report import attack_words

_STYLES = {
    Verdict.LEAKS: "bold red",
    Verdict.NO_LEAK: "green",
    Verdict.INCONCLUSIVE: "yellow",
    Verdict.CONTROL: "dim",
}


def show(report: AttackReport, console: Console) -> None:
    """Print every arm's verdict, and what bounds it."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("row", "arm", "gain (95 %)", "margin", "verdict"):
        table.add_column(name, justify="right" if name == "margin" else "left")
    for row in report.rows:
        for at, arm in enumerate(row.arms):
            table.add_row(
                row.criteria.id if at == 0 else "",
                arm.arm,
                f"{attack_words.gain(arm)} [dim]{attack_words.bounds(arm)}[/dim]",
                f"{row.criteria.margin:g}",
                f"[{_STYLES[arm.verdict]}]{arm.verdict}[/]",
            )
    console.print(table)
    for line in (attack_words.lead(report), *_notes(report)):
        console.print(line, soft_wrap=True, highlight=False)


def _notes(report: AttackReport) -> list[str]:
    notes = [
        f"{row.criteria.id}, {arm.arm}: {arm.why}."
        for row in report.rows
        for arm in row.arms
        if arm.verdict is Verdict.INCONCLUSIVE
    ]
    return [*notes, f"Not tested: {len(report.not_tested)} things, listed in the report."]

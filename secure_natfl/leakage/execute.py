"""One call of `natfl attack`: from a run folder to verdicts in it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console

from attacks.rows import Budget, Tier
from protocols.errors import ConfigError
from secure_natfl.leakage.assemble import assemble
from secure_natfl.leakage.attacked import AttackedRun, SumsRun
from secure_natfl.leakage.kept import Kept
from secure_natfl.leakage.play import BUDGETS, criteria_of, judged, play_all
from secure_natfl.leakage.promised import promise_of
from secure_natfl.leakage.record import AttackReport
from secure_natfl.leakage.rows import all_rows
from secure_natfl.leakage.table import admit, select
from secure_natfl.progress import Stages
from secure_natfl.report.attacks import attacks_html
from secure_natfl.report.render import write_report
from secure_natfl.run_folder import write


@dataclass(frozen=True)
class Wish:
    """What a person asked for. attacks: ids of rows, none for all of the tier."""

    attacks: tuple[str, ...]
    tier: Tier
    budget: Budget
    truth: Path | None

    @classmethod
    def read(cls, attacks: str, tier: str, truth: Path | None, seconds: float | None) -> Wish:
        """From the words of a command line; ConfigError says which of them is wrong."""
        if tier not in get_args(Tier):
            raise ConfigError("no such tier", where=tier, fix=f"one of {', '.join(get_args(Tier))}")
        known: Tier = "fast" if tier == "fast" else "full"
        budget = BUDGETS[known]
        if seconds is not None:
            if not seconds > 0:
                raise ConfigError(f"{seconds:g} seconds", fix="give more than 0")
            budget = replace(budget, seconds=seconds)
        if truth is not None and not truth.is_dir():
            raise ConfigError("no such folder", where=str(truth), fix="name that of the images")
        names = tuple(name.strip() for name in attacks.split(",") if name.strip())
        return cls(names, known, budget, truth)


def execute(path: Path, wish: Wish, command: str, console: Console) -> AttackReport:
    """Attack the run in folder `path`; writes `attacks/` in it and its report anew.

    Plays the rows wished for, and judges them in one table with all that were played before in
    the same tier. RunFolderError where an earlier row had other criteria than it has now.
    """
    stages = Stages(console)
    run = AttackedRun.open(path, stages, wish.truth)
    if run.config.speed.threads:
        torch.set_num_threads(run.config.speed.threads)
    there, without = all_rows(run, wish.tier)
    kept = Kept(path, wish.tier)
    before = [row for row in there if kept.holds(row)]
    chosen, left = select(there, wish.attacks, wish.tier, before)
    asked, blind = admit(run, chosen, asked=bool(wish.attacks))
    rows = [row for row in there if row in asked or row in before]
    updates = isinstance(run, SumsRun) and run.sends_updates
    stated = {
        row.id: criteria_of(
            row, run.folder.nonce, promise_of(row.id, run.config.mode, updates=updates)
        )
        for row in rows
    }
    kept.state(stated.values())
    played, missing = play_all(asked, stated, kept, wish.tier, wish.budget, stages)
    # What earlier calls played is judged with the rest: no second call makes a leak disappear.
    played = kept.all(rows) | played
    with stages.stage("Judge and write the report"):
        report = assemble(
            run,
            rows,
            stated,
            played,
            missing,
            judged(rows, played, seed=0),
            [*without, *blind, *left],
            tier=wish.tier,
            budget=wish.budget,
            command=command,
        )
        write(path / "attacks" / "attacks.json", report.model_dump_json(indent=2).encode())
        write(path / "attacks" / "attacks.html", attacks_html(report).encode())
        write_report(run.report, path, report)
    return report

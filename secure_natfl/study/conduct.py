"""A study from its file to its page: check, estimate, play what is missing, write the tables."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tomli_w
import torch
from rich.console import Console

from secure_natfl.federation import Federation
from secure_natfl.progress import Stages
from secure_natfl.report import formats
from secure_natfl.run_folder import write
from secure_natfl.setup import natural_features, public_networks
from secure_natfl.study.advice import advise, worst_of
from secure_natfl.study.analysis import Analysis
from secure_natfl.study.cell_run import Job
from secure_natfl.study.estimate import Estimate
from secure_natfl.study.file import StudyFile, seconds_of
from secure_natfl.study.folder import Record, StudyFolder
from secure_natfl.study.grid import Cell, Plan, Setting, plan_of
from secure_natfl.study.guarantee import units_of
from secure_natfl.study.page import Ended, Findings, attack_figures, study_html
from secure_natfl.study.preflight import check_plan, simulated
from secure_natfl.study.price import prices
from secure_natfl.study.runner import Played, play_all, workers
from secure_natfl.study.subgroups import Subgroups
from secure_natfl.study.tables import Cost, write_tables
from secure_natfl.study.whole import found_of, keep
from secure_natfl.study.whole import page as whole_html
from secure_natfl.study.whole_check import check_whole


@dataclass(frozen=True)
class Wish:
    """What the caller asks for. budget: seconds for all cells, None for what the file says."""

    out: Path
    command: str
    budget: float | None = None
    resume: bool = False
    dry: bool = False


@dataclass(frozen=True)
class Conducted:
    """The path of `study.html`, and the cells that failed, each with its fault."""

    page: Path
    failed: list[tuple[str, str]]


def conduct(study: StudyFile, wish: Wish, console: Console) -> Conducted | None:
    """Play the study; its page and what failed, or None after a dry run, which writes nothing.

    Whatever is wrong with any cell is raised before the first one runs.
    """
    # As in every cell: another number of threads rounds otherwise, from pre-training on.
    torch.set_num_threads(1)
    plan = plan_of(study)
    StudyFolder.check(wish.out, study, resume=wish.resume)
    with console.status("Checking every cell"):
        checked = check_whole(plan) if plan.whole else None
        federations = check_plan(plan) if checked is None else checked.federations
        counted = None if checked is None else checked.seconds
        subgroups = Subgroups(study.subgroups)
        subgroups.check(plan)
    if wish.dry:
        estimate = Estimate(plan, federations, None, counted)
        _foretell(plan, estimate, plan.cells(), console, _budget(study, wish))
        return None
    text = f"# {wish.command}\n\n" + tomli_w.dumps(study.model_dump(mode="json", by_alias=True))
    folder = StudyFolder.open(wish.out, study, text, resume=wish.resume)
    with folder.alone():
        attacks = attack_figures(folder.path, plan.settings)
        if checked is None:
            _prepare(plan, federations, console)
        estimate = Estimate(plan, federations, folder, counted)
        played = _play(plan, folder, estimate, _budget(study, wish), console)
        page = folder.path / "study.html"
        with console.status("Scoring"):
            ended = _ended(plan, folder, federations, played, wish.command)
            if checked is not None:
                whole = found_of(plan, folder, checked, ended)
                keep(folder.path, whole)
                write(page, whole_html(whole).encode())
                reasons = whole.reasons
            else:
                found = _findings(plan, folder, subgroups, ended)
                write_tables(folder.path, plan, found.scores, found.tests, found.gaps, found.costs)
                write(page, study_html(found, attacks).encode())
                reasons = found.advice.reasons
        _conclude(ended, reasons, console)
    return Conducted(page, ended.failed)


def _budget(study: StudyFile, wish: Wish) -> float:
    if wish.budget is not None:
        return wish.budget
    return seconds_of(study.budget) if study.budget else math.inf


def _prepare(plan: Plan, federations: Mapping[str, Federation], console: Console) -> None:
    """Public pre-training and public features, once for all cells, before they run side by side."""
    stages, seen = Stages(console), set[tuple[object, ...]]()
    for cell in plan.cells():
        federation = federations.get(cell.id)
        if federation is None:
            continue
        config = cell.config
        names = sorted({config.models.central, *(site.architecture for site in federation.sites)})
        proxies = config.proxies.model_dump_json(exclude={"per_round"})
        public = (config.models.model_dump_json(), proxies, config.data.size, *names)
        if public in seen:
            continue
        seen.add(public)
        networks = public_networks(config, federation, stages)
        with stages.stage("Public features"):
            for name in names:
                natural_features(config, networks[name], federation, name)


def _play(
    plan: Plan, folder: StudyFolder, estimate: Estimate, budget: float, console: Console
) -> Played:
    cells = plan.cells()
    for cell in cells:
        if folder.done(cell):
            estimate.learn(cell)
    missing = [cell for cell in cells if not folder.done(cell)]
    _foretell(plan, estimate, missing, console, budget)
    start, ended = time.monotonic(), 0

    def report(cell: Cell, fault: str) -> None:
        nonlocal ended
        ended += 1
        if not fault:
            estimate.learn(cell)
        left = formats.duration(estimate.total(missing[ended:]) / workers())
        said = f"[red]failed:[/red] {fault}" if fault else f"{left} left, about"
        passed = time.monotonic() - start
        console.print(
            f"[dim]{passed:7.0f} s[/dim]  {ended}/{len(missing)}  {labels[cell.id]}  {said}",
            highlight=False,
            soft_wrap=True,
        )

    labels = plan.labels()
    jobs = [Job(cell, folder) for cell in missing]
    played = play_all(jobs, estimate.seconds, budget, report)
    shutil.rmtree(folder.path / "work", ignore_errors=True)
    if not played.failed and not played.left:
        shutil.rmtree(folder.shared, ignore_errors=True)
    return played


def _foretell(
    plan: Plan,
    estimate: Estimate,
    cells: Sequence[Cell],
    console: Console,
    budget: float,
) -> None:
    """Say what will run and for how long, before it does."""
    total = estimate.total(cells)
    study, at_once = plan.study, min(workers(), max(len(cells), 1))
    by_fold = "" if plan.whole else f" × {study.folds} folds"
    lines = [
        f"{formats.plural(len(plan.settings), 'setting')} × "
        f"{formats.plural(len(study.seeds), 'seed')}{by_fold}: "
        f"{formats.plural(len(plan.cells()), 'cell')}, {len(cells)} to play",
        f"about {formats.duration(total / at_once)} on {formats.plural(at_once, 'core')}, "
        f"{formats.duration(total)} of CPU; images and labels are checked, nothing is charged yet",
    ]
    if total / at_once > budget:
        lines.append(
            f"the budget of {formats.duration(budget)} holds about {budget * at_once / total:.0%} "
            "of it: first seeds come first"
        )
    if any(not simulated(setting.config) for setting in plan.settings):
        lines += [
            "real images: every cell charges the study's own ledgers; seeded, NOT PRIVATE",
            "it is not on your sites' ledgers, and their budgets stop no cell: subtract the page's "
            "figure yourself",
        ]
    else:
        lines.append("phantoms alone: nobody's privacy is at stake")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _findings(plan: Plan, folder: StudyFolder, subgroups: Subgroups, ended: Ended) -> Findings:
    analysis = Analysis(folder, plan, subgroups)
    worst = worst_of(analysis)
    return Findings(
        **vars(ended),
        scores=list(analysis.scores()),
        tests=list(analysis.tests()),
        gaps=list(analysis.gaps()),
        worst=worst,
        advice=advise(analysis, worst),
    )


def _ended(
    plan: Plan,
    folder: StudyFolder,
    federations: Mapping[str, Federation],
    played: Played,
    command: str,
) -> Ended:
    cells, labels = {cell.id: cell for cell in plan.cells()}, plan.labels()
    records = {id_: folder.record(cell) for id_, cell in cells.items() if folder.done(cell)}
    deltas = [float(getattr(s.config.privacy, "delta", 1e-5)) for s in plan.settings]
    finished = {
        setting: [
            seed
            for seed in setting.seeds
            if (planned := plan.of(setting, seed)) and all(map(folder.done, planned))
        ]
        for setting in plan.settings
    }
    return Ended(
        plan=plan,
        costs=[
            _cost(s, plan, seeds, records, units_of(_federation(s, plan, federations).sites))
            for s, seeds in finished.items()
            if seeds
        ],
        prices=prices(folder, cells, plan.study.folds, min(deltas)),
        cpu_seconds=sum(record["cpu_seconds"] for record in records.values()),
        cells=len(cells),
        done=len(records),
        failed=[(labels[id_], fault) for id_, fault in played.failed.items()],
        left=len(played.left),
        command=command,
    )


def _federation(setting: Setting, plan: Plan, federations: Mapping[str, Federation]) -> Federation:
    """That of the setting's first cell, which was checked before anything was played."""
    return federations[plan.of(setting, setting.seeds[0])[0].id]


def _cost(
    setting: Setting,
    plan: Plan,
    seeds: Sequence[int],
    records: Mapping[str, Record],
    units: str,
) -> Cost:
    """Means over the federation's cells; over all where a study has none of these."""
    cells = [cell for seed in seeds for cell in plan.of(setting, seed)]
    federation = [cell for cell in cells if cell.kind == "federation"] or cells
    found = [records[cell.id] for cell in federation]

    def mean(key: str) -> float:
        return sum(float(record.get(key, 0.0)) for record in found) / len(found)

    return Cost(
        setting,
        len(found),
        mean("seconds"),
        mean("cpu_seconds"),
        mean("protection_seconds"),
        mean("upload_bytes"),
        mean("download_bytes"),
        max(float(record.get("epsilon", "inf")) for record in found),
        max(float(record.get("epsilon_isolated", "inf")) for record in found),
        units,
    )


def _conclude(found: Ended, reasons: Sequence[str], console: Console) -> None:
    for cell, fault in found.failed:
        console.print(f"[red]failed[/red]  {cell}: {fault}", highlight=False, soft_wrap=True)
    for reason in reasons:
        console.print(reason, highlight=False, soft_wrap=True)
    spent = formats.duration(found.cpu_seconds)
    console.print(
        f"{found.done} of {found.cells} cells, {spent} of CPU ({found.cpu_seconds / 3600:.2f} h)",
        highlight=False,
        soft_wrap=True,
    )

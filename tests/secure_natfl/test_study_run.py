"""Studies played for real on a few phantoms: killed and taken up, failed cells, budgets, pages."""

import csv
import itertools
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from secure_natfl import baselines
from secure_natfl.cli import app
from secure_natfl.study import newcomers, runner
from secure_natfl.study.cell import keys_of, play
from secure_natfl.study.cell_run import Job, start_of
from secure_natfl.study.conduct import Wish, conduct
from secure_natfl.study.file import StudyFile, read_study
from secure_natfl.study.folder import StudyFolder
from secure_natfl.study.grid import plan_of

TABLES = ("results.csv", "tests.csv", "subgroups.csv", "table.tex")
TINY = """
name = "tiny"
base = "smoke"
folds = 2
seeds = [0]
models = [{models}]

[set]
"proxies.images" = 60
"proxies.per_round" = 30
"models.central" = "test_efficientnet"
"models.pretrain_epochs" = 1
"system.rounds" = 1
"system.local_epochs" = 1
"system.distill_epochs" = 1
"system.head_steps" = 5
"privacy.mechanism" = "shard-teachers"
"privacy.shards" = 3

[[set.data.hospitals]]
name = "children"
kind = "phantom"
hospital = "children"
images = 80
sites = 3
architectures = ["test_efficientnet"]

[grid]
"privacy.epsilon" = [{epsilons}]
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def made(models: str = '"central"', epsilons: str = "8.0") -> StudyFile:
        text = TINY.format(models=models, epsilons=epsilons)
        (tmp_path / "tiny.toml").write_text(text, encoding="utf-8")
        return read_study("tiny.toml")

    return made


def whole(study: StudyFile, out: Path) -> Path:
    """Every cell played here, one after the other; then the tables."""
    folder = StudyFolder.open(out, study, "", resume=False)
    for cell in plan_of(study).cells():
        assert play(Job(cell, folder)) == ""
    assert conduct(study, Wish(out, "natfl study", resume=True), quiet()).failed == []
    return out


def quiet() -> Console:
    return Console(quiet=True)


def start(*more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "secure_natfl", "study", "tiny.toml", "--out", "killed", *more]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if hasattr(os, "sched_setaffinity"):
        # One core, one worker: each costs a start of torch.
        os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0))})
    return process


def kill_when(process: subprocess.Popen[bytes], ready, patience: float = 200) -> None:
    until = time.monotonic() + patience
    while time.monotonic() < until and process.poll() is None and not ready():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait(30)


def charges(folder: Path) -> dict[str, int]:
    """Ledger → its number of lines, read as another program would."""
    found = {}
    for path in folder.glob("ledgers/*/*/ledger.db"):
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            (found[str(path.relative_to(folder))],) = database.execute(
                "SELECT count(*) FROM lines"
            ).fetchone()
    return found


def same_tables(one: Path, other: Path) -> None:
    for name in TABLES:
        assert (one / name).read_text() == (other / name).read_text(), name


def test_killed_inside_a_cell_and_taken_up_it_gives_the_same_tables(tiny, monkeypatch):
    study = tiny()
    expected = whole(study, Path("whole"))
    work = Path("killed/work")
    process = start()
    kill_when(process, lambda: any(work.glob("*/transcript/index.jsonl")))
    assert list(work.iterdir()), "the study ended before it was killed"
    assert not Path("killed/study.html").exists()
    monkeypatch.setattr(runner, "workers", lambda: 1)
    page = conduct(study, Wish(Path("killed"), "natfl study", resume=True), quiet()).page
    same_tables(expected, Path("killed"))
    assert charges(Path("killed")) == charges(expected)
    assert set(charges(expected).values()) == {1}
    assert not work.exists()
    text = page.read_text(encoding="utf-8")
    assert "NOT PRIVATE" in text
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", text)
    with Path("killed/results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    table = pq.read_table("killed/results.parquet").to_pylist()
    assert [row["auroc"] for row in table] == [float(row["auroc"]) for row in rows]
    assert {row["private"] for row in table} == {False}
    assert {row["phantoms"] for row in table} == {True}


def test_a_failed_cell_is_named_and_the_rest_is_played(tiny, monkeypatch):
    """By the command line as well: its exit code says that something failed."""
    monkeypatch.setattr(runner, "workers", lambda: 1)
    study = tiny('"local_only"', "8.0")
    first, second = plan_of(study).cells()
    folder = StudyFolder.open(Path("out"), study, "", resume=False)
    # A folder where the cell's own file must go: its disk refuses.
    (folder.path / "cells" / f"{first.id}.part").mkdir()
    said = CliRunner().invoke(app, ["study", "tiny.toml", "--out", "out", "--resume"])
    assert said.exit_code == 1
    assert not folder.done(first)
    assert folder.done(second)
    page = Path("out/study.html").read_text(encoding="utf-8")
    assert "Cells that failed" in page
    assert "comparisons, seed 0, fold 1" in page
    assert "IsADirectoryError" in page
    (folder.path / "cells" / f"{first.id}.part").rmdir()
    said = CliRunner().invoke(app, ["study", "tiny.toml", "--out", "out", "--resume"])
    assert said.exit_code == 0
    assert folder.done(first)


NETWORKS = """
import os, signal, time
from pathlib import Path
from torch import nn

def network():
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten())

def neighbour():
    if not Path("at-work").exists():
        Path("at-work").touch()
        time.sleep(600)
    return network()

def deadly():
    while not Path("at-work").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.timeout(300)
def test_a_process_that_dies_fails_its_own_cell_and_no_other(tiny, tmp_path, monkeypatch):
    (tmp_path / "networks_here.py").write_text(NETWORKS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(runner, "workers", lambda: 2)
    study = tiny('"local_only"', "8.0")
    common = study.common | {"models.pretrain_epochs": 0}
    arms = {
        arm: {"data.hospitals.children.architectures": [f"networks_here:{arm}"]}
        for arm in ("neighbour", "deadly", "network")
    }
    plan = plan_of(study.model_copy(update={"common": common, "arms": arms}))
    folder = StudyFolder.open(Path("out"), study, "", resume=False)
    cells = [plan.comparison(setting, 0, 0) for setting in plan.settings]
    said = []
    played = runner.play_all(
        [Job(cell, folder) for cell in cells],
        lambda cell: 0.0,
        1e9,
        lambda cell, fault: said.append((cell.id, bool(fault))),
    )
    assert [folder.done(cell) for cell in cells] == [True, False, True]
    assert list(played.failed) == [cells[1].id]
    assert "died" in played.failed[cells[1].id]
    assert sorted(said) == sorted((cell.id, cell is cells[1]) for cell in cells)


def test_a_budget_cuts_later_seeds_and_within_one_the_long_cells(tiny, monkeypatch):
    monkeypatch.setattr(runner, "workers", lambda: 1)
    study = tiny('"local_only"', "8.0").model_copy(update={"seeds": [3, 1]})
    folder = StudyFolder.open(Path("out"), study, "", resume=False)
    long, short, *later = plan_of(study).cells()
    played = runner.play_all(
        [Job(cell, folder) for cell in (long, short, *later)],
        lambda cell: 1e6 if cell is long else 1.0,
        1e3,
        lambda cell, fault: None,
    )
    assert [cell.config.run.seed for cell in later] == [1, 1]
    assert played.left == (long, *later)
    assert not played.failed
    assert [folder.done(cell) for cell in (long, short, *later)] == [False, True, False, False]


def test_own_networks_are_trained_once_for_all_noise_and_newcomers_are_predicted(tiny, monkeypatch):
    """Where nothing comes back to a site's own network, ε cannot matter to it."""
    monkeypatch.setattr(newcomers, "DRAWS", 1)
    asked, asked_about = [], baselines.asked_about

    def listened(images, *more):
        asked.append(images)
        return asked_about(images, *more)

    monkeypatch.setattr(baselines, "asked_about", listened)
    controls = '"noise_proxies", "in_domain_proxies"'
    study = tiny(f'"central", "personalised", "local_only", {controls}', "2.0, 8.0")
    common = study.common | {"system.downward": "off", "privacy.mechanism": "dp-sgd"}
    del common["privacy.shards"]
    common["data.hospitals"] = [
        *common["data.hospitals"],
        {"name": "late", "kind": "phantom", "hospital": "county", "images": 40}
        | {"architectures": ["test_efficientnet"]},
    ]
    models = [*study.models, "fitted", "few_labels"]
    arms = {"system": {"study.left_out": ["late"], "study.models": models}}
    study = study.model_copy(update={"common": common, "arms": arms})
    plan = plan_of(study)
    folder = StudyFolder.open(Path("out"), study, "", resume=False)
    one, two = (plan.federation(setting, 0, 0) for setting in plan.settings)
    assert play(Job(one, folder)) == ""
    # Of the two controls one is asked about the sites' own images, none of them held back.
    inside = start_of(one.config, folder)[0].sites
    own = {key for site in inside for key in keys_of(site.train.images)}
    held_back = {key for site in inside for key in keys_of(site.test.images)}
    noise, private = (set(keys_of(images)) for images in asked)
    assert len(private) == one.config.proxies.per_round
    assert private < own
    assert not private & held_back
    assert not noise & own
    kept = {file: file.stat().st_mtime_ns for file in folder.shared.iterdir()}
    assert len(kept) == 3
    assert play(Job(two, folder)) == ""
    assert {file: file.stat().st_mtime_ns for file in folder.shared.iterdir()} == kept
    assert play(Job(plan.comparison(plan.settings[0], 0, 0), folder)) == ""
    first, second = folder.arrays(one), folder.arrays(two)
    assert first["late:central"].shape == first["late:noise_proxies"].shape == (1, 20, 2)
    assert first["late:personalised"].shape == (3, 20, 2)
    assert first["late:fitted"].shape == first["late:few_labels"].shape == (1, 20, 2)
    assert not np.array_equal(first["late:fitted"], second["late:fitted"])
    assert "children:fitted" not in first
    asked_differently = ("central", "noise_proxies", "in_domain_proxies")
    for model, other in itertools.combinations(asked_differently, 2):
        assert not np.array_equal(first[f"children:{model}"], first[f"children:{other}"])
    assert not np.array_equal(first["children:central"], second["children:central"])
    alone = folder.arrays(plan.comparison(plan.settings[0], 0, 0))
    assert np.array_equal(alone["late:keys"], first["late:keys"])
    assert list(alone["late:local_only:sites"]) == ["children-1", "children-2", "children-3"]


def test_a_budget_that_holds_nothing_plays_nothing(tiny):
    study = tiny('"local_only"', "8.0")
    page = conduct(study, Wish(Path("out"), "natfl study", budget=0.001), quiet()).page
    assert "No setting has all its folds yet." in page.read_text(encoding="utf-8")
    assert Path("out/results.csv").read_text() == ""
    assert "<table" not in page.read_text(encoding="utf-8")


def test_a_dry_run_writes_nothing(tiny, tmp_path):
    before = set(tmp_path.rglob("*"))
    assert conduct(tiny(), Wish(Path("out"), "", dry=True), quiet()) is None
    assert set(tmp_path.rglob("*")) - before <= {tmp_path / "tiny.toml"}


def since_work_began(seconds: float):
    """Whether so much time has passed since a cell was first seen to be written to."""
    before, seen = newest(), []

    def ready() -> bool:
        if not seen and newest() > before:
            seen.append(time.monotonic())
        return bool(seen) and time.monotonic() > seen[0] + seconds

    return ready


def newest() -> int:
    found = [0]
    # Files come and go while they are looked at.
    with suppress(OSError):
        found += [file.stat().st_mtime_ns for file in Path("killed").glob("work/**/*")]
    return max(found)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_killed_ten_times_at_random_it_gives_the_same_tables(tiny):
    study = tiny('"central", "personalised", "local_only", "pooled"', '2.0, 8.0, "inf"')
    expected = whole(study, Path("whole"))
    rng = random.Random(5)
    for _ in range(10):
        more = ("--resume",) if Path("killed/study.json").exists() else ()
        kill_when(start(*more), since_work_began(rng.uniform(0, 4)))
    assert start("--resume").wait(1200) == 0
    same_tables(expected, Path("killed"))
    assert charges(Path("killed")) == charges(expected)


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_the_smoke_study_from_the_command_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "secure_natfl", "study", "smoke-study", "--out", "S"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("S/study.html")
    assert "nothing is charged yet" in done.stdout

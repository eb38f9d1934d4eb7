"""Studies played for real on a few phantoms: killed and taken up, failed cells, budgets, pages."""

import csv
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

from secure_natfl.study import newcomers, runner
from secure_natfl.study.cell import play
from secure_natfl.study.cell_run import Job
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
    assert conduct(study, Wish(out, "natfl study", resume=True), quiet()) is not None
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
    page = conduct(study, Wish(Path("killed"), "natfl study", resume=True), quiet())
    same_tables(expected, Path("killed"))
    assert charges(Path("killed")) == charges(expected)
    assert set(charges(expected).values()) == {1}
    assert not work.exists()
    assert page is not None
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
    study = tiny('"local_only"', "8.0")
    plan = plan_of(study)
    folder = StudyFolder.open(Path("out"), study, "", resume=False)
    first, second = plan.cells()
    # A file where the cell's own files must go: its disk refuses.
    (folder.path / "cells" / f"{first.id}.part").mkdir()
    faults = {cell.id: play(Job(cell, folder)) for cell in (first, second)}
    assert "Error" in faults[first.id]
    assert faults[second.id] == ""
    assert not folder.done(first)
    assert folder.done(second)


def test_own_networks_are_trained_once_for_all_noise_and_newcomers_are_predicted(tiny, monkeypatch):
    """Where nothing comes back to a site's own network, ε cannot matter to it."""
    monkeypatch.setattr(newcomers, "DRAWS", 1)
    study = tiny('"central", "personalised", "local_only", "noise_proxies"', "2.0, 8.0")
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
    assert not np.array_equal(first["children:central"], second["children:central"])
    alone = folder.arrays(plan.comparison(plan.settings[0], 0, 0))
    assert np.array_equal(alone["late:keys"], first["late:keys"])
    assert list(alone["late:local_only:sites"]) == ["children-1", "children-2", "children-3"]


def test_a_budget_that_holds_nothing_plays_nothing(tiny):
    study = tiny('"local_only"', "8.0")
    page = conduct(study, Wish(Path("out"), "natfl study", budget=0.001), quiet())
    assert page is not None
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

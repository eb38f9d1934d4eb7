"""A run that is killed at any moment is taken up again, and nothing is charged twice."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ARGUMENTS = (
    *("run", "smoke", "--out", "D"),
    *("--set", "run.baselines=false", "--set", "speed.threads=1"),
)


def start(folder: Path, homes: dict[str, str], *more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "secure_natfl", *ARGUMENTS, *more],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **homes},
    )


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The process, which does not outlive the block."""
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)
        process.stderr.close()


def charges(ledger: Path) -> list[tuple[str, int]]:
    """(session, round) of every line on disk, read as another program would."""
    with sqlite3.connect(f"file:{ledger}?mode=ro", uri=True) as database:
        lines = [json.loads(row[0]) for row in database.execute("SELECT line FROM lines")]
    return [(line["session"], line["round"]) for line in lines]


def kill_when(process: subprocess.Popen[bytes], ready, patience: float = 120) -> bool:
    """Kill -9 once `ready()` holds; False if the run ended before."""
    until = time.monotonic() + patience
    while time.monotonic() < until and process.poll() is None:
        if ready():
            process.send_signal(signal.SIGKILL)
            process.wait(30)
            return True
        time.sleep(0.002)
    return False


def play_with_kills(folder: Path, homes: dict[str, str], moments) -> dict:
    more: tuple[str, ...] = ()
    for ready in moments:
        with ended(start(folder, homes, *more)) as process:
            kill_when(process, ready)
        more = ("--resume",) if (folder / "D" / "run.json").exists() else ()
    with ended(start(folder, homes, *more)) as process:
        _, complaint = process.communicate(timeout=250)
    assert process.returncode == 0, complaint.decode()
    for ledger in (folder / "D" / "sites").glob("*/ledger.db"):
        lines = charges(ledger)
        assert len(lines) == len(set(lines)) == 2, ledger
    report = json.loads((folder / "D" / "report.json").read_text())
    assert report["privacy"]["epsilon"] <= 8.0
    assert all(site["lines"] == 2 for site in report["privacy"]["ledger"])
    return report


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    base = tmp_path_factory.mktemp("homes")
    return {"XDG_CACHE_HOME": str(base / "cache"), "XDG_STATE_HOME": str(base / "state")}


def test_killed_in_the_middle_of_a_round_and_after_it(tmp_path, homes):
    run = tmp_path / "D"

    def some_contribution() -> bool:
        index = run / "transcript" / "index.jsonl"
        return index.exists() and b'"contribution"' in index.read_bytes()

    def first_round_done() -> bool:
        return (run / "state" / "round-000").exists()

    play_with_kills(tmp_path, homes, [some_contribution, first_round_done])


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_killed_twenty_times_at_random(tmp_path, homes):
    rng = random.Random(7)

    def after(seconds: float):
        end = time.monotonic() + seconds
        return lambda: time.monotonic() > end

    moments = (after(rng.uniform(2, 20)) for _ in range(20))
    play_with_kills(tmp_path, homes, moments)

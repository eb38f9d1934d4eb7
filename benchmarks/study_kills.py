"""A study that is killed again and again against the same study played in one go.

`python -m benchmarks.study_kills docs/results/study-kills/study.toml --out kills --kills 10`

Each time all processes of the study get SIGKILL at a random moment after one of its cells was seen
at work; then it is taken up. At the end both folders' tables are compared byte by byte. Start it
where `data.root` of the study file points to the data.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

TABLES = ("results.csv", "results.parquet", "tests.csv", "subgroups.csv", "table.tex")
_LOOK = 0.02
_HOUR = 3600.0


def kills(study: str, out: Path, count: int, seed: int, longest: float) -> dict[str, Any]:
    """Play both; where each kill fell, and which tables differ. `longest`: seconds before a kill.

    RuntimeError where the study ends by itself before it was killed so often, or fails.
    """
    whole, killed, draw = out / "whole", out / "killed", np.random.default_rng(seed)
    began = time.monotonic()
    _finish(_start(study, whole))
    seconds = time.monotonic() - began
    fell: list[dict[str, float]] = []
    for _ in range(count):
        process, after = _start(study, killed), float(draw.uniform(0, longest))
        _wait(process, partial(_written_since, killed, _seen(killed)))
        _wait(process, partial(_past, time.monotonic() + after))
        if process.poll() is not None:
            raise RuntimeError(f"the study ended after {len(fell)} kills: lower --longest")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        done, begun = (len(list((killed / n).glob(p))) for n, p in _PLACES)
        fell.append({"seconds": round(after, 2), "cells": done, "begun": begun})
    _finish(_start(study, killed))
    differ = [n for n in TABLES if (whole / n).exists() and not _same(whole / n, killed / n)]
    charged = _charges(whole) == _charges(killed)
    return {"seconds": seconds, "kills": fell, "tables differ": differ, "charges equal": charged}


_PLACES = (("cells", "*.json"), ("work", "*"))


def _start(study: str, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "secure_natfl", "study", study, "--out", str(out)]
    if (out / "study.json").exists():
        command.append("--resume")
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)  # noqa: S603


def _finish(process: subprocess.Popen[bytes]) -> None:
    if process.wait():
        raise RuntimeError(f"the study ended with {process.returncode}")


def _wait(process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
    until = time.monotonic() + _HOUR
    while time.monotonic() < until and process.poll() is None and not ready():
        time.sleep(_LOOK)


def _past(moment: float) -> bool:
    return time.monotonic() > moment


def _written_since(folder: Path, moment: int) -> bool:
    return _seen(folder) > moment


def _seen(folder: Path) -> int:
    """When anything of a cell was last written, in nanoseconds."""
    newest = 0
    # Files come and go while they are looked at.
    with suppress(OSError):
        for file in folder.glob("work/**/*"):
            newest = max(newest, file.stat().st_mtime_ns)
    return newest


def _same(one: Path, other: Path) -> bool:
    return other.exists() and one.read_bytes() == other.read_bytes()


def _charges(folder: Path) -> dict[str, int]:
    """Ledger → its number of lines."""
    found = {}
    for path in folder.glob("ledgers/*/*/ledger.db"):
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            (found[str(path.relative_to(folder))],) = database.execute(
                "SELECT count(*) FROM lines"
            ).fetchone()
    return found


def main() -> None:
    """Print what came out as JSON; exit code 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", help="a study file, or a shipped study's name")
    parser.add_argument("--out", type=Path, required=True, help="an empty folder")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--longest", type=float, default=15.0, help="seconds before a kill")
    given = parser.parse_args()
    found = kills(given.study, given.out, given.kills, given.seed, given.longest)
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    sys.exit(bool(found["tables differ"]) or not found["charges equal"])


if __name__ == "__main__":
    main()

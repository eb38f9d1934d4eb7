"""A federation that runs for long while a share of all messages meets a fault.

`python -m benchmarks.soak --minutes 20 --faults 0.05`; for a day, `--minutes 1440`. The parties
are those of the fault tests: every attempt is a process of its own that opens everything from
disk, so every round is a restart as well. All invariants are checked every 25 rounds and at the
end; RuntimeError, or the broken invariant, ends the run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scale_server import peak_mib
from tests.faults.federation import Federation, killed_at
from tests.faults.network import Schedule

ROUNDS = 5000
EVERY = 25


def soak(minutes: float, faults: float, seed: int = 0) -> dict[str, Any]:
    """Play rounds until the time is over; counts, and the slopes of memory and descriptors.

    faults: the probability that a message is lost, late, repeated, swapped or torn, all together;
    as often a key holder restarts, and an attempt's process is killed.
    """
    draw, ends, began = np.random.default_rng(seed), Counter[str](), time.monotonic()
    share = faults / 5
    names = ("drop", "delay", "duplicate", "swap", "tear")
    with tempfile.TemporaryDirectory() as name:
        made, number, tries = Federation(Path(name), rounds=ROUNDS), 0, 0

        def watch(moment: str) -> None:
            if moment == "before audit record":
                descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count
                made.tape.note("memory", round=number, mib=peak_mib(), fds=descriptors)

        while time.monotonic() - began < 60 * minutes and number < ROUNDS:
            # Each message meets a fault; a first attempt mostly fails, so later ones have fewer.
            rates = dict.fromkeys(names, share / 2 ** min(tries, 6))
            schedule = Schedule(seed=int(draw.integers(2**31)), restart=share, **rates)
            kill = draw.random() < faults
            watcher = killed_at(int(draw.integers(200))) if kill else watch
            ended = made.attempt(number, schedule, watcher)
            ends[ended.name.lower()] += 1
            tries += 1
            opened = made.opened(number) is not None
            if opened or tries == 12:
                ends["rounds opened" if opened else "rounds given up"] += 1
                number, tries = number + 1, 0
                if number % EVERY == 0:
                    made.check()
        counts = made.check()
        noted = [note for note in made.tape.read() if note["what"] == "memory"]
    hours = (time.monotonic() - began) / 3600
    return {
        "minutes": 60 * hours,
        "faults": faults,
        "rounds": number,
        **ends,
        "charges": counts.charges,
        "openings": counts.openings,
        "violations": 0,
        "memory_kib_per_round": 1024 * _slope(noted, "mib"),
        "memory_mib_per_hour_at_83_rounds": 83 * _slope(noted, "mib"),
        "descriptors": sorted({note["fds"] for note in noted}),
        "seed": seed,
    }


def _slope(noted: list[dict[str, Any]], figure: str) -> float:
    """Growth of a figure per round, least squares; 0 with fewer than three rounds."""
    if len(noted) < 3:
        return 0.0
    return float(np.polyfit([n["round"] for n in noted], [n[figure] for n in noted], 1)[0])


def main() -> None:
    """Soak, then print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--faults", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    figures = soak(options.minutes, options.faults, options.seed)
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""A federation that runs for long while a share of all messages meets a fault.

`python -m benchmarks.soak --minutes 20 --faults 0.05`; for a day, `--minutes 1440`. The parties
are those of the fault tests. They work in one process until it is killed, or for 25 rounds; the
next one opens everything from disk. After every 25 rounds, and at the end, a process of its own
checks all invariants. A broken one ends the run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from protocols import durable
from protocols.audit_log import AuditLog
from protocols.errors import NatflError
from protocols.transcript import Transcript
from tests.faults.federation import AtWork, Ended, Federation, killed_at
from tests.faults.network import Schedule

ROUNDS = 5000
EVERY = 25
TRIES = 12
PARTIES = ("server", "site")
KINDS = ("drop", "delay", "duplicate", "swap", "tear")


@dataclass
class Soak:
    """A federation, until `end` on the monotonic clock, under faults at a rate."""

    made: Federation
    faults: float
    seed: int
    end: float

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() > self.end

    def run(self) -> None:
        """Lives of the parties, one after another, and checks between them."""
        while not self.over and self._number < ROUNDS:
            before = self._number
            # A life that ends in an error began with files that its party cannot use.
            if self.made.apart(self._live) is Ended.REFUSED:
                raise AssertionError(self.made.tape.read()[-1]["why"])
            if before // EVERY != self._number // EVERY:
                self.check()

    def check(self) -> None:
        """All invariants, and what a party holds, in processes whose memory goes with them."""
        self.made.apart(lambda: self.made.tape.note("counts", **asdict(self.made.check())))
        for party in PARTIES:
            self.made.apart(partial(self._weigh, party))

    def _weigh(self, party: str) -> None:
        """Memory of one party alone that has opened its files and nothing else."""
        made, before = self.made, anonymous_kib()
        with ExitStack() as stack:
            if party == "server":
                stack.enter_context(Transcript(made.folder / "transcript"))
                stack.enter_context(AuditLog(made.folder / "audit.jsonl"))
            else:
                stack.enter_context(made.ledger("a"))
                stack.callback(made.holder("a.holder").close)
            held = anonymous_kib() - before
            self.made.tape.note("held", how=party, round=self._number, kib=held)

    def _live(self) -> None:
        """Rounds in one process that opens everything from disk; `killed_at` ends it."""
        with self.made.at_work() as at_work:
            began = self._number // EVERY
            while not self.over and self._number // EVERY == began and self._number < ROUNDS:
                self._attempt(at_work, *self._place)

    def _attempt(self, at_work: AtWork, number: int, tries: int) -> None:
        """One attempt; where it stands is written down before, since it may be killed."""
        draw, last = np.random.default_rng((self.seed, number, tries)), tries + 1 == TRIES
        share = self.faults / 5
        # Each message meets a fault; a first attempt mostly fails, so later ones have fewer.
        rates = dict.fromkeys(KINDS, share / 2 ** min(tries, 6))
        schedule = Schedule(seed=int(draw.integers(2**31)), restart=share, **rates)
        kill = draw.random() < self.faults
        watcher = killed_at(int(draw.integers(200))) if kill else lambda _: None
        self._stand(*((number + 1, 0) if last else (number, tries + 1)))
        with durable.watched(watcher):
            try:
                self.made.play(at_work, number, schedule)
            except NatflError:
                self._note("shut" if last else "again", number)
            else:
                self._stand(number + 1, 0)
                self._note("opened", number)

    def _note(self, how: str, number: int) -> None:
        descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count
        fields = {"pid": os.getpid(), "round": number, "kib": anonymous_kib(), "fds": descriptors}
        self.made.tape.note("attempt", how=how, **fields)

    def _stand(self, number: int, tries: int) -> None:
        (self.made.folder / "place").write_text(f"{number} {tries}", encoding="ascii")

    @property
    def _place(self) -> tuple[int, int]:
        path = self.made.folder / "place"
        number, tries = path.read_text(encoding="ascii").split() if path.exists() else (0, 0)
        return int(number), int(tries)

    @property
    def _number(self) -> int:
        return self._place[0]


def soak(minutes: float, faults: float, seed: int = 0) -> dict[str, Any]:
    """Play rounds until the time is over; counts, and the slopes of memory and descriptors.

    faults: the probability that a message is lost, late, repeated, swapped or torn, all together;
    as often an attempt's process is killed, and a fifth as often, per message, a key holder
    restarts.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        made = Federation(Path(name), rounds=ROUNDS)
        Soak(made, faults, seed, began + 60 * minutes).run()
        hours = (time.monotonic() - began) / 3600
        counts = made.check()
        tape = made.tape.read()
        lines = len((made.folder / "transcript" / "index.jsonl").read_bytes().splitlines())
    notes = [note for note in tape if note["what"] == "attempt"]
    ends = Counter(note["how"] for note in notes)
    rounds = notes[-1]["round"] + 1
    grows = {"all in one process": _slope([n for n in notes if n["how"] == "opened"])}
    held = [note for note in tape if note["what"] == "held"]
    grows |= {party: _slope([n for n in held if n["how"] == party]) for party in PARTIES}
    return {
        "minutes": 60 * hours,
        "faults": faults,
        "rounds": rounds,
        "rounds_opened": ends["opened"],
        "rounds_given_up": ends["shut"],
        "attempts_refused": ends["again"] + ends["shut"],
        "processes": len({note["pid"] for note in notes}),
        "messages": lines,
        "charges": counts.charges,
        "openings": counts.openings,
        "violations": 0,
        "memory_mib": [notes[0]["kib"] / 1024, notes[-1]["kib"] / 1024],
        "kib_per_round": {who: slope for who, (slope, _) in grows.items()},
        "kib_per_round_error": {who: error for who, (_, error) in grows.items()},
        "mib_per_hour": {who: s * rounds / hours / 1024 for who, (s, _) in grows.items()},
        "mib_per_hour_at_2000_rounds_a_day": {
            who: slope * 2000 / 24 / 1024 for who, (slope, _) in grows.items()
        },
        "descriptors": sorted({note["fds"] for note in notes}),
        "seed": seed,
    }


def anonymous_kib() -> int:
    """This process's memory that is backed by no file, from Linux."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("RssAnon:")[1].split()[0])


def _slope(notes: list[dict[str, Any]]) -> tuple[float, float]:
    """KiB per round, by least squares, and its standard error."""
    if len(notes) < 4:
        return float("nan"), float("nan")
    rounds, kib = (np.array([note[name] for note in notes]) for name in ("round", "kib"))
    (slope, _), covariance = np.polyfit(rounds, kib, 1, cov=True)
    return float(slope), float(np.sqrt(covariance[0, 0]))


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

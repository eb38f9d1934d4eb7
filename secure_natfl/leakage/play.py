"""Plays a table of attacks arm by arm, within a time, and judges it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from attacks.rows import Budget, Measured, Row, Tier
from attacks.verdicts import Finding, judge
from protocols.errors import NatflError
from secure_natfl.leakage.kept import Kept, Played
from secure_natfl.leakage.record import OWN, Criteria
from secure_natfl.progress import Stages
from secure_natfl.report.formats import duration

BUDGETS: Final[Mapping[Tier, Budget]] = {
    "fast": Budget(targets=24, seconds=45, restarts=4, iterations=200),
    "full": Budget(targets=200, seconds=7200),
}
"""What an attacker may spend; `seconds` is for the whole table."""

TARGETS: Final[Mapping[Tier, Mapping[str, int]]] = {
    "fast": {"C1": 60, "C2": 1, "C2b": 1, "L3": 16},
    "full": {
        "A1": 64,
        "A9": 1400,
        "A12": 64,
        "C1": 1400,
        "C2": 2,
        "C2b": 2,
        "C3": 80,
        "L1e": 64,
        "L3": 16,
        "L4": 64,
        "L5b": 64,
        "P2": 64,
    },
}
"""Rows that need other numbers of trials than the tier's for their margin, or can pay for fewer."""

_SAME_DRAWS: Final = {"G1i": "G1", "G3i": "G3"}
"""Rows that score the guesses of another, and so draw as it does."""


def criteria_of(row: Row, run: str, promise: str = "") -> Criteria:
    """A row as it is stated before it is played; `run` tells this run's draws from another's.

    promise: what a leak of the run's own arm would break, from `promised.promise_of`.
    """
    drawn = _SAME_DRAWS.get(row.id, row.id)
    seed = int.from_bytes(hashlib.sha256(f"{run} {drawn}".encode()).digest()[:4], "big")
    return Criteria(
        id=row.id,
        title=row.title,
        view=row.view,
        needs=tuple(sorted(need.name for need in row.needs)),
        metric=row.metric,
        statistic=row.statistic,
        margin=row.margin,
        control_margin=row.control_margin,
        arms=row.arms,
        tier=row.tier,
        promise=promise,
        seed=seed,
    )


def play_all(
    rows: Sequence[Row],
    stated: Mapping[str, Criteria],
    kept: Kept,
    tier: Tier,
    budget: Budget,
    stages: Stages,
) -> tuple[dict[tuple[str, str], Played], dict[tuple[str, str], str]]:
    """Every arm of every row: what it scored, and why it could not be played, by (row, arm).

    Each row's control and the run's own arm come before what stands beside them for comparison, so
    that a short time gives verdicts on the run. Arms share what is left of `budget.seconds`, those
    of one row alike; what was played before is not played again. An attack that breaks down is no
    attack that failed: its arm is left without a result, and the table says so.
    """
    played: dict[tuple[str, str], Played] = {}
    missing: dict[tuple[str, str], str] = {}
    until = time.monotonic() + budget.seconds
    pending, shares = [], dict[str, float]()
    for row, arm in in_order(rows):
        before = kept.load(row.id, arm)
        if before is None:
            pending.append((row, arm))
        else:
            played[row.id, arm] = before
            shares[row.id] = before.budget.seconds
    for at, (row, arm) in enumerate(pending):
        left = until - time.monotonic()
        if left <= 0:
            missing[row.id, arm] = "the time was up; the same command goes on from here"
            continue
        share = shares.setdefault(row.id, left / (len(pending) - at))
        targets = TARGETS[tier].get(row.id, budget.targets)
        allowed = replace(budget, seconds=share, targets=targets)
        random = np.random.default_rng(stated[row.id].seed)
        with stages.stage(row.id, f"{arm} (at most {duration(left)} left)"):
            kept.begin(row.id, arm, allowed)
            try:
                played[row.id, arm] = _play(row, arm, allowed, random)
                kept.save(row.id, played[row.id, arm])
            except NatflError as error:
                missing[row.id, arm] = str(error)
            except Exception as error:  # a defect of one attack must not end the table
                missing[row.id, arm] = f"it broke down: {type(error).__name__}: {error}"
    return played, missing


def in_order(rows: Sequence[Row]) -> list[tuple[Row, str]]:
    """All arms: of every row its control and the run's own, and then the others."""
    first = [(row, arm) for row in rows for arm in row.arms if arm in (row.arms[0], *OWN)]
    others = [(row, arm) for row in rows for arm in row.arms if arm not in (row.arms[0], *OWN)]
    return first + others


def judged(
    rows: Sequence[Row], played: Mapping[tuple[str, str], Played], seed: int
) -> tuple[Finding, ...]:
    """The findings on what was played; the bootstrap draws from `seed`."""
    measured: dict[tuple[str, str], Measured] = {key: one.measured for key, one in played.items()}
    return judge(rows, measured, np.random.default_rng(seed))


def _play(row: Row, arm: str, budget: Budget, random: np.random.Generator) -> Played:
    start = time.perf_counter()
    measured = row.play(arm, budget, random)
    return Played(measured, budget, time.perf_counter() - start)

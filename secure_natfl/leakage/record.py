"""What an attack on a run reports: the frozen records behind `attacks.json` and `attacks.html`."""

from __future__ import annotations

from datetime import datetime
from typing import Final, Literal

from pydantic import FiniteFloat

from attacks.rows import Statistic, Tier
from attacks.verdicts import Verdict
from secure_natfl.report.model import Count, PngUri, Record, Seconds, Sha256

OWN: Final = ("protected", "nothing shown")
"""Arms that are the run's own protection; the others stand beside them for comparison."""


OVER_EPSILON: Final = "L1e"
"""The row whose arms are the run's mechanism at several ε."""


class ArmResult(Record):
    """One arm of a row, with what `attacks.verdicts.Finding` says of it.

    score: the attack's mean, in the row's metric; baselines: theirs. roc: points (FPR, TPR) where
    the statistic is an area. pictures: original, reconstruction and best baseline, side by side.
    """

    arm: str
    verdict: Verdict
    why: str
    effect: FiniteFloat | None
    low: FiniteFloat | None
    high: FiniteFloat | None
    p: FiniteFloat | None
    power: FiniteFloat | None
    trials: Count
    clusters: Count
    baseline: str
    score: FiniteFloat | None
    baselines: dict[str, FiniteFloat]
    extra: dict[str, FiniteFloat]
    seconds: Seconds
    roc: tuple[tuple[FiniteFloat, FiniteFloat], ...] = ()
    pictures: tuple[tuple[PngUri, PngUri, PngUri], ...] = ()


class Spent(Record):
    """What an attacker might spend on each arm of a row."""

    targets: Count
    seconds: Seconds
    restarts: Count
    iterations: Count


class Criteria(Record):
    """A row as it was fixed before any arm was played; `seed` is that of the attacker's draws.

    promise: what a leak of the run's own arm breaks; empty where nothing of it was promised.
    """

    id: str
    title: str
    view: str
    needs: tuple[str, ...]
    metric: str
    statistic: Statistic
    margin: FiniteFloat
    control_margin: FiniteFloat
    arms: tuple[str, ...]
    tier: Tier
    promise: str = ""
    seed: Count


class AttackRow(Record):
    """One line of the table with all its arms, the positive control first."""

    criteria: Criteria
    budget: Spent
    arms: tuple[ArmResult, ...]


class NotTested(Record):
    """Something that no verdict speaks of."""

    what: str
    why: str


class AttackReport(Record):
    """All attacks on one run that were played in one tier, by the last call or before it.

    command: the last call's.
    """

    schema_version: Literal["1"] = "1"
    product_version: str
    created_utc: datetime
    name: str
    command: str
    config_sha256: Sha256
    transcript_sha256: Sha256
    mode: str
    mechanism: str
    epsilon: str
    seeded: bool
    tier: Tier
    seconds: Seconds
    level: FiniteFloat
    rows: tuple[AttackRow, ...]
    not_tested: tuple[NotTested, ...]
    environment: dict[str, str]

    def count(self, verdict: Verdict, *, own: bool) -> int:
        """How many arms have this verdict: those as the run protects itself, or the others."""
        return sum(
            arm.verdict is verdict and (arm.arm in OWN) == own
            for row in self.rows
            for arm in row.arms[1:]
        )

"""From scores and findings to the report that is written."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
from PIL import Image

from attacks.rows import Budget, Measured, Row, Tier
from attacks.scores import Floats, tpr_at_fpr
from attacks.verdicts import LEVEL, Finding
from secure_natfl import __version__
from secure_natfl.costs import environment
from secure_natfl.leakage.attacked import AttackedRun
from secure_natfl.leakage.kept import Played
from secure_natfl.leakage.record import (
    ArmResult,
    AttackReport,
    AttackRow,
    Criteria,
    NotTested,
    Spent,
)
from secure_natfl.report.formats import epsilon

_PICTURES = 6
_RESOLVED = 10  # others above a threshold that a false-positive rate must rest on
_POINTS = 60

Key = tuple[str, str]


def assemble(
    run: AttackedRun,
    rows: Sequence[Row],
    stated: Mapping[str, Criteria],
    played: Mapping[Key, Played],
    missing: Mapping[Key, str],
    findings: Sequence[Finding],
    not_tested: Iterable[NotTested],
    *,
    tier: Tier,
    budget: Budget,
    command: str,
) -> AttackReport:
    """The whole report of one call."""
    judged = {(one.row, one.arm): one for one in findings}
    return AttackReport(
        product_version=__version__,
        created_utc=datetime.now(UTC),
        name=run.config.run.name,
        command=command,
        config_sha256=run.report.config_sha256,
        transcript_sha256=run.transcript.head,
        mode=run.config.mode,
        mechanism=run.config.privacy.mechanism,
        epsilon=epsilon(run.report.privacy.epsilon),
        seeded=run.config.seeded,
        tier=tier,
        seconds=sum(one.seconds for one in played.values()),
        level=LEVEL,
        rows=tuple(_row(row, stated[row.id], played, missing, judged, budget) for row in rows),
        not_tested=tuple(not_tested),
        environment=environment(),
    )


def roc(measured: Measured) -> Iterator[tuple[float, float]]:
    """Points (FPR, TPR) at false-positive rates that rest on ten others at least."""
    if measured.members is None:
        return
    inside, outside = measured.scores[measured.members], measured.scores[~measured.members]
    least = _RESOLVED / max(len(outside), 1)
    if len(inside) and least < 1:
        for rate in np.geomspace(least, 1, _POINTS):
            yield float(rate), tpr_at_fpr(inside, outside, float(rate))


def _row(
    row: Row,
    stated: Criteria,
    played: Mapping[Key, Played],
    missing: Mapping[Key, str],
    judged: Mapping[Key, Finding],
    budget: Budget,
) -> AttackRow:
    budgets = [played[row.id, arm].budget for arm in row.arms if (row.id, arm) in played]
    spent = max(budgets, key=lambda one: one.seconds, default=budget)
    return AttackRow(
        criteria=stated,
        budget=Spent(
            targets=spent.targets,
            seconds=spent.seconds,
            restarts=spent.restarts,
            iterations=spent.iterations,
        ),
        arms=tuple(
            _arm(judged[row.id, arm], played.get((row.id, arm)), missing.get((row.id, arm)))
            for arm in row.arms
        ),
    )


def _arm(finding: Finding, played: Played | None, missing: str | None) -> ArmResult:
    found = None if played is None else played.measured
    usable = found is not None and finding.effect is not None
    return ArmResult(
        arm=finding.arm,
        verdict=finding.verdict,
        why=finding.why if missing is None else f"{finding.why}: {missing}",
        effect=finding.effect,
        low=finding.low,
        high=finding.high,
        p=finding.p,
        power=finding.power,
        trials=finding.trials,
        clusters=finding.clusters,
        baseline=finding.baseline,
        score=_finite(found.scores.mean()) if found is not None else None,
        baselines=_means(found.baselines) if found is not None else {},
        extra=_finite_only(found.extra) if found is not None else {},
        seconds=0.0 if played is None else played.seconds,
        roc=tuple(roc(found)) if usable and found is not None else (),
        pictures=tuple(_pictures(found.pictures)) if found is not None else (),
    )


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _finite_only(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in figures.items() if math.isfinite(value)}


def _means(baselines: Mapping[str, Floats]) -> dict[str, float]:
    return _finite_only({name: float(values.mean()) for name, values in baselines.items()})


def _pictures(pictures: Floats | None) -> Iterator[tuple[str, str, str]]:
    """A few rows of original, reconstruction and best baseline, as data URIs."""
    if pictures is None:
        return
    for original, guess, baseline in pictures[:_PICTURES]:
        yield _png(original), _png(guess), _png(baseline)


def _png(image: Floats) -> str:
    grey = np.nan_to_num(np.clip(image, 0, 1)) * 255
    out = io.BytesIO()
    Image.fromarray(grey.round().astype(np.uint8)).save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"

"""Verdicts on a table of attacks: LEAKS, NO LEAK DETECTED within a margin, or INCONCLUSIVE.

Criteria are a row's own and stand before any defended arm is played. A verdict fails closed: where
the positive control did not succeed, a score is no number, the attack did worse than its own prior,
the interval is wider than the margin, or all trials gained the same, so that nobody can say what
would have been noticed, nothing is concluded. No verdict says "secure".
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from attacks.rows import Measured, Row
from attacks.scores import Floats
from attacks.statistics import Evidence, area, holm, mean_gain, share

ALPHA: Final = 0.025
"""One-sided error of every statement: that of either end of a 95 % interval."""

LEVEL: Final = 1 - 2 * ALPHA

NOTHING_SHOWN: Final = "nothing shown"
"""The arm where no message exists to attack: there nothing can be noticed, and nothing is there."""


class Verdict(StrEnum):
    """What a row says of one arm."""

    LEAKS = "LEAKS"
    NO_LEAK = "NO LEAK DETECTED"
    INCONCLUSIVE = "INCONCLUSIVE"
    CONTROL = "CONTROL"


ALIKE: Final = (
    "every trial gained the same, as where the attacker never leaves its prior, so that no power "
    "can be stated"
)
"""Why an arm without any spread, but for `NOTHING_SHOWN`, concludes nothing."""


@dataclass(frozen=True)
class Finding:
    """One arm of one row, judged; `verdict` is CONTROL for the positive control that succeeded.

    effect: over the best `baseline`, over ½ for areas, over chance for rates, with its 95 %
    interval; None where it cannot be computed. p: against "no effect", after Holm over all
    defended arms (the control's own is not corrected). power: probability that an effect as large
    as the margin would have been called a leak here, None where all trials are alike. clusters:
    independent ones among the trials.
    """

    row: str
    arm: str
    verdict: Verdict
    why: str
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    power: float | None = None
    trials: int = 0
    clusters: int = 0
    baseline: str = ""


@dataclass(frozen=True)
class _Weighed:
    """An arm's evidence on its effect, and on how it compares with the attack's own prior."""

    evidence: Evidence
    against_prior: Evidence
    baseline: str
    trials: int


class _UnusableError(Exception):
    """Why an arm has no evidence; the message is a sentence's end."""


def judge(
    rows: Iterable[Row],
    measured: Mapping[tuple[str, str], Measured],
    random: np.random.Generator,
) -> tuple[Finding, ...]:
    """Judge every arm of every row; `measured` by (row, arm), what is missing was not played.

    random: for the bootstrap; a study hands in a seeded one.
    """
    table = [(row, arm) for row in rows for arm in row.arms]
    weighed = {
        (row.id, arm): _weigh(row, measured.get((row.id, arm)), random) for row, arm in table
    }
    defended = [(row.id, arm) for row, arm in table if arm != row.arms[0]]
    adjusted = dict(zip(defended, holm([_p(weighed[key]) for key in defended]), strict=True))
    return tuple(
        _control(row, weighed[row.id, arm])
        if arm == row.arms[0]
        else _defended(
            row, arm, weighed[row.id, row.arms[0]], weighed[row.id, arm], adjusted, len(defended)
        )
        for row, arm in table
    )


def _weigh(
    row: Row, found: Measured | None, random: np.random.Generator
) -> _Weighed | _UnusableError:
    if found is None:
        return _UnusableError("was not played")
    try:
        _check(row, found)
        return _STATISTICS[row.statistic](found, random)
    except _UnusableError as reason:
        return reason


def _check(row: Row, found: Measured) -> None:
    trials = found.scores.shape
    if len(trials) != 1 or trials[0] < 1 or found.clusters.shape != trials:
        raise _UnusableError("has no trials, or clusters of another number")
    columns = {"the attack": found.scores, **found.baselines}
    for name, values in columns.items():
        if values.shape != trials or not np.isfinite(values).all():
            raise _UnusableError(f"has a score that is not a number ({name})")
    needed = {"rate": "chance" in found.baselines, "gain": bool(found.baselines), "auc": True}
    if not needed[row.statistic]:
        raise _UnusableError("has no baseline to compare with")


def _gain(found: Measured, random: np.random.Generator) -> _Weighed:
    means = {name: float(values.mean()) for name, values in found.baselines.items()}
    best = max(means, key=lambda name: means[name])
    prior = "prior" if "prior" in means else best

    def over(name: str) -> Evidence:
        return mean_gain(found.scores - found.baselines[name], found.clusters, random)

    evidence = over(best)
    return _Weighed(evidence, evidence if prior == best else over(prior), best, len(found.scores))


def _auc(found: Measured, random: np.random.Generator) -> _Weighed:
    members = found.members
    if members is None or members.shape != found.scores.shape or len(set(members.tolist())) < 2:
        raise _UnusableError("needs members and others")
    evidence = area(found.scores, members, found.clusters, random)
    return _Weighed(evidence, evidence, "chance", len(found.scores))


def _rate(found: Measured, _: np.random.Generator) -> _Weighed:
    hits: Floats = found.scores
    if not np.isin(hits, (0.0, 1.0)).all():
        raise _UnusableError("has successes that are neither 0 nor 1")
    evidence = share(hits, float(found.baselines["chance"].mean()), found.clusters)
    return _Weighed(evidence, evidence, "chance", len(hits))


_STATISTICS: Final = {"gain": _gain, "auc": _auc, "rate": _rate}


def _p(found: _Weighed | _UnusableError) -> float:
    return 1.0 if isinstance(found, _UnusableError) else found.evidence.p_at_most(0)


def _control(row: Row, found: _Weighed | _UnusableError) -> Finding:
    arm = row.arms[0]
    failed = _control_failed(row, found)
    verdict = Verdict.INCONCLUSIVE if failed else Verdict.CONTROL
    why = failed or f"the attack succeeds by more than {row.control_margin:g}, as it must"
    if isinstance(found, _UnusableError):
        return Finding(row.id, arm, verdict, why)
    return _finding(row, arm, verdict, why, found, found.evidence.p_at_most(0), None)


def _control_failed(row: Row, control: _Weighed | _UnusableError) -> str:
    """Why the positive control does not count, or nothing."""
    if isinstance(control, _UnusableError):
        return f"the positive control {control}"
    if control.evidence.p_at_most(row.control_margin) > ALPHA:
        return (
            f"the positive control did not succeed by more than {row.control_margin:g}, so a "
            "failure elsewhere would say nothing"
        )
    return ""


def _defended(
    row: Row,
    arm: str,
    control: _Weighed | _UnusableError,
    found: _Weighed | _UnusableError,
    adjusted: Mapping[tuple[str, str], float],
    family: int,
) -> Finding:
    if isinstance(found, _UnusableError):
        return Finding(row.id, arm, Verdict.INCONCLUSIVE, f"the arm {found}")
    p, power = adjusted[row.id, arm], found.evidence.power(row.margin, ALPHA / family)
    verdict, why = _verdict(row, arm, _control_failed(row, control), found, p, power)
    return _finding(row, arm, verdict, why, found, p, power)


def _verdict(
    row: Row, arm: str, failed: str, found: _Weighed, p: float, power: float | None
) -> tuple[Verdict, str]:
    evidence = found.evidence
    if p <= ALPHA:
        return Verdict.LEAKS, "the effect is above 0, the whole table allowed for"
    if failed:
        return Verdict.INCONCLUSIVE, failed
    if found.against_prior.p_at_least(0) <= ALPHA:
        return Verdict.INCONCLUSIVE, "the attack does worse than its own prior: it is broken"
    if evidence.p_at_least(row.margin) > ALPHA:
        high = evidence.interval(LEVEL).high
        why = f"the effect may be as large as {high:.3g}, beyond the margin of {row.margin:g}"
        return Verdict.INCONCLUSIVE, why
    if power is not None:
        known = f"one of that size would have been called a leak with probability {power:.2f}"
        return Verdict.NO_LEAK, f"no effect of {row.margin:g} or more; {known}"
    if arm == NOTHING_SHOWN:
        return Verdict.NO_LEAK, "no message of this kind exists to attack"
    return Verdict.INCONCLUSIVE, ALIKE


def _finding(
    row: Row,
    arm: str,
    verdict: Verdict,
    why: str,
    found: _Weighed,
    p: float,
    power: float | None,
) -> Finding:
    interval = found.evidence.interval(LEVEL)
    return Finding(
        row=row.id,
        arm=arm,
        verdict=verdict,
        why=why,
        effect=found.evidence.estimate,
        low=interval.low,
        high=interval.high,
        p=p,
        power=power,
        trials=found.trials,
        clusters=found.evidence.clusters,
        baseline=found.baseline,
    )

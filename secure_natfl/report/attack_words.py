"""Words on attacks, the same in every report that speaks of them."""

from __future__ import annotations

from attacks.verdicts import Verdict
from secure_natfl.leakage.record import ArmResult, AttackReport
from secure_natfl.report import formats

READS = {
    Verdict.LEAKS: "The attack does better than the best guess without looking, the whole table "
    "allowed for.",
    Verdict.NO_LEAK: "This attack, with this budget, gained less than the margin. It is no proof "
    "that none could.",
    Verdict.INCONCLUSIVE: "Nothing is concluded: the control failed, the interval is wider than "
    "the margin, or the attack did not work as it should or never left its prior.",
    Verdict.CONTROL: "The undefended arm, on which the attack had to succeed and did.",
}


def lead(report: AttackReport) -> str:
    """The sentences that open page and section: how many arms have which verdict."""
    rows = formats.plural(len(report.rows), "attack")
    others = _counts(report, own=False)
    beside = f" Beside it, for comparison, less or other protection: {others}." if others else ""
    return (
        f"{rows} on {report.mode} with {report.mechanism} (ε = {report.epsilon}). As this run "
        f"protects itself: {_counts(report, own=True) or 'not tested'}.{beside}"
    )


def _counts(report: AttackReport, *, own: bool) -> str:
    words = {
        Verdict.LEAKS: "leak",
        Verdict.NO_LEAK: "without a leak detected",
        Verdict.INCONCLUSIVE: "inconclusive",
    }
    found = {verdict: report.count(verdict, own=own) for verdict in words}
    if not any(found.values()):
        return ""
    return ", ".join(f"{number} {words[verdict]}" for verdict, number in found.items())


def gain(arm: ArmResult) -> str:
    """An arm's effect, or a dash."""
    return "–" if arm.effect is None else _figure(arm.effect)


def bounds(arm: ArmResult) -> str:
    """Its interval, or nothing."""
    if arm.low is None or arm.high is None:
        return ""
    return f"{_figure(arm.low)} to {_figure(arm.high)}"


def _figure(value: float) -> str:
    return f"{value:.3g}".replace("-", "\u2212")

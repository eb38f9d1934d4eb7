"""`attacks.html`: the table of attacks on a run as one self-contained page."""

from __future__ import annotations

from secure_natfl.leakage.record import AttackReport
from secure_natfl.report import attack_figures, attack_words
from secure_natfl.report.render import pages


def attacks_html(report: AttackReport) -> str:
    """The page of one call of `natfl attack`."""
    return (
        pages()
        .get_template("attacks.html.j2")
        .render(
            report=report,
            lead=attack_words.lead(report),
            verdicts=attack_words.READS,
            effects=attack_figures.effects(report),
            over_epsilon=attack_figures.over_epsilon(report),
            roc=attack_figures.roc_curves(report),
            say=attack_words,
            shows_images=any(arm.pictures for row in report.rows for arm in row.arms),
        )
    )

"""The evidence as one page, in the reports' visual language; made from the evidence alone."""

from __future__ import annotations

from datetime import datetime

from secure_natfl.audit.clauses import counted
from secure_natfl.audit.evidence import Evidence
from secure_natfl.report import formats
from secure_natfl.report.render import pages
from secure_natfl.report.words import Tile


def evidence_html(evidence: Evidence) -> str:
    """One self-contained page without scripts; the audit writes it beside the evidence."""
    return (
        pages()
        .get_template("evidence.html.j2")
        .render(
            evidence=evidence,
            created=datetime.fromisoformat(evidence.created_utc),
            broken=[one for one in evidence.checks if one.outcome == "broken"],
            tiles=_tiles(evidence),
            counts=counted(evidence.clauses),
            read=sum(row.text_checked_on is not None for row in evidence.clauses),
        )
    )


def _tiles(evidence: Evidence) -> list[Tile]:
    accounting = evidence.privacy.accounting
    outcomes = [one.outcome for one in evidence.checks]
    return [
        Tile(
            "Checks that hold",
            f"{outcomes.count('holds')} of {len(outcomes)}",
            f"{outcomes.count('broken')} broken, {outcomes.count('unchecked')} not made.",
        ),
        Tile(
            f"ε at δ = {formats.power(accounting.delta)}",
            formats.epsilon(accounting.epsilon),
            f"Recomputed; {formats.epsilon(accounting.epsilon_isolated)} with everyone else "
            "colluding.",
        ),
        Tile(
            "Log",
            formats.plural(evidence.log.entries, "record"),
            f"{formats.plural(evidence.log.checkpoints, 'checkpoint')}, the end co-signed by "
            f"{formats.plural(len(evidence.log.cosigners), 'site')}.",
        ),
        Tile(
            "For people to state",
            formats.plural(len(evidence.missing), "field"),
            "Purpose, grounds, retention and the like, in operator.toml.",
        ),
    ]

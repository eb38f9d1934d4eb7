"""Which rows a run is attacked with, and what no row speaks of."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from attacks.rows import Row, Tier
from attacks.threat import Capability, ThreatError, capabilities
from protocols.errors import ConfigError
from protocols.transcript import NETWORK
from secure_natfl.leakage.attacked import AttackedRun
from secure_natfl.leakage.record import NotTested

_NEVER = (
    NotTested(
        what="transport, operating systems, and who really runs the parties",
        why="a run plays all parties on one machine",
    ),
    NotTested(
        what="attackers with knowledge that no row declares, or with larger budgets",
        why="a verdict holds for the attack, the view and the budget that are stated",
    ),
    NotTested(
        what="the personalised models, should a site give one away",
        why="they never leave a site here, and no noise covers them",
    ),
)


def select(
    rows: Sequence[Row], wanted: Sequence[str], tier: Tier, before: Sequence[Row] = ()
) -> tuple[list[Row], list[NotTested]]:
    """The rows asked for, or else all of the tier; and those left out, with the reason.

    before: rows that earlier calls played, which are not left out. Raises ConfigError for a row
    that there is not.
    """
    known = [row.id for row in rows]
    for name in wanted:
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.5)
            raise ConfigError(
                "no such attack on this run",
                where=name,
                fix=f"did you mean {near[0]}?" if near else f"one of {', '.join(known)}",
            )
    chosen = [row for row in rows if (row.id in wanted if wanted else _in_tier(row, tier))]
    left = [
        NotTested(
            what=f"{row.id}: {row.title}",
            why="not asked for" if wanted else "the fast tier leaves it out",
        )
        for row in rows
        if row not in chosen and row not in before
    ]
    return chosen, [*left, *_NEVER]


def admit(
    run: AttackedRun, rows: Sequence[Row], *, asked: bool
) -> tuple[list[Row], list[NotTested]]:
    """The rows whose adversary sees in this run's messages what it needs, and the others.

    Clear contributions are looked for in no run: only G1 to G5 ask for them, whose clients are the
    laboratory's in every arm but `nothing shown`. asked: a person named
    the rows, and one that lacks something is refused: ThreatError.
    """
    seen = capabilities(run.transcript.view([NETWORK])) | {Capability.CLEAR_CONTRIBUTIONS}
    admitted, left = [], []
    for row in rows:
        missing = row.needs - seen
        if not missing:
            admitted.append(row)
            continue
        why = f"this run's messages do not show {', '.join(sorted(missing))}"
        if asked:
            raise ThreatError(
                "attack refused",
                where=row.id,
                why=why,
                fix="attack a run that shows it, or leave the row out of --attacks",
            )
        left.append(NotTested(what=f"{row.id}: {row.title}", why=why))
    return admitted, left


def _in_tier(row: Row, tier: Tier) -> bool:
    return tier == "full" or row.tier == "fast"

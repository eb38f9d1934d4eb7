"""The attack table of a run, where one was made: its verdicts, and when they break a promise.

The table's own criteria were fixed before any defended arm was played. A table of n promised
statements, each wrong with some probability, calls a leak now and then where there is none; so
verdicts break a promise when chance gives as many of them less than once in a hundred tables.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from scipy.stats import binom

from secure_natfl.audit.evidence import AttackRow
from secure_natfl.audit.findings import Findings, demand

TABLE: Final = Path("attacks") / "attacks.json"
_USUAL_ERROR: Final = 0.025
"""One-sided error of a statement where the table names none: an end of a 95 % interval."""

_SURPRISE: Final = 0.01
_PROMISED: Final = ("protected", "nothing shown")
"""The arms that attack the run as it was; the others are controls and parts of its protection."""


def check_attacks(run: Path, findings: Findings) -> tuple[tuple[AttackRow, ...], str]:
    """The rows, and a sentence on them; a missing table is said and breaks nothing."""
    path = run / TABLE
    if not path.exists():
        said = "no attack table: nothing was attacked, so nothing is known of what leaks in effect"
        findings.unchecked("attacks.table", said)
        return (), said
    found: list[dict[str, Any]] = []

    def verdicts() -> str:
        found.extend(_rows(json.loads(path.read_text(encoding="utf-8"))))
        demand(bool(found), "the attack table has no rows", where=str(TABLE))
        return _judged(found)

    findings.check("attacks.table", verdicts)
    rows = tuple(
        AttackRow(
            id=_text(row, "id", "row"),
            arm=_text(row, "arm"),
            verdict=_text(row, "verdict"),
            criterion=_text(row, "criterion", "why"),
            promised=_promised(row),
        )
        for row in found
    )
    return rows, findings.found[-1].said


def _rows(table: Any) -> Iterator[dict[str, Any]]:
    """Every object that has a verdict, however deep, under the row and arm that it stands in."""
    yield from _within(table, {})


def _within(node: Any, around: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if isinstance(node, list):
        for one in node:
            yield from _within(one, around)
    elif isinstance(node, dict):
        plain = {name: value for name, value in node.items() if not isinstance(value, list | dict)}
        if isinstance(node.get("verdict"), str):
            yield {**around, **plain}
            return
        stated = node.get("criteria")
        if isinstance(stated, dict):
            plain |= {"id": stated.get("id"), "criterion": _criterion(stated)}
            plain |= {"promise": stated["promise"]} if "promise" in stated else {}
        names = ("id", "row", "criterion", "promise", "promised", "error_rate")
        kept = {name: plain[name] for name in names if name in plain}
        for name, value in node.items():
            named = {"arm": name} if isinstance(value, dict) and "verdict" in value else {}
            yield from _within(value, {**around, **kept, **named})


def _criterion(stated: dict[str, Any]) -> str:
    names = (name for name in ("metric", "statistic", "margin") if name in stated)
    return ", ".join(f"{name} {stated[name]}" for name in names)


def _judged(rows: list[dict[str, Any]]) -> str:
    promised = [row for row in rows if _promised(row)]
    leaks = [row for row in promised if _verdict(row) == "LEAKS"]
    named = ", ".join(f"{_text(row, 'id', 'row')}/{_text(row, 'arm')}" for row in leaks)
    certain = [row for row in leaks if _certain(row)]
    demand(not certain, f"leaks on promised rows: {named}", where=str(TABLE))
    error = max((_rate(row) for row in promised), default=_USUAL_ERROR)
    chance = float(binom.sf(len(leaks) - 1, len(promised), error)) if promised else 1.0
    demand(
        chance >= _SURPRISE,
        f"{len(leaks)} of {len(promised)} promised rows leak: {named}",
        where=str(TABLE),
        why=f"chance gives as many with probability {chance:.2g}",
    )
    unsure = sum(_verdict(row) == "INCONCLUSIVE" for row in promised)
    said = f"{len(promised)} promised verdicts: {len(leaks)} leak(s), {unsure} inconclusive"
    return said + (f" ({named}: not more than chance gives)" if leaks else "")


def _certain(row: dict[str, Any]) -> bool:
    """A leak that is no matter of chance: its error, or its corrected p, is below one in 100."""
    p = row.get("p")
    return _rate(row) < _SURPRISE or (isinstance(p, int | float) and p < _SURPRISE)


def _rate(row: dict[str, Any]) -> float:
    stated = row.get("error_rate")
    return float(stated) if isinstance(stated, int | float) else _USUAL_ERROR


def _promised(row: dict[str, Any]) -> bool:
    """What the row says of itself; else whether it is about an arm of the run as it was.

    A row whose `promise` is empty measures what nobody promised, such as a site's case mix.
    """
    stated = row.get("promised")
    if isinstance(stated, bool):
        return stated
    return row.get("promise") != "" and _text(row, "arm") in _PROMISED


def _verdict(row: dict[str, Any]) -> str:
    return str(row.get("verdict", "")).upper()


def _text(row: dict[str, Any], *names: str) -> str:
    return next((str(row[name]) for name in names if row.get(name) not in (None, "")), "unnamed")

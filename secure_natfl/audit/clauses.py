"""The clause map: which parts of the evidence speak to which clause, and with what status.

The tool never says that a clause is fulfilled. A status follows from what the pointers find by the
same rule for all rows, and `natfl verify` derives it again.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

from secure_natfl.audit.evidence import Clause, Evidence, Status
from secure_natfl.audit.statements import Stated

_BY_PEOPLE = (
    "/study",
    "/crypto/transport",
    "/log/clock",
    "/identifiability",
    "/incidents",
    "/retention",
    "/supply_chain",
)
"""Where the operator's statements stand in the evidence."""


class _Row(Stated):
    """One entry of clauses.toml."""

    framework: str
    clause: str
    asks: str
    kind: str
    pointers: list[str]
    partial: bool = False
    text_checked_on: str | None = None


def clause_rows(whole: Evidence) -> tuple[Clause, ...]:
    """Every clause with its status. KeyError for a pointer that does not resolve: a broken map."""
    document = whole.model_dump(mode="json")
    rows = []
    for row in _map():
        found = [bool_of(resolve(document, pointer)) for pointer in row.pointers]
        status = status_of(row.kind, found, partial=row.partial, whole=document)
        rows.append(
            Clause.model_validate(
                {
                    **row.model_dump(exclude={"partial"}),
                    "status": status,
                    "comment": _comment(row, status, document),
                }
            )
        )
    return tuple(rows)


def status_of(kind: str, found: list[bool], *, partial: bool, whole: dict[str, Any]) -> Status:
    """The status of a clause whose pointers do or do not find something.

    What an organisation did cannot be read off a simulation. Where a check is broken, no evidence
    is more than partial.
    """
    if kind == "operating" and whole["simulated"]:
        return "not_applicable"
    if not any(found):
        return "operator_must_supply"
    whole_row = all(found) and not partial and whole["verdict"] == "holds"
    return "evidence_present" if whole_row else "evidence_partial"


def resolve(document: Any, pointer: str) -> Any:
    """What a JSON pointer (RFC 6901) names; KeyError, naming it, where there is nothing."""
    place = document
    _, *parts = pointer.split("/")
    if not pointer.startswith("/"):
        raise KeyError(f"{pointer} is no pointer")
    for part in parts:
        name = part.replace("~1", "/").replace("~0", "~")
        try:
            place = place[int(name)] if isinstance(place, list) else place[name]
        except (KeyError, IndexError, TypeError, ValueError):
            raise KeyError(f"{pointer} points to nothing") from None
    return place


def bool_of(value: Any) -> bool:
    """Whether something was stated: not null, not empty, and in a table not null throughout."""
    if isinstance(value, dict):
        return any(map(bool_of, value.values()))
    return value is not None and value not in ("", [])


def counted(rows: tuple[Clause, ...]) -> dict[str, Counter[str]]:
    """Kind → how many clauses have each status; clauses that nobody has read are in no count."""
    found: dict[str, Counter[str]] = {
        kind: Counter() for kind in ("design", "operating", "operator")
    }
    for row in rows:
        if row.text_checked_on is not None:
            found[row.kind][row.status] += 1
    return found


def missing(whole: Evidence) -> tuple[str, ...]:
    """Pointers of what only people can supply, and nobody has. No incidents may be the truth."""
    document = whole.model_dump(mode="json")
    absent = [
        path
        for pointer in _BY_PEOPLE
        if pointer != "/incidents"
        for path, value in _leaves(pointer, resolve(document, pointer))
        if not bool_of(value)
    ]
    for place, site in enumerate(document["data_governance"]):
        names = ("deidentification", "licence")
        absent += [f"/data_governance/{place}/{name}" for name in names if site[name] is None]
    for place, site in enumerate(document["participants"]):
        absent += [f"/participants/{place}/organisation"] if site["organisation"] is None else []
    return tuple(absent)


def _leaves(pointer: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(f"{pointer}/{name}", inner)
    else:
        yield pointer, value


def _comment(row: _Row, status: str, document: dict[str, Any]) -> str:
    if status == "not_applicable":
        return "the run was simulated: nothing was operated by anybody"
    if status == "operator_must_supply":
        tested = row.pointers == ["/attacks"]
        return "make an attack table: natfl attack" if tested else "only people can state this"
    if document["verdict"] == "broken":
        return "a check of this audit is broken"
    return "speaks to a part of what is asked" if status == "evidence_partial" else ""


@cache
def _map() -> tuple[_Row, ...]:
    file = resources.files("secure_natfl.audit").joinpath("clauses.toml")
    table = tomllib.loads(file.read_text("utf-8"))
    return tuple(_Row.model_validate(row) for row in table["clause"])

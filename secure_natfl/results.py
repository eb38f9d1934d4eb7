"""What a run leaves behind in memory: the state that rounds change, and the results at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from protocols.accounting import Spent
from protocols.ledger import Budget
from secure_natfl.federation import Federation
from secure_natfl.models import Network
from secure_natfl.progress import Stages
from secure_natfl.systems.natimg_fl import NatImgFL, Released
from secure_natfl.terms import Terms


@dataclass
class State:
    """What changes from round to round.

    `personal` networks train on from round to round; `answering` are what the sites use, each
    made of its own and, where that helps, the central one.
    """

    central: Network
    personal: dict[str, Network]
    released: Released | None = None
    answering: dict[str, Network] = field(default_factory=dict)


@dataclass(frozen=True)
class SiteAccount:
    """A site's ledger after the run: (line, chained hash) of its patients, total, head.

    `budgets`: the ledger's own view over all runs and patient sets.
    """

    lines: tuple[tuple[dict[str, Any], str], ...]
    session: str
    spent: Spent
    head: str
    budgets: tuple[Budget, ...]


@dataclass(frozen=True)
class Traffic:
    """Messages of one kind over the whole run: how many, bytes (relays included), the largest."""

    count: int
    bytes: int
    largest: int


@dataclass
class Results:
    """What the report is made of, once all is trained."""

    federation: Federation
    system: NatImgFL
    terms: Terms
    state: State
    arms: dict[str, dict[str, Network]]
    """Baseline → model name ("" for one model of all, else the site's) → network."""
    rounds: list[dict[str, Any]]
    networks: dict[str, Network]
    accounts: dict[str, SiteAccount]
    messages: dict[str, Traffic]
    holders: tuple[str, ...]
    """Who opens, `threshold` of them together."""
    threshold: int
    folder: Path
    stages: Stages
    started: float


def head_of(system: NatImgFL, hospital: str) -> int:
    """The central model's head that answers for a hospital."""
    site = system.federation.hospitals[hospital][0]
    return system.heads.index(system.group_of(site))

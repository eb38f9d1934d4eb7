"""What a run leaves behind in memory: the state that rounds change, and the results at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from protocols.accounting import Spent
from protocols.ledger import Budget
from protocols.transcript import Transcript
from secure_natfl.federation import Federation
from secure_natfl.models import Network
from secure_natfl.progress import Stages
from secure_natfl.protection import Protection
from secure_natfl.schedule import Schedule
from secure_natfl.seeds import Seeds
from secure_natfl.systems.natimg_fl import NatImgFL, Released
from secure_natfl.systems.summed import SummedSystem
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


@dataclass(kw_only=True)
class Played:
    """What every run leaves behind, whatever its system: parties, terms, accounts, messages."""

    federation: Federation
    terms: Terms
    rounds: list[dict[str, Any]]
    accounts: dict[str, SiteAccount]
    messages: dict[str, Traffic]
    holders: tuple[str, ...]
    """Who opens, `threshold` of them together."""
    threshold: int
    folder: Path
    stages: Stages
    started: float
    seeds: Seeds


@dataclass(kw_only=True)
class Results(Played):
    """What the report of NatIMG-FL is made of, once all is trained."""

    system: NatImgFL
    state: State
    arms: dict[str, dict[str, Network]]
    """Baseline → model name ("" for one model of all, else the site's) → network."""
    networks: dict[str, Network]


@dataclass(kw_only=True)
class SummedResults(Played):
    """What the report of a system that learns from sums is made of; `terms`: of its first phase."""

    system: SummedSystem
    schedule: Schedule
    arms: dict[str, dict[str, nn.Module]]
    """Baseline → site → the network that answers there."""


def account_of(protection: Protection, site: str) -> SiteAccount:
    """A site's ledger as it stands at the end of a run, verified."""
    ledger = protection.ledgers[site]
    ledger.verify()
    return SiteAccount(
        lines=tuple(
            (line, hash_)
            for line, hash_ in zip(ledger.lines(), ledger.chained(), strict=True)
            if line["patients"] == ledger.patients
        ),
        session=protection.session,
        spent=ledger.spent(),
        head=ledger.head,
        budgets=ledger.budgets(),
    )


def by_message(transcript: Transcript) -> dict[str, Traffic]:
    """Kind of message → what was sent of it in the whole run."""
    kinds: dict[str, Traffic] = {}
    for entry in transcript.entries:
        seen = kinds.get(entry.kind, Traffic(0, 0, 0))
        kinds[entry.kind] = Traffic(
            seen.count + 1,
            seen.bytes + entry.bytes * len(entry.receivers),
            max(seen.largest, entry.bytes),
        )
    return kinds


def head_of(system: NatImgFL, hospital: str) -> int:
    """The central model's head that answers for a hospital."""
    site = system.federation.hospitals[hospital][0]
    return system.heads.index(system.group_of(site))

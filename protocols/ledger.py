"""The privacy ledger of one site: durable, append-only, charged before anything leaves.

It belongs to the site, spans runs, and adds up per patient set. A line is on disk
before noise is drawn, is never changed and never refunded; what was drawn is stored beside it, so
that a retry sends the same integers again and costs nothing.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from protocols.accounting import REPLACE_ONE, Event, Spent, check_target, compose, rho_from_epsilon
from protocols.errors import LedgerError, PrivacyError
from protocols.ledger_file import LedgerFile
from protocols.quantize import Integers


@dataclass(frozen=True)
class ReleaseKey:
    """Names one release of a site: a session (its id from the signed plan) and a round from 0."""

    session: str
    round: int

    def __post_init__(self) -> None:
        if not self.session or self.round < 0:
            raise PrivacyError(f"no such release: {self}", fix="name a session and a round from 0")

    def __str__(self) -> str:
        return f"session {self.session}, round {self.round}"


@dataclass(frozen=True)
class Budget:
    """What one patient set has spent: in one session, or over all of them (`session` None)."""

    patients: str
    session: str | None
    spent: Spent


@dataclass(frozen=True)
class Erasure:
    """A patient who was erased, and the releases made before, which nothing can call back."""

    patient: str
    releases: tuple[ReleaseKey, ...]


class Ledger:
    """What one site has spent, and what it released.

    path: the file, made if missing. site: the owner's name. patients: a keyed digest of the
    patient set that is charged; sets that share patients must be declared as one. relation: one
    per ledger. budget_epsilon: what this patient set may spend in all, or None for no limit.
    delta: the target δ at which budget and spending are stated. Raises LedgerError when the file
    is damaged, in use, not writable, or another site's. A context manager, for the thread that
    opened it; one writer at a time.
    """

    def __init__(
        self,
        path: Path,
        site: str,
        patients: str,
        *,
        relation: str = REPLACE_ONE,
        budget_epsilon: float | None,
        delta: float,
    ) -> None:
        check_target(math.inf if budget_epsilon is None else budget_epsilon, delta)
        self.patients, self.relation = patients, relation
        self.budget_epsilon = None if budget_epsilon == math.inf else budget_epsilon
        self.delta = delta
        self._file = LedgerFile(path, {"site": site, "relation": relation})
        self._open, self._begun = True, set[ReleaseKey]()
        try:
            self._check_owner({"site": site, "relation": relation})
            self._events = _events(self._mine())
        except KeyError as error:
            self.close()
            raise self._refusal(
                f"a line lacks {error}", "the ledger is damaged", "restore the last backup"
            ) from error
        except BaseException:
            self.close()
            raise

    def stored(self, key: ReleaseKey) -> Integers | None:
        """The integers that were drawn for `key`, to be sent again as they are; else None."""
        number = self._number(key)
        data = None if number is None else self._file.attached(number)
        return None if data is None else np.frombuffer(data, dtype="<i8").astype(np.int64)

    def require(self, event: Event, releases: int = 1) -> None:
        """Refuse unless `releases` more such events fit the budget; writes nothing.

        Call it for a whole plan before the first round. LedgerError says what would fit.
        """
        if event.relation != self.relation:
            raise self._refusal(
                f"a charge under {event.relation} on a ledger of {self.relation}",
                "figures under different neighbouring relations do not add up",
                "keep one relation, or start a ledger for the other one",
            )
        if any(charged.unit != event.unit for charged in self._events):
            raise self._refusal(
                f"a charge for one {event.unit or 'patient'} on top of others",
                "figures for different units do not add up",
                "keep one unit, or start a ledger for the other one",
            )
        if self.budget_epsilon is None:
            return
        after = compose([*self._events, *[event] * releases], self.delta)
        if after.epsilon > self.budget_epsilon:
            raise self._over_budget(event, releases, after)

    def charge(self, key: ReleaseKey, event: Event) -> None:
        """Write the line of `key`, durably, before its noise is drawn.

        A key is charged once: for a key with the same event on its line this does nothing (a crash
        came between charge and store, and nothing had left the site). LedgerError, with nothing
        written, if the budget does not suffice or the key was charged for something else.
        """
        number = self._number(key)
        if number is None:
            self.require(event)
            self._file.append(self._line(key, event))
            self._events.append(event)
        elif self._file.lines[number - 1]["event"] != event.line():
            raise self._refusal(
                f"{key} was charged for another mechanism",
                "a release is charged once, at what it costs",
                "start a new session for a changed plan",
            )

    def begin(self, key: ReleaseKey, event: Event) -> None:
        """Charge `key` for work that draws noise over time, which then is done once and stored.

        A run that died before `store` may begin again under its charge: nothing had left the site,
        and the noise drawn before died with the process. LedgerError once integers are stored for
        `key`, or while this open ledger has let the same work begin.
        """
        if key in self._begun or self.stored(key) is not None:
            raise self._refusal(
                f"{key} begins a second time",
                "begun on this open ledger" if key in self._begun else "its integers are stored",
                "send what is stored; fresh noise for the same steps needs a round of its own",
            )
        self.charge(key, event)
        self._begun.add(key)

    def demand_open(self) -> None:
        """LedgerError once closed: what began here may go on only while nobody else can begin."""
        if not self._open:
            raise self._refusal(
                "noise for a closed ledger",
                "another process may have begun the same work",
                "keep the ledger open until what was begun is stored",
            )

    def store(self, key: ReleaseKey, values: Integers) -> None:
        """Keep the integers that were drawn for `key`, durably, before they are encrypted.

        LedgerError if `key` was not charged, or has integers already.
        """
        number = self._number(key)
        if number is None or self._file.attached(number) is not None:
            raise self._refusal(
                f"integers for {key}",
                "not charged" if number is None else "others are stored already",
                "release through a mechanism, which charges first and draws once",
            )
        self._file.attach(number, values.astype("<i8").tobytes())

    def spent(self) -> Spent:
        """What this patient set has spent over all runs, at the ledger's δ."""
        return compose(self._events, self.delta)

    def budgets(self) -> tuple[Budget, ...]:
        """Per patient set, what each session spent and what all did together, in ledger order."""
        found: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
        for line in self._file.lines:
            if "erased" not in line:
                found[line["patients"]][line["session"]].append(line)
        views = []
        for patients, sessions in found.items():
            for session, lines in sessions.items():
                views.append(Budget(patients, session, compose(_events(lines), self.delta)))
            everything = [line for lines in sessions.values() for line in lines]
            views.append(Budget(patients, None, compose(_events(everything), self.delta)))
        return tuple(views)

    def erase(self, patient: str) -> None:
        """Record, durably, that a patient of this set was erased; nothing twice.

        patient: a keyed digest of 64 hexadecimal digits, never a name. The charges stand, stored
        integers stay, and the patient set keeps its digest: the releases made are out, and what
        remains of the set shares its patients with them. LedgerError for anything but a digest.
        """
        if not re.fullmatch("[0-9a-f]{64}", patient):
            raise self._refusal(
                "erasure of something that is no digest",
                "a ledger holds no private data",
                "give the patient's keyed digest, 64 hexadecimal digits",
            )
        key = ReleaseKey(f"erasure {patient}", 0)
        if self._number(key) is None:
            free = Event("erasure", self.relation, 0.0, 0.0, 0.0, 0.0, 0.0)
            self._file.append(self._line(key, free) | {"erased": patient})

    def erasures(self) -> tuple[Erasure, ...]:
        """Who was erased from this patient set, each with what the erasure cannot undo."""
        made: list[ReleaseKey] = []
        found: list[Erasure] = []
        for line in self._mine():
            if "erased" in line:
                found.append(Erasure(line["erased"], tuple(made)))
            else:
                made.append(ReleaseKey(line["session"], line["round"]))
        return tuple(found)

    def lines(self) -> list[dict[str, Any]]:
        """All lines in order, of every patient set; no private data."""
        return deepcopy(self._file.lines)

    def chained(self) -> list[str]:
        """The chain's hash after each of `lines`."""
        return self._file.chained()

    @property
    def head(self) -> str:
        """Hash of the whole chain; note it elsewhere, and a ledger that was cut back shows."""
        return self._file.head

    @property
    def genesis(self) -> str:
        """The chain's hash before the first line; it names site and relation."""
        return self._file.genesis

    @property
    def site(self) -> str:
        """The owner's name."""
        return str(self._file.about["site"])

    def verify(self) -> None:
        """Check pages, hash chain and stored integers on disk. LedgerError if anything changed."""
        self._file.verify()

    def close(self) -> None:
        """Let other processes write, and stop what began here."""
        self._open = False
        self._file.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _mine(self) -> list[dict[str, Any]]:
        return [line for line in self._file.lines if line["patients"] == self.patients]

    def _line(self, key: ReleaseKey, event: Event) -> dict[str, Any]:
        return {
            "patients": self.patients,
            "session": key.session,
            "round": key.round,
            "event": event.line(),
        }

    def _number(self, key: ReleaseKey) -> int | None:
        """The number of the line that charges `key` to this patient set."""
        wanted = (self.patients, key.session, key.round)
        for number, line in enumerate(self._file.lines, start=1):
            if (line["patients"], line["session"], line["round"]) == wanted:
                return number
        return None

    def _check_owner(self, expected: dict[str, str]) -> None:
        for field, value in expected.items():
            if self._file.about.get(field) != value:
                raise self._refusal(
                    f"this is a ledger of {field} {self._file.about.get(field)}, not {value}",
                    "a ledger belongs to one site and holds one relation",
                    "name this site's own ledger file",
                )

    def _over_budget(self, event: Event, releases: int, after: Spent) -> LedgerError:
        if after.epsilon == math.inf:
            fix = "choose a mechanism with noise, or a ledger without a budget"
        else:
            # Rounded up, so that the number in the message does work.
            fix = f"a budget of ε = {math.ceil(after.epsilon * 1000) / 1000:.3f}"
            fix += self._wider(event, releases)
            fix += f", or {self._fitting(event, releases)} such releases would fit"
        return self._refusal(
            f"{releases} more release(s) would take ε from {self.spent().epsilon:.4g} to "
            f"{after.epsilon:.4g}, beyond the budget of {self.budget_epsilon:g}",
            f"δ = {self.delta:g}, {len(self._events)} releases charged; nothing was written",
            fix,
        )

    def _wider(self, event: Event, releases: int) -> str:
        """How much more noise would fit, where only ρ is in play."""
        left = rho_from_epsilon(self.budget_epsilon or math.inf, self.delta) - self.spent().rho
        if left <= 0 or any(charged.steps for charged in (*self._events, event)):
            return ""
        return (
            f", {math.ceil(100 * math.sqrt(releases * event.rho / left)) / 100:.2f} times the noise"
        )

    def _fitting(self, event: Event, releases: int) -> int:
        """How many such releases the budget still holds; fewer than `releases`."""
        budget = self.budget_epsilon or math.inf
        low, high = 0, releases
        while high - low > 1:
            middle = (low + high) // 2
            fits = compose([*self._events, *[event] * middle], self.delta).epsilon <= budget
            low, high = (middle, high) if fits else (low, middle)
        return low

    def _refusal(self, what: str, why: str, fix: str) -> LedgerError:
        return LedgerError(what, where=str(self._file.path), why=why, fix=fix)


def _events(lines: list[dict[str, Any]]) -> list[Event]:
    """What `lines` charge; erasures cost nothing and are no releases."""
    return [Event.from_line(line["event"]) for line in lines if "erased" not in line]

"""Checks that find a defect of a ledger, its file, or its kept heads; True if there is a fault."""

import math
import os
import sqlite3
from pathlib import Path

import numpy as np
from privacy_checks import DELTA, FIRST, released, throwaway

from protocols.accounting import ADD_OR_REMOVE_ONE, REPLACE_ONE, Event
from protocols.chain import SigningKey
from protocols.errors import LedgerError
from protocols.ledger import Ledger
from protocols.mechanisms import ReleaseKey

EVENT = Event("shard-teachers", REPLACE_ONE, 0.1, 0.3, 0.0, 0.0, 0.0)


def opened(kind, path, site="a", relation=REPLACE_ONE):
    return kind(path, site, "patients", relation=relation, budget_epsilon=None, delta=DELTA)


def grown(kind, path, *rounds):
    """A closed ledger with a charge and stored integers for each of `rounds`."""
    with opened(kind, path) as ledger:
        for number in rounds:
            ledger.charge(ReleaseKey("study", number), EVENT)
            ledger.store(ReleaseKey("study", number), np.arange(3))


def loses_charges(kind, mechanism, folder):
    """Two runs of two rounds each, one crash and one retry: not exactly four charges."""
    event, path = mechanism.event(), folder / f"{kind.__name__}.db"
    for session, earlier in (("first", 0), ("second", 2)):
        with kind(path, "a", "patients", budget_epsilon=None, delta=DELTA) as ledger:
            for number in range(2):
                key = ReleaseKey(session, number)
                ledger.charge(key, event)
                ledger.charge(key, event)  # after a crash between charge and store
                ledger.store(key, np.zeros(3, np.int64))
            spent, lines = ledger.spent(), ledger.lines()
        if not spent.charges == len(lines) == earlier + 2:
            return True
        if not math.isclose(spent.rho, (earlier + 2) * event.rho):
            return True
    return False


def overspends(kind, mechanism, random):
    """A release beyond the budget is made, or written down, or noise is drawn for it."""
    ledger = throwaway(kind, budget_epsilon=4.0)
    drawn = []

    def watched(count):
        drawn.append(count)
        return random(count)

    for number in range(100):
        before = len(drawn)
        try:
            released(mechanism, watched, ReleaseKey("study", number), ledger=ledger)
        except LedgerError:
            return len(drawn) > before or len(ledger.lines()) > number
        if ledger.spent().epsilon > 4.0:
            return True
    return True


def varies_on_retry(mechanism, random):
    """The same key gives other integers the second time: noise that averages away."""
    ledger = throwaway()
    first = released(mechanism, random, ledger=ledger)
    others = np.full((mechanism.shards, mechanism.size), mechanism.clip_norm)
    again = released(mechanism, random, ledger=ledger, teachers=others)
    return bool((first != again).any())


def charges_a_retry(mechanism, random):
    """A second request for the same release costs something."""
    ledger = throwaway()
    for _ in range(2):
        released(mechanism, random, ledger=ledger)
    return len(ledger.lines()) != 1


def draws_before_it_charges(mechanism, random):
    """Noise is drawn while the ledger has no line for it: a crash then would be free."""
    ledger, seen = throwaway(), []

    def watched(count):
        seen.append(len(ledger.lines()))
        return random(count)

    released(mechanism, watched, ledger=ledger)
    return 0 in seen


def hands_on_what_is_not_stored(mechanism, random):
    """A release leaves of which the ledger knows no integers, or others."""
    ledger = throwaway()
    values, stored = released(mechanism, random, ledger=ledger), ledger.stored(FIRST)
    return stored is None or bool((values != stored).any())


def tells_by_its_length(mechanism, random):
    """Releases on neighbouring data differ in what the network sees of them: their length."""
    answers = np.zeros((2, mechanism.shards, mechanism.size))
    answers[1, 0] = mechanism.clip_norm
    sizes = {released(mechanism, random, teachers=teachers).size for teachers in answers}
    return sizes != {mechanism.size}


def is_not_flushed(kind, folder):
    """A line may still be lost once `charge` has returned."""
    with opened(kind, folder / "flushed.db") as ledger:
        query = ledger._file._db.execute
        journal = query("PRAGMA journal_mode").fetchone()[0]
        return (journal, query("PRAGMA synchronous").fetchone()[0]) != ("wal", 2)


def takes_changes(kind, folder):
    """A line or integers can be changed or removed through the ledger's own connection."""
    with opened(kind, folder / "guarded.db") as ledger:
        ledger.charge(FIRST, EVENT)
        ledger.store(FIRST, np.arange(3))
        for change in ("UPDATE {} SET rowid = 9", "DELETE FROM {}"):
            for table in ("lines", "attached", "about"):
                try:
                    ledger._file._db.execute(change.format(table))
                except sqlite3.IntegrityError:
                    continue
                return True
    return False


def uses_what_was_edited(kind, folder):
    """A ledger with a changed line, a removed line, or changed integers is read as if whole."""
    edits = (
        "UPDATE lines SET line = replace(line, '0.1', '0.0') WHERE number = 1",
        "DELETE FROM lines WHERE number = 1",
        "UPDATE attached SET data = zeroblob(24) WHERE number = 2",
    )
    for number, edit in enumerate(edits):
        path = folder / f"edited {number}.db"
        grown(kind, path, 0, 1)
        with sqlite3.connect(path) as db:
            query = "SELECT name FROM sqlite_schema WHERE type = 'trigger'"
            for (name,) in db.execute(query).fetchall():
                db.execute(f"DROP TRIGGER {name}")
            db.execute(edit)
        db.close()
        try:
            with opened(kind, path) as ledger:
                ledger.stored(ReleaseKey("study", 1))
        except LedgerError:
            continue
        return True
    return False


def serves_two(kind, folder):
    """The file of another site or relation is taken, or a second writer is let in."""
    path = folder / "owned.db"
    grown(kind, path, 0)
    with opened(kind, path) as first:
        others = [("a", REPLACE_ONE), ("b", REPLACE_ONE), ("a", ADD_OR_REMOVE_ONE)]
        for at, (site, relation) in enumerate(others):
            if at:
                first.close()
            try:
                opened(kind, path, site, relation).close()
            except LedgerError:
                continue
            return True
    return False


def misses_old_copies(kind, folder):
    """After a round, a ledger that was rolled back, or that was forked, passes for whole."""
    keys = {site: SigningKey.generate(os.urandom) for site in "ab"}

    def heads(path):
        ledgers = {"a": opened(Ledger, path), "b": opened(Ledger, Path(":memory:"), "b")}
        return kind(folder / "books", ["ab"], keys, ledgers), ledgers["a"]

    for site in "ab":
        (folder / "books" / site).mkdir(parents=True)
    rounds = {"whole": (0, 1), "back": (0,), "fork": (0, 2, 3)}
    for name, numbers in rounds.items():
        grown(Ledger, folder / f"{name}.db", *numbers)
    made, ledger = heads(folder / "whole.db")
    with ledger:
        made.keep()
        made.check()
    for name in ("back", "fork"):
        made, ledger = heads(folder / f"{name}.db")
        with ledger:
            try:
                made.check()
            except (LedgerError, AssertionError):
                continue
            return True
    return False

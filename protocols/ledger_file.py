"""A durable file of hash-chained lines with attached bytes: SQLite, append-only, one writer.

Knows nothing of privacy; `protocols.ledger` gives the lines their meaning. Every write is one
transaction, flushed to disk before the call returns (WAL with synchronous = FULL).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from protocols.chain import GENESIS, canonical, digest, link
from protocols.durable import written
from protocols.errors import LedgerError

Line = dict[str, Any]

_FORMAT = 1
_TABLES = """
CREATE TABLE about (id INTEGER PRIMARY KEY CHECK (id = 1), line TEXT NOT NULL);
CREATE TABLE lines (number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, line TEXT NOT NULL,
                    hash TEXT NOT NULL);
CREATE TABLE attached (number INTEGER PRIMARY KEY REFERENCES lines (number), data BLOB NOT NULL,
                       hash TEXT NOT NULL);
"""
_TRIGGER = """
CREATE TRIGGER {table}_{verb} BEFORE {verb} ON {table}
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""
_SCHEMA = _TABLES + "".join(
    _TRIGGER.format(table=table, verb=verb)
    for table in ("about", "lines", "attached")
    for verb in ("UPDATE", "DELETE")
)
_ADVICE = {
    "SQLITE_BUSY": ("another process is writing to it", "wait until that run ends, or stop it"),
    "SQLITE_READONLY": ("it cannot be written", "make the file and its folder writable"),
    "SQLITE_CANTOPEN": (
        "it cannot be opened or made",
        "name a file in an existing folder that you may write to",
    ),
    "SQLITE_FULL": ("the disk is full", "free some space and resume; nothing was half-written"),
    "SQLITE_IOERR_LOCK": (
        "it cannot be locked",
        "make the file writable, or move it from a network share to a local disk",
    ),
    "SQLITE_IOERR": ("the disk does not answer properly", "check the disk, then resume"),
    "SQLITE_CONSTRAINT": ("its rules refuse the change", "add a line first, and attach once"),
    "SQLITE_NOTADB": ("it is no ledger, or it is damaged", "restore the last backup of the file"),
    "SQLITE_CORRUPT": ("it is damaged", "restore the last backup of the file"),
}


class LedgerFile:
    """Lines in order, each with a unique name, a chained hash, and at most one attachment.

    `about` describes a new file; an existing one keeps its own, which the caller compares. Raises
    LedgerError when the file cannot be opened, is damaged, or has another writer.
    """

    def __init__(self, path: Path, about: Line) -> None:
        self.path = path
        with self._speaking():
            self._db = sqlite3.connect(path, timeout=0, isolation_level=None)
            try:
                self._lock()
                self.about = self._read_or_create(about)
                self.lines = self._read_lines()
            except BaseException:
                self._db.close()
                raise

    def _lock(self) -> None:
        """Become the one writer; the operating system ends this with the process, killed or not."""
        self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        self._db.execute("BEGIN EXCLUSIVE")
        self._db.execute("COMMIT")

    def _read_or_create(self, about: Line) -> Line:
        if not self._db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            text = canonical({"format": _FORMAT, **about}).decode()
            self._db.executescript(f"BEGIN EXCLUSIVE; {_SCHEMA}")
            self._db.execute("INSERT INTO about VALUES (1, ?)", (text,))
            self._db.execute("COMMIT")
        text = self._db.execute("SELECT line FROM about").fetchone()[0]
        self.genesis = link(GENESIS, text.encode())
        stored = self._parsed(text)
        if stored.get("format") != _FORMAT:
            raise LedgerError(
                f"ledger format {stored.get('format')}, this version reads {_FORMAT}",
                where=str(self.path),
                fix="use the version that wrote the file",
            )
        return stored

    def _read_lines(self) -> list[Line]:
        """All lines in order, with their chain recomputed."""
        self.head = self.genesis
        lines: list[Line] = []
        rows = self._db.execute("SELECT number, name, line, hash FROM lines ORDER BY number")
        for number, name, text, stated in rows:
            line = self._parsed(text)
            self.head = link(self.head, text.encode())
            if (number, stated, name) != (len(lines) + 1, self.head, _name(line)):
                raise self._damaged(f"line {number} does not continue the hash chain")
            lines.append(line)
        return lines

    def chained(self) -> list[str]:
        """The chain's hash after each line; the last is `head`."""
        hashes = [self.genesis]
        for line in self.lines:
            hashes.append(link(hashes[-1], canonical(line)))
        return hashes[1:]

    def append(self, line: Line) -> None:
        """Add a line, durably. LedgerError if its name exists or the disk refuses."""
        data = canonical(line)
        head = link(self.head, data)
        row = (len(self.lines) + 1, _name(line), data.decode(), head)
        with self._speaking(), written("ledger line"):
            self._db.execute("INSERT INTO lines VALUES (?, ?, ?, ?)", row)
        self.head = head
        self.lines.append(line)

    def attach(self, number: int, data: bytes) -> None:
        """Attach bytes to line `number` (from 1), durably. LedgerError if it has some already."""
        row = (number, data, digest(data))
        with self._speaking(), written("ledger attachment"):
            self._db.execute("INSERT INTO attached VALUES (?, ?, ?)", row)

    def attached(self, number: int) -> bytes | None:
        """What is attached to line `number`. LedgerError if it was altered."""
        query = "SELECT data, hash FROM attached WHERE number = ?"
        with self._speaking():
            row = self._db.execute(query, (number,)).fetchone()
        if row is None:
            return None
        if digest(row[0]) != row[1]:
            raise self._damaged(f"the integers stored for line {number} were altered")
        return bytes(row[0])

    def verify(self) -> None:
        """Read everything again from disk: pages, hash chain, attachments. LedgerError if wrong."""
        with self._speaking():
            pages = self._db.execute("PRAGMA integrity_check").fetchone()[0]
            if pages != "ok":
                raise self._damaged(pages)
            if self._read_lines() != self.lines:
                raise self._damaged("its lines are not those that were read before")
            for (number,) in self._db.execute("SELECT number FROM attached").fetchall():
                self.attached(number)

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def _parsed(self, text: str) -> Line:
        try:
            line = json.loads(text)
        except ValueError as error:
            raise self._damaged("a line is no JSON") from error
        if not isinstance(line, dict):
            raise self._damaged("a line is no JSON object")
        return line

    def _damaged(self, why: str) -> LedgerError:
        return LedgerError(
            "the ledger is damaged",
            where=str(self.path),
            why=why,
            fix="restore the last backup; do not delete the file, for its charges still count",
        )

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """Turn SQLite's errors into one clear line."""
        try:
            yield
        except UnicodeDecodeError as error:
            raise self._damaged("its pages cannot be read") from error
        except sqlite3.Error as error:
            name = getattr(error, "sqlite_errorname", "")
            found = [advice for kind, advice in _ADVICE.items() if name.startswith(kind)]
            why, fix = found[0] if found else (str(error), "restore the last backup of the file")
            raise LedgerError(
                "the ledger cannot be used", where=str(self.path), why=why, fix=fix
            ) from error


def _name(line: Line) -> str:
    """What makes a line unique: the release it stands for."""
    return digest(canonical([line.get(field) for field in ("patients", "session", "round")]))

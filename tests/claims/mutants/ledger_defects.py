"""Named defects of a site's ledger, of its file, and of the heads that others keep of it."""

from unittest import mock

import protocols.ledger
from protocols.ledger import Ledger
from protocols.ledger_file import LedgerFile
from secure_natfl.kept_heads import KeptHeads


def kept_in(kind):
    """A class of ledgers whose file is of this class."""

    class Kept(Ledger):
        def __init__(self, *args, **figures):
            with mock.patch.object(protocols.ledger, "LedgerFile", kind):
                super().__init__(*args, **figures)

    return Kept


class Refunding(Ledger):
    """Takes the charge of a crashed attempt back."""

    def charge(self, key, event):
        if self._number(key) is not None and self.stored(key) is None:
            self._events.pop()
        super().charge(key, event)


class Forgetful(Ledger):
    """Begins anew with every run."""

    def __init__(self, *args, **figures):
        super().__init__(*args, **figures)
        self._events = []


class ChargesOnce(Ledger):
    """Takes every round of a session for a retry of the first."""

    def charge(self, key, event):
        if any(line["session"] == key.session for line in self.lines()):
            return
        super().charge(key, event)

    def store(self, key, values):
        if self._number(key) is not None:
            super().store(key, values)


class Unlimited(Ledger):
    """Writes down what it spends, and never refuses."""

    def require(self, event, releases=1):
        return


class WritesFirst(Ledger):
    """Refuses what is too much after it has written it down."""

    def charge(self, key, event):
        if self._number(key) is None:
            self._file.append(self._line(key, event))
            self.require(event)
            self._events.append(event)


class Anybodys(Ledger):
    """Takes a file of another site, or of another relation, for its own."""

    def _check_owner(self, expected):
        return


class Unflushed(LedgerFile):
    """Leaves it to the operating system when a line reaches the disk."""

    def _lock(self):
        super()._lock()
        self._db.execute("PRAGMA synchronous = OFF")


class Shared(LedgerFile):
    """Lets a second writer in."""

    def _lock(self):
        self._db.execute("PRAGMA synchronous = FULL")


class Unchained(LedgerFile):
    """Reads lines as they stand, whatever their hashes say."""

    def _read_lines(self):
        rows = self._db.execute("SELECT line, hash FROM lines ORDER BY number").fetchall()
        self.head = rows[-1][1] if rows else self.genesis
        return [self._parsed(text) for text, _ in rows]


class Unguarded(LedgerFile):
    """Its tables take updates and deletions."""

    def _read_or_create(self, about):
        found = super()._read_or_create(about)
        query = "SELECT name FROM sqlite_schema WHERE type = 'trigger'"
        for (name,) in self._db.execute(query).fetchall():
            self._db.execute(f"DROP TRIGGER {name}")
        return found


class Unhashed(LedgerFile):
    """Hands out stored integers without a look at their hash."""

    def attached(self, number):
        query = "SELECT data FROM attached WHERE number = ?"
        row = self._db.execute(query, (number,)).fetchone()
        return row and bytes(row[0])


class Unkept(KeptHeads):
    """Nobody keeps a head of anybody else."""

    def keep(self):
        return


class Uncompared(KeptHeads):
    """Counts the copies, and does not compare them."""

    def check(self):
        return sum(len(book.kept) for book in self._books.values())


class CountsLines(KeptHeads):
    """Compares how long a ledger is, and not what it says."""

    def check(self):
        for site, keeper in self._pairs():
            lines = len(self._ledgers[site].lines())
            for kept in self._books[keeper].kept:
                assert kept.head.site != site or kept.head.seq <= lines

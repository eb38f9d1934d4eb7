"""The file of a ledger: one writer, no changes, every damage found, a full disk written nothing."""

import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from protocols.errors import LedgerError
from tests.protocols.ledgers import DRAWN, EVENT, key, open_ledger
from tests.protocols.ledgers import path as path


def tamper(path: Path, *statements: str) -> None:
    """What somebody with the file in hand can do to it."""
    database = sqlite3.connect(path, isolation_level=None)
    names = database.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    for (name,) in names:
        database.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        database.execute(statement)
    database.close()


def test_a_second_writer_is_refused(path: Path) -> None:
    with open_ledger(path) as ledger:
        with pytest.raises(LedgerError, match="another process is writing"):
            open_ledger(path)
        ledger.charge(key(0), EVENT)
    open_ledger(path).close()


def test_a_second_process_is_refused(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from protocols.ledger import Ledger\n"
        "Ledger(Path(sys.argv[1]), 'A', 'p', budget_epsilon=None, delta=1e-5)"
    )
    with open_ledger(path):
        run = subprocess.run(
            [sys.executable, "-c", code, path], capture_output=True, text=True, check=False
        )
    assert run.returncode != 0
    assert "another process is writing to it" in run.stderr


def test_every_write_is_flushed_to_disk(path: Path) -> None:
    with open_ledger(path) as ledger:
        pragma = ledger._file._db.execute
        assert pragma("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert pragma("PRAGMA synchronous").fetchone()[0] == 2


@pytest.mark.parametrize("table", ["about", "lines", "attached"])
@pytest.mark.parametrize("verb", ["DELETE FROM {}", "UPDATE {} SET rowid = 9"])
def test_the_tables_refuse_changes(path: Path, table: str, verb: str) -> None:
    with open_ledger(path) as ledger:
        ledger.charge(key(0), EVENT)
        ledger.store(key(0), DRAWN)
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            ledger._file._db.execute(verb.format(table))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE lines SET line = replace(line, '0.1', '0.0') WHERE number = 2",
        "DELETE FROM lines WHERE number = 2",
        "UPDATE lines SET hash = (SELECT hash FROM lines WHERE number = 1) WHERE number = 2",
        "UPDATE lines SET name = 'x' WHERE number = 2",
        "UPDATE lines SET line = '[]' WHERE number = 2",
        "UPDATE lines SET line = 'x' WHERE number = 2",
        """UPDATE about SET line = replace(line, '"A"', '"A" ')""",
    ],
)
def test_a_changed_line_is_found_on_opening(path: Path, statement: str) -> None:
    with open_ledger(path) as ledger:
        for number in range(3):
            ledger.charge(key(number), EVENT)
    tamper(path, statement)
    with pytest.raises(LedgerError, match="the ledger is damaged"):
        open_ledger(path)


def test_changed_integers_are_found(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.charge(key(0), EVENT)
        ledger.store(key(0), DRAWN)
    tamper(path, "UPDATE attached SET data = zeroblob(24)")
    with open_ledger(path) as ledger:
        with pytest.raises(LedgerError, match="were altered"):
            ledger.stored(key(0))
        with pytest.raises(LedgerError, match="were altered"):
            ledger.verify()


def test_a_ledger_cut_back_shows_in_its_head(path: Path) -> None:
    with open_ledger(path) as ledger:
        heads = [ledger.head]
        for number in range(2):
            ledger.charge(key(number), EVENT)
            heads.append(ledger.head)
    assert len(set(heads)) == 3
    tamper(path, "DELETE FROM lines WHERE number = 2")
    with open_ledger(path) as ledger:
        assert ledger.head == heads[1]


@pytest.mark.parametrize(
    "content", [b"no database at all" * 100, b"SQLite format 3\0" + b"\1" * 9000]
)
def test_a_file_that_is_no_ledger_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(LedgerError, match="damaged"):
        open_ledger(path)
    assert path.read_bytes() == content


def test_damaged_pages_are_found(path: Path) -> None:
    with open_ledger(path) as ledger:
        for number in range(40):
            ledger.charge(key(number), EVENT)
            ledger.store(key(number), np.arange(500))
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(LedgerError, match="damaged"):
        open_ledger(path)


def test_a_database_of_something_else_is_refused(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE notes (text)")
    database.close()
    with pytest.raises(LedgerError, match="the ledger cannot be used"):
        open_ledger(path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"missing/ledger\.db.*cannot be opened.*existing folder"):
        open_ledger(tmp_path / "missing" / "ledger.db")


@contextmanager
def without_rights() -> Iterator[None]:
    """As an ordinary user, when the tests run as root, for whom nothing is read-only."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_folder_is_refused() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        open_ledger(path).close()
        path.chmod(0o444)
        Path(folder).chmod(0o555)
        with without_rights(), pytest.raises(LedgerError, match="cannot be"):
            open_ledger(Path(folder) / "new.db")
        with without_rights(), pytest.raises(LedgerError, match="writable"):
            open_ledger(path)
        Path(folder).chmod(0o755)


def test_a_full_disk_writes_nothing_by_half(path: Path) -> None:
    big = np.zeros(200_000, np.int64)
    with open_ledger(path) as ledger:
        ledger.charge(key(0), EVENT)
        pages = ledger._file._db.execute("PRAGMA page_count").fetchone()[0]
        ledger._file._db.execute(f"PRAGMA max_page_count = {pages + 1}")
        with pytest.raises(LedgerError, match="the disk is full"):
            ledger.store(key(0), big)
        assert ledger.stored(key(0)) is None
    with open_ledger(path) as ledger:
        ledger.verify()
        ledger.store(key(0), big)

import contextlib
import math
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocols.accounting import (
    ADD_OR_REMOVE_ONE,
    REPLACE_ONE,
    Event,
    compose,
    epsilon_from_rho,
)
from protocols.chain import digest
from protocols.errors import LedgerError, PrivacyError
from protocols.ledger import Budget, Ledger
from protocols.mechanisms import ReleaseKey, ShardTeachers
from protocols.quantize import Layout, Segment

EVENT = Event("shard-teachers", REPLACE_ONE, 0.1, 0.3, 0.0, 1e-20, 1e-30)
FREE = Event("none", REPLACE_ONE, math.inf, math.inf, 0.0, 0.0, 0.0)
DRAWN = np.array([5, -7, 2**40], dtype=np.int64)


def key(number: int, session: str = "s") -> ReleaseKey:
    return ReleaseKey(session, number)


def open_ledger(path: Path, **changes: Any) -> Ledger:
    figures: dict[str, Any] = {
        "site": "A",
        "patients": "p",
        "budget_epsilon": None,
        "delta": 1e-5,
    }
    return Ledger(path, **figures | changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def tamper(path: Path, *statements: str) -> None:
    """What somebody with the file in hand can do to it."""
    database = sqlite3.connect(path, isolation_level=None)
    names = database.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    for (name,) in names:
        database.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        database.execute(statement)
    database.close()


def test_spending_adds_up_over_runs(path: Path) -> None:
    for session in ("one", "two"):
        with open_ledger(path) as ledger:
            for number in range(3):
                ledger.charge(key(number, session), EVENT)
    with open_ledger(path) as ledger:
        spent = ledger.spent()
        assert spent.charges == 6
        assert spent.rho == pytest.approx(0.6)
        assert spent.epsilon == epsilon_from_rho(spent.rho, 1e-5)
        assert spent.epsilon_isolated == pytest.approx(epsilon_from_rho(1.8, 1e-5))
        ledger.verify()


def test_a_key_is_charged_once(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.charge(key(0), EVENT)
        ledger.charge(key(0), EVENT)
        assert len(ledger.lines()) == ledger.spent().charges == 1
    with open_ledger(path) as ledger:
        ledger.charge(key(0), EVENT)
        assert ledger.spent().charges == 1


def test_a_key_is_not_charged_for_something_else(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.charge(key(0), EVENT)
        with pytest.raises(LedgerError, match="another mechanism"):
            ledger.charge(key(0), FREE)


def test_integers_come_back_as_they_were_stored(path: Path) -> None:
    with open_ledger(path) as ledger:
        assert ledger.stored(key(0)) is None
        ledger.charge(key(0), EVENT)
        assert ledger.stored(key(0)) is None
        ledger.store(key(0), DRAWN)
    with open_ledger(path) as ledger:
        stored = ledger.stored(key(0))
        assert stored is not None
        assert stored.dtype == np.int64
        np.testing.assert_array_equal(stored, DRAWN)
        assert ledger.stored(key(1)) is None
        assert ledger.stored(key(0, "other")) is None


def test_integers_are_stored_after_a_charge_and_once(path: Path) -> None:
    with open_ledger(path) as ledger:
        with pytest.raises(LedgerError, match="not charged"):
            ledger.store(key(0), DRAWN)
        ledger.charge(key(0), EVENT)
        ledger.store(key(0), DRAWN)
        with pytest.raises(LedgerError, match="stored already"):
            ledger.store(key(0), DRAWN + 1)
        np.testing.assert_array_equal(ledger.stored(key(0)), DRAWN)


def test_the_file_itself_refuses_integers_without_a_charge(path: Path) -> None:
    with open_ledger(path) as ledger:
        with pytest.raises(LedgerError, match="its rules refuse the change"):
            ledger._file.attach(1, b"integers")
        ledger.charge(key(0), EVENT)
        ledger._file.attach(1, b"integers")
        with pytest.raises(LedgerError, match="its rules refuse the change"):
            ledger._file.attach(1, b"others")


def test_patient_sets_share_a_ledger_and_add_up_apart(path: Path) -> None:
    with open_ledger(path, patients="p") as ledger:
        ledger.charge(key(0), EVENT)
        ledger.store(key(0), DRAWN)
    with open_ledger(path, patients="q") as ledger:
        assert ledger.spent().charges == 0
        assert ledger.stored(key(0)) is None
        ledger.charge(key(0), EVENT)
        ledger.charge(key(1), EVENT)
        assert ledger.spent().charges == 2
        assert [line["patients"] for line in ledger.lines()] == ["p", "q", "q"]
    with open_ledger(path, patients="p") as ledger:
        assert ledger.spent().charges == 1


def test_overspending_is_refused_before_anything_is_written(path: Path) -> None:
    budget = epsilon_from_rho(0.35, 1e-5)
    with open_ledger(path, budget_epsilon=budget) as ledger:
        for number in range(3):
            ledger.charge(key(number), EVENT)
        before = path.read_bytes(), ledger.lines(), ledger.head
        with pytest.raises(LedgerError, match="beyond the budget") as refusal:
            ledger.charge(key(3), EVENT)
        assert (path.read_bytes(), ledger.lines(), ledger.head) == before
        # A retry of what was charged still works.
        ledger.charge(key(2), EVENT)
    enough = float(refusal.value.fix.split("ε = ")[1].split(",")[0])
    with open_ledger(path, budget_epsilon=enough) as ledger:
        ledger.charge(key(3), EVENT)
    with open_ledger(path, budget_epsilon=enough - 0.01) as ledger:
        assert ledger.spent().epsilon > enough - 0.01


def test_a_refusal_names_noise_and_releases_that_would_fit(path: Path) -> None:
    budget = epsilon_from_rho(0.35, 1e-5)
    with open_ledger(path, budget_epsilon=budget) as ledger:
        with pytest.raises(LedgerError, match="or 3 such releases would fit") as refusal:
            ledger.require(EVENT, 12)
        ledger.require(EVENT, 3)
        wider = float(refusal.value.fix.split(" times")[0].split(" ")[-1])
        fitting = Event("shard-teachers", REPLACE_ONE, 0.1 / wider**2, 0.3, 0.0, 0.0, 0.0)
        ledger.require(fitting, 12)
        assert ledger.lines() == []


def test_an_unprotected_release_needs_a_ledger_without_budget(path: Path) -> None:
    with open_ledger(path, budget_epsilon=1000.0) as ledger:
        with pytest.raises(LedgerError, match="choose a mechanism with noise"):
            ledger.charge(key(0), FREE)
        assert ledger.lines() == []
    with open_ledger(path) as ledger:
        ledger.charge(key(0), FREE)
        assert ledger.spent().epsilon == math.inf
    # From then on no budget holds for this patient set, but does for another.
    with (
        open_ledger(path, budget_epsilon=8.0) as ledger,
        pytest.raises(LedgerError, match="from inf to inf"),
    ):
        ledger.charge(key(1), EVENT)
    with open_ledger(path, budget_epsilon=8.0, patients="q") as ledger:
        ledger.charge(key(1), EVENT)


def test_one_relation_per_ledger(path: Path) -> None:
    with open_ledger(path) as ledger:
        other = Event("shard-teachers", "add_remove", 0.1, 0.1, 0.0, 0.0, 0.0)
        with pytest.raises(LedgerError, match="do not add up"):
            ledger.charge(key(0), other)
    with pytest.raises(LedgerError, match="ledger of relation replace_one, not add_remove"):
        open_ledger(path, relation="add_remove")


def test_a_ledger_belongs_to_one_site(path: Path) -> None:
    open_ledger(path).close()
    with pytest.raises(LedgerError, match="ledger of site A, not B"):
        open_ledger(path, site="B")


@pytest.mark.parametrize("change", [{"budget_epsilon": 0.0}, {"delta": 0.0}, {"delta": 1.0}])
def test_impossible_targets_are_refused(path: Path, change: dict[str, float]) -> None:
    with pytest.raises(PrivacyError):
        open_ledger(path, **change)
    assert not path.exists()


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


def test_lines_are_copies_and_private_data_is_absent(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.charge(key(0), EVENT)
        ledger.store(key(0), DRAWN)
        line = ledger.lines()[0]
        assert line == {"patients": "p", "session": "s", "round": 0, "event": EVENT.line()}
        line["event"]["rho"] = 0.0
        assert ledger.lines()[0]["event"]["rho"] == 0.1


def test_work_begins_once_per_open_ledger_and_never_after_it_is_stored(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.begin(key(0), EVENT)
        with pytest.raises(LedgerError, match="begins a second time"):
            ledger.begin(key(0), EVENT)
        ledger.begin(key(1), EVENT)
        ledger.demand_open()
    with pytest.raises(LedgerError, match="closed ledger"):
        ledger.demand_open()
    # A run that died before it stored anything begins again, under the same charge.
    with open_ledger(path) as ledger:
        ledger.begin(key(0), EVENT)
        assert ledger.spent().charges == 2
        ledger.store(key(0), DRAWN)
    with open_ledger(path) as ledger:
        with pytest.raises(LedgerError, match="its integers are stored"):
            ledger.begin(key(0), EVENT)
        ledger.begin(key(1), EVENT)
        assert ledger.spent().charges == 2


def test_work_that_the_budget_refuses_does_not_begin(path: Path) -> None:
    with open_ledger(path, budget_epsilon=epsilon_from_rho(0.05, 1e-5)) as ledger:
        for _ in range(2):
            with pytest.raises(LedgerError, match="beyond the budget"):
                ledger.begin(key(0), EVENT)
        assert ledger.lines() == []


def test_subsampled_steps_are_charged_and_come_back(path: Path) -> None:
    event = Event(
        "dp-sgd", ADD_OR_REMOVE_ONE, 0, 0, 0, 0, 0, rate=0.1, noise_multiplier=2.0, steps=40
    )
    with open_ledger(path, relation=ADD_OR_REMOVE_ONE) as ledger:
        for number in range(3):
            ledger.charge(key(number), event)
    with open_ledger(path, relation=ADD_OR_REMOVE_ONE) as ledger:
        assert ledger.spent() == compose([event] * 3, 1e-5)
        # The same charge again is a retry, and a changed one is not.
        ledger.charge(key(0), event)
        with pytest.raises(LedgerError, match="another mechanism"):
            ledger.charge(key(0), Event.from_line(event.line() | {"steps": 39}))


def test_units_do_not_add_up(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.charge(key(0), EVENT)
        other = Event("client-gaussian", REPLACE_ONE, 0.1, 0.1, 0, 0, 0, unit="client")
        with pytest.raises(LedgerError, match="one client on top of others"):
            ledger.charge(key(1), other)


def test_a_ledger_written_before_steps_existed_still_reads(path: Path) -> None:
    """Lines as they were: no rate, no steps, no unit; the hash chain holds over their bytes."""
    with open_ledger(path) as ledger:
        ledger.charge(key(0), EVENT)
        text = ledger._file._db.execute("SELECT line FROM lines").fetchone()[0]
    assert text == (
        '{"event":{"clamp":1e-20,"closeness":0,"mechanism":"shard-teachers",'
        '"relation":"replace_one","rho":0.1,"rho_isolated":0.3,"sampling":1e-30},'
        '"patients":"p","round":0,"session":"s"}'
    )


def test_the_budget_view_spans_runs_and_patient_sets(path: Path) -> None:
    for patients, session, rounds in (("p", "one", 2), ("q", "one", 1), ("p", "two", 3)):
        with open_ledger(path, patients=patients) as ledger:
            for number in range(rounds):
                ledger.charge(key(number, session), EVENT)
    with open_ledger(path, patients="q") as ledger:
        ledger.erase("ab" * 32)
        spent = [compose([EVENT] * count, 1e-5) for count in range(6)]
        assert ledger.budgets() == (
            Budget("p", "one", spent[2]),
            Budget("p", "two", spent[3]),
            Budget("p", None, spent[5]),
            Budget("q", "one", spent[1]),
            Budget("q", None, spent[1]),
        )
        # Sessions do not add up by themselves: their ε is below the sum's.
        assert spent[5].epsilon > spent[3].epsilon


def test_an_erasure_is_a_line_that_undoes_nothing(path: Path) -> None:
    gone, later = "ab" * 32, "cd" * 32
    with open_ledger(path) as ledger:
        ledger.charge(key(0), EVENT)
        ledger.store(key(0), DRAWN)
        ledger.erase(gone)
        ledger.erase(gone)
        ledger.charge(key(1), EVENT)
        ledger.erase(later)
        assert len(ledger.lines()) == len(ledger.chained()) == 4
        # Other readers find all that a charge has.
        assert all({"session", "round", "event"} <= line.keys() for line in ledger.lines())
    with open_ledger(path) as ledger:
        ledger.verify()
        assert ledger.spent() == compose([EVENT] * 2, 1e-5)
        assert [e.patient for e in ledger.erasures()] == [gone, later]
        assert [e.releases for e in ledger.erasures()] == [(key(0),), (key(0), key(1))]
        np.testing.assert_array_equal(ledger.stored(key(0)), DRAWN)
    with open_ledger(path, patients="q") as ledger:
        assert ledger.erasures() == ()


@pytest.mark.parametrize("patient", ["", "Anna", "AB" * 32, "ab" * 31, "ab" * 32 + "\n"])
def test_an_erasure_names_no_patient(path: Path, patient: str) -> None:
    with open_ledger(path) as ledger:
        with pytest.raises(LedgerError, match="no digest"):
            ledger.erase(patient)
        assert ledger.lines() == []


LAYOUT = Layout((Segment("logits", 500, 2),))
TEACHERS = ShardTeachers(
    shards=2,
    clip_norm=1.0,
    clip_int=1000,
    size=1000,
    sigma_share=3000.0,
    alpha=1,
    alpha_max=1,
    honest=2,
)


def release_for_ever(path: Path, crash: str, out: Connection) -> None:
    """A site's process: it releases round after round, and dies where `crash` says."""
    bounded = TEACHERS.bound(np.zeros((2, 1000)), LAYOUT)
    with open_ledger(path) as ledger:
        first = max(len(ledger.lines()) - 1, 0)
        out.send_bytes(b"ready")
        for number in range(first, first + 100_000):

            def random(count: int, last: bool = number == first + 2) -> bytes:
                if crash == "draw" and last:
                    os.kill(os.getpid(), signal.SIGKILL)
                return os.urandom(count)

            released = TEACHERS.release(bounded, ledger, key(number), random)
            if crash == "sent" and number == first + 2:
                os.kill(os.getpid(), signal.SIGKILL)
            out.send_bytes(f"{number} {digest(released.values.tobytes())}".encode())


def run_and_kill(path: Path, crash: str, seconds: float) -> dict[int, str]:
    """One process that releases round after round until SIGKILL; round → digest of what it sent."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=release_for_ever, args=(path, crash, theirs), daemon=True)
    process.start()
    theirs.close()
    assert ours.recv_bytes() == b"ready"
    if crash == "any":
        time.sleep(seconds)
        process.kill()
    sent: dict[int, str] = {}
    with contextlib.suppress(EOFError, OSError):
        # A message that was cut off was not sent.
        while True:
            number, seen = ours.recv_bytes().decode().split()
            sent[int(number)] = seen
    process.join()
    assert process.exitcode == -signal.SIGKILL
    process.close()
    ours.close()
    return sent


def check_after_kill(path: Path, sent: dict[int, str]) -> int:
    """All that must hold whenever the process died; returns the number of charges."""
    with open_ledger(path) as ledger:
        ledger.verify()
        charged = [line["round"] for line in ledger.lines()]
        assert charged == sorted(set(charged)) == list(range(len(charged)))
        for number, seen in sent.items():
            assert number in charged
            stored = ledger.stored(key(number))
            assert stored is not None
            assert digest(stored.tobytes()) == seen
        # Only the last release may have been under way.
        assert all(ledger.stored(key(number)) is not None for number in charged[:-1])
        return len(charged)


def kill_often(path: Path, kills: int) -> None:
    dice = random.Random(7)
    sent: dict[int, str] = {}
    for attempt in range(kills):
        crash = ("any", "draw", "any", "sent", "any")[attempt % 5]
        new = run_and_kill(path, crash, dice.uniform(0, 0.02))
        # A round that was sent before is sent again as it was.
        assert all(sent.get(number, seen) == seen for number, seen in new.items())
        sent |= new
        check_after_kill(path, sent)
    assert len(sent) >= kills // 2


def test_two_hundred_kills_lose_and_double_nothing(path: Path) -> None:
    kill_often(path, 200)


@pytest.mark.nightly
def test_a_thousand_kills_lose_and_double_nothing(path: Path) -> None:
    kill_often(path, 1000)


def test_the_check_sees_what_was_sent_without_a_charge(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.charge(key(0), EVENT)
        ledger.store(key(0), DRAWN)
    sent = digest(DRAWN.tobytes())
    assert check_after_kill(path, {0: sent}) == 1
    for wrong in ({1: sent}, {0: digest(b"drawn again")}):
        with pytest.raises(AssertionError):
            check_after_kill(path, wrong)

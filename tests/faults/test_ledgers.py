"""R1, R6, R17, R18: ledgers that are put back, split, fought over; folders with two masters.

R1, the random kills of a ledger's process, is in tests/protocols/test_ledger_kills.py.
"""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from protocols.accounting import REPLACE_ONE, Event, compose
from protocols.durable import Claim
from protocols.errors import LedgerError, RunFolderError
from protocols.ledger import Ledger, ReleaseKey
from tests.faults.federation import Ended, Federation

EVENT = Event("shard-teachers", REPLACE_ONE, 0.1, 0.3, 0.0, 0.0, 0.0)
DELTA = 1e-5


def refused_before_anything_leaves(made: Federation, number: int, words: str) -> None:
    before = made.tape.read()
    assert made.attempt(number) is Ended.REFUSED
    new = made.tape.read()[len(before) :]
    assert [note["what"] for note in new] == ["refused"]
    assert words in new[0]["why"]


def test_r06_a_ledger_one_to_ten_rounds_old_is_found_before_anything_leaves(federation) -> None:
    made = federation(rounds=12)
    file = made.folder / "sites" / "b" / "ledger.db"
    copies = []
    for number in range(10):
        made.ledger("b").close()
        copies.append(file.read_bytes())
        assert made.attempt(number) is Ended.WELL
    latest = file.read_bytes()
    for copy in copies:
        file.write_bytes(copy)
        refused_before_anything_leaves(made, 10, "an old copy of the file was put back")
    file.write_bytes(latest)
    assert made.attempt(10) is Ended.WELL
    made.check()


def test_r06_two_copies_of_a_ledger_that_both_went_on_are_found(federation) -> None:
    made = federation(rounds=4)
    file = made.folder / "sites" / "c" / "ledger.db"
    assert made.attempt(0) is Ended.WELL
    other = file.read_bytes()
    assert made.attempt(1) is Ended.WELL
    one = file.read_bytes()
    file.write_bytes(other)
    with made.ledger("c") as ledger:
        ledger.charge(ReleaseKey("another study", 0), made.plan.mechanisms["c"].event())
    refused_before_anything_leaves(made, 2, "another line before")
    file.write_bytes(one)
    assert made.attempt(2) is Ended.WELL
    made.check()


def opened(path: Path, budget: float) -> Ledger:
    """The ledger, as soon as no other process has it."""
    while True:
        try:
            return Ledger(path, "a", "patients", budget_epsilon=budget, delta=DELTA)
        except LedgerError as error:
            if "another process" not in str(error):
                raise
            # Fifty that ask at the same moments would only be in each other's way.
            time.sleep(int.from_bytes(os.urandom(1)) / 1000)


def fifty_at_once(path: Path, budget: float) -> tuple[int, int]:
    """Fifty processes want a charge each; how many said that they got it, and lines there are."""
    Ledger(path, "a", "patients", budget_epsilon=budget, delta=DELTA).close()
    children = []
    for number in range(50):
        child = os.fork()
        if not child:
            code = 2
            try:
                with opened(path, budget) as ledger:
                    ledger.charge(ReleaseKey("study", number), EVENT)
                code = 0
            except LedgerError as error:
                code = 1 if "beyond the budget" in str(error) else 2
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert set(codes) <= {0, 1}
    with opened(path, budget) as ledger:
        ledger.verify()
        return codes.count(0), len(ledger.lines())


def contend(folder: Path, times: int) -> None:
    for number in range(times):
        affordable = 3 + number % 7
        budget = compose([EVENT] * affordable, DELTA).epsilon + 1e-9
        path = folder / f"{number}.db"
        assert fifty_at_once(path, budget) == (affordable, affordable)


def test_r17_of_fifty_that_want_the_last_budget_exactly_the_affordable_get_it(tmp_path) -> None:
    contend(tmp_path, 1)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_r17_a_hundred_times_fifty(tmp_path) -> None:
    contend(tmp_path, 100)


def another_process_at_work(folder: Path) -> int:
    """A process that has claimed the folder, and does not let go."""
    hear, say = os.pipe()
    child = os.fork()
    if not child:
        held = Claim(folder)
        os.write(say, b"claimed")
        time.sleep(60)
        held.close()
        os._exit(0)
    assert os.read(hear, 7) == b"claimed"
    os.close(hear)
    os.close(say)
    return child


def test_r18_of_two_masters_of_one_folder_the_second_is_refused_a_hundred_times(tmp_path) -> None:
    for _ in range(100):
        other = another_process_at_work(tmp_path)
        with pytest.raises(RunFolderError, match="another process is at work"):
            Claim(tmp_path)
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
        # What a killed process held is free at once.
        Claim(tmp_path).close()


def test_r18_two_processes_do_not_play_in_one_federation(federation) -> None:
    """The second finds the sites' ledgers in use, and sends nothing."""
    made = federation()
    with made.ledger("d"):
        refused_before_anything_leaves(made, 0, "another process is writing")
    assert made.attempt(0) is Ended.WELL
    shutil.rmtree(made.folder / "late", ignore_errors=True)
    made.check()

"""R9, R10: files that change by themselves, and clocks that jump."""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from protocols.audit_events import RoundLearned
from protocols.audit_log import AuditLog, read_log
from protocols.checkpoints import check_covered, read_checkpoints
from protocols.errors import LedgerError, NatflError
from protocols.ledger import Ledger
from protocols.transcript import TORN, Transcript
from tests.faults.federation import Ended, Federation
from tests.faults.network import Schedule

# R9: what lies on disk is changed.


def rotten(data: bytes, draw: np.random.Generator, flips: int, cuts: int) -> Iterator[bytes]:
    for _ in range(flips):
        at = int(draw.integers(len(data)))
        yield data[:at] + bytes([data[at] ^ (1 << int(draw.integers(8)))]) + data[at + 1 :]
    for _ in range(cuts):
        yield data[: int(draw.integers(len(data)))]


def verdict(read: Callable[[], object], honest: object) -> str:
    try:
        return "as it was" if read() == honest else "other"
    except NatflError:
        return "refused"


def rot(made: Federation, folder: Path, flips: int, cuts: int) -> Counter[str]:
    """A site's ledger, a journal's blob and the logs: refused, or read as they were."""
    draw, found = np.random.default_rng(9), Counter[str]()
    ledger = made.folder / "sites" / "a" / "ledger.db"
    journal = made.folder / "holders" / "a.holder" / "journal"
    blob = next(iter((journal / "messages").iterdir()))

    def read_ledger() -> object:
        Path(f"{ledger}-wal").unlink(missing_ok=True)
        with made.ledger("a") as opened:
            opened.verify()
            return opened.lines(), opened.head

    def read_journal() -> object:
        with Transcript(copied) as transcript:
            transcript.verify()
            return [entry for entry in transcript.entries if entry.kind != TORN]

    def read_log_file() -> object:
        log = read_log(audit.read_bytes())
        for one in read_checkpoints(made.folder / "sites" / "a" / "checkpoints.jsonl"):
            check_covered(log.tree, one.checkpoint)
        return log.lines

    copied, audit = folder / "journal", made.folder / "audit.jsonl"
    shutil.copytree(journal, copied)
    message = copied / "messages" / blob.name
    targets = {ledger: read_ledger, message: read_journal, audit: read_log_file}
    names = {ledger: "ledger", message: "journal", audit: "audit log"}
    for path, read in targets.items():
        data, honest = path.read_bytes(), read()
        share = len(targets)
        for changed in rotten(data, draw, flips // share, cuts // share):
            path.write_bytes(changed)
            found[f"{names[path]} {verdict(read, honest)}"] += 1
            path.write_bytes(data)
        assert read() == honest
    return found


def test_r09_changed_files_are_refused_or_read_as_they_were(played, tmp_path) -> None:
    found = rot(played, tmp_path, 240, 60)
    assert not [what for what in found if what.endswith("other")], found
    assert sum(found[what] for what in found if what.endswith("refused")) >= 150
    assert played.attempt(3) is Ended.WELL
    played.check()


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_r09_a_thousand_flips_and_two_hundred_cuts(played, tmp_path) -> None:
    found = rot(played, tmp_path, 1002, 201)
    assert not [what for what in found if what.endswith("other")], found
    print(dict(found))  # noqa: T201 - the counts of docs/results/reliability.md


def test_r09_a_ledger_whose_tables_have_no_readable_name_is_refused(tmp_path) -> None:
    """SQLite names what it found in bytes that are no text."""
    path = tmp_path / "ledger.db"
    arguments = (path, "a", "patients")
    Ledger(*arguments, budget_epsilon=None, delta=1e-5).close()
    data = path.read_bytes()
    path.write_bytes(data.replace(b"CREATE TABLE lines", b"CREATE \xa8ABLE lines"))
    with pytest.raises(LedgerError, match="cannot be read"):
        Ledger(*arguments, budget_epsilon=None, delta=1e-5)


# R10: the clock.


class Clock(datetime):
    """What the audit log asks for the time."""

    at = datetime(2026, 3, 29, 0, 59, 59, tzinfo=UTC)

    @classmethod
    def now(cls, tz=None):
        return cls.at


def test_r10_a_log_is_whole_whatever_the_clock_does(tmp_path, monkeypatch) -> None:
    """24 jumps, from a second to ten years either way: order is by number, not by time."""
    jumps: list[int] = []
    for seconds in (1, 2, 60, 3600, 86_400, 7 * 86_400, 30 * 86_400, 365 * 86_400):
        jumps += [seconds, -seconds]
    jumps += [sign * 86_400 * 365 * years for years in (2, 4, 8, 10) for sign in (1, -1)]
    assert len(jumps) == 24
    monkeypatch.setattr("protocols.audit_log.datetime", Clock)
    for jump in jumps:
        monkeypatch.setattr(Clock, "at", Clock.at + timedelta(seconds=jump))
        with AuditLog(tmp_path / "audit.jsonl") as log:
            log.append("server", RoundLearned(round=len(log.records), model="0" * 64))
    log = read_log((tmp_path / "audit.jsonl").read_bytes())
    assert [record.body.round for record in log.records()] == list(range(24))


def test_r10_the_parties_ask_no_clock(played, monkeypatch) -> None:
    """Each look at a clock is ten years from the last: rounds open, and close, as ever."""
    real, asked = {name: getattr(time, name) for name in ("time", "monotonic")}, iter(range(10**9))

    def jumping(name: str) -> float:
        return real[name]() + (-1) ** next(asked) * 10 * 365 * 86_400

    for name in real:
        monkeypatch.setattr(time, name, partial(jumping, name))
        monkeypatch.setattr(time, f"{name}_ns", lambda name=name: int(jumping(name) * 10**9))
    assert time.time() - time.time() > 10**8
    monkeypatch.setattr("protocols.audit_log.datetime", Clock)
    # A delayed plan is judged by its number: old messages that arrive late open nothing.
    for years, schedule, ends in (
        (10, Schedule(seed=1, delay=0.3), {Ended.REFUSED}),
        (-20, Schedule(seed=2, replay=0.02), {Ended.WELL, Ended.REFUSED}),
        (15, Schedule(), {Ended.WELL}),
    ):
        monkeypatch.setattr(Clock, "at", Clock.at + timedelta(days=365 * years))
        assert played.attempt(3, schedule) in ends
    played.check()

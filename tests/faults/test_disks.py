"""R4, R5, R9, R10: disks that tear, fill up, refuse or rot, and clocks that jump."""

import errno
import os
import resource
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from protocols.audit_events import RoundLearned
from protocols.audit_log import AuditLog, read_log
from protocols.checkpoints import append_line, check_covered, read_checkpoints
from protocols.errors import NatflError
from protocols.ledger import Ledger
from protocols.ledger_heads import HeadBook, sign_head
from protocols.transcript import TORN, Transcript
from tests.faults.federation import Ended, Federation
from tests.faults.network import Schedule

SECTOR = 512


@pytest.fixture
def played(federation) -> Federation:
    """Three rounds."""
    made = federation()
    for number in range(3):
        assert made.attempt(number) is Ended.WELL
    made.check()
    return made


# R4: power is lost while the last line is on its way.


def read_index(path: Path) -> int:
    with Transcript(path.parent) as transcript:
        return sum(entry.kind != TORN for entry in transcript.entries)


def read_audit(path: Path) -> int:
    with AuditLog(path) as log:
        return sum(record.actor != "log" for record in log.records)


def read_heads(made: Federation, name: str) -> Callable[[Path], int]:
    public = {site: key.public for site, key in made.keys.items()}
    return lambda path: len(HeadBook(path, name, made.keys[name], public).kept)


def appended(made: Federation) -> dict[Path, Callable[[Path], int]]:
    """Every kind of append-only file, and how a party reads it."""
    return {
        made.folder / "transcript" / "index.jsonl": read_index,
        made.folder / "holders" / "a.holder" / "journal" / "index.jsonl": read_index,
        made.folder / "audit.jsonl": read_audit,
        made.folder / "sites" / "a" / "checkpoints.jsonl": lambda p: len(read_checkpoints(p)),
        made.folder / "sites" / "b" / "heads.jsonl": read_heads(made, "b"),
    }


def torn(data: bytes, whole: int) -> Iterator[bytes]:
    """What a disk may hold when the line after `whole` bytes was cut off, or came as zeros."""
    end = data.index(b"\n", whole) + 1
    for kept in (1, (end - whole) // 2, end - whole - 2):
        yield data[: whole + kept]
        yield data[: whole + kept] + bytes(end - whole - kept)
    yield data[:whole] + bytes(end - whole)


def tear_everything(made: Federation, every: int) -> int:
    cases = 0
    for path, read in appended(made).items():
        data = path.read_bytes()
        starts = [0, *(at + 1 for at, byte in enumerate(data[:-1]) if byte == 10)]
        for lines in range(0, len(starts), every):
            for left in torn(data, starts[lines]):
                path.write_bytes(left)
                assert read(path) == lines, path
                # What was torn is noted or gone: the file goes on, and reads as before.
                assert read(path) == lines, path
                cases += 1
        path.write_bytes(data)
    return cases


def test_r04_a_torn_line_is_never_taken_for_a_whole_one(played) -> None:
    assert tear_everything(played, every=15) >= 90
    assert played.attempt(3) is Ended.WELL
    played.check()


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_r04_every_line_of_three_rounds_is_torn(played) -> None:
    assert tear_everything(played, every=1) >= 3000


def snapshots(made: Federation, number: int) -> list[tuple[bytes, bytes]]:
    """A site's database and its log of changes, on disk after each durable write of a round."""
    place, kept = made.folder / "sites" / "a", made.folder / "kept"
    kept.mkdir()

    def copy(moment: str) -> None:
        if moment.startswith("after ledger"):
            at = len(list(kept.iterdir()))
            for file in ("ledger.db", "ledger.db-wal"):
                if (place / file).exists():
                    shutil.copy(place / file, kept / f"{at:04d}{file}")

    assert made.attempt(number, None, copy) is Ended.WELL
    bases = sorted(kept.glob("*ledger.db"))
    return [(base.read_bytes(), Path(f"{base}-wal").read_bytes()) for base in bases]


def test_r04_a_torn_page_of_a_ledger_leaves_the_lines_that_were_flushed(federation, tmp_path):
    """Cut, zeroed or foreign from every sector on: what was flushed before is there."""
    made = federation()
    states, cases = snapshots(made, 0), 0
    for (base, before), (_, after) in pairwise(states):
        if not after.startswith(before) or after == before:
            continue
        for at in range(len(before), len(after), SECTOR):
            for tail in (b"", bytes(len(after) - at), os.urandom(len(after) - at)):
                (tmp_path / "ledger.db").write_bytes(base)
                (tmp_path / "ledger.db-wal").write_bytes(after[:at] + tail)
                with Ledger(
                    tmp_path / "ledger.db", "a", "patients", budget_epsilon=None, delta=1e-5
                ) as ledger:
                    ledger.verify()
                    # The charge was flushed before; the attachment is there whole, or not.
                    assert len(ledger.lines()) == 1
                cases += 1
    assert cases >= 20


# R5: the disk refuses.


REFUSALS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.EMFILE)


def refusing(kind: str, code: int) -> Callable[[str], None]:
    """The first write of a kind fails as the system would have it fail."""

    def watcher(moment: str) -> None:
        if moment == f"before {kind}":
            if kind.startswith("ledger"):
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorname = "SQLITE_FULL" if code == errno.ENOSPC else "SQLITE_IOERR"
                raise error
            raise OSError(code, os.strerror(code))

    return watcher


KINDS = (
    "transcript message",
    "transcript line",
    "journal message",
    "journal line",
    "ledger line",
    "ledger attachment",
    "kept head",
    "audit record",
    "checkpoint",
)


def test_r05_every_durable_write_fails_in_each_of_five_ways(federation) -> None:
    made, draw = federation(rounds=12), np.random.default_rng(5)
    for number, kind in enumerate(KINDS):
        code = REFUSALS[number % 5] if number else int(draw.choice(REFUSALS))
        # Holders that cannot write refuse, and the round goes on with those who can, or not.
        assert made.attempt(number, None, refusing(kind, code)) is Ended.REFUSED
        assert made.attempt(number) is Ended.WELL
    made.check()


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_r05_45_failing_writes(federation) -> None:
    for code in REFUSALS:
        made = federation(rounds=12)
        for number, kind in enumerate(KINDS):
            assert made.attempt(number, None, refusing(kind, code)) is Ended.REFUSED
            assert made.attempt(number) is Ended.WELL
        made.check()


def test_r05_a_disk_that_runs_full_refuses_in_one_line_and_goes_on_when_there_is_room(
    small_disk, tmp_path
) -> None:
    """A real file system with so many KiB left; what was half written is taken for nothing."""
    made = Federation(small_disk, rounds=30, tape=tmp_path / "tape")
    assert made.attempt(0) is Ended.WELL
    ballast, ends = small_disk / "ballast", Counter[Ended]()
    for number, left in enumerate((4, 40, 120, 200, 280, 360, 440), start=1):
        free = shutil.disk_usage(small_disk).free
        ballast.write_bytes(bytes(max(free - left * 1024, 0)))
        ends[made.attempt(number)] += 1
        ballast.unlink()
        made.check()
        assert made.attempt(number) is Ended.WELL
    assert ends[Ended.REFUSED] >= 4
    made.check()


def test_r05_a_limit_on_the_size_of_files_or_their_number_is_one_line(federation) -> None:
    made, ends = federation(rounds=30), Counter[Ended]()
    assert made.attempt(0) is Ended.WELL
    limits = [(resource.RLIMIT_FSIZE, size) for size in (500, 20_000, 40_000)]
    limits += [(resource.RLIMIT_NOFILE, fds) for fds in (12, 20, 30, 34)]
    for number, (which, limit) in enumerate(limits, start=1):

        def lowered(_: str, which: int = which, limit: int = limit) -> None:
            resource.setrlimit(which, (limit, resource.getrlimit(which)[1]))

        ends[made.attempt(number, None, lowered)] += 1
        made.check()
        assert made.attempt(number) is Ended.WELL
    assert ends[Ended.REFUSED] >= 3
    made.check()


@pytest.fixture
def file_limit() -> Iterator[Callable[[Path], None]]:
    """The system takes ten more bytes of a file, and no more, until the test ends."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(path: Path | None) -> None:
        most = path.stat().st_size + 10 if path else before[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_r05_a_line_of_which_the_disk_took_half_is_taken_back(played, file_limit) -> None:
    """The party goes on in the same process when there is room again; its file reads whole."""
    made, a = played, played.folder / "sites" / "a"
    with Transcript(made.folder / "transcript") as transcript:
        blob = transcript.read(transcript.entries[-1])
        again = partial(transcript.append, blob, "server", ("a",))
        _half_and_whole(transcript.folder / "index.jsonl", again, file_limit)
    with AuditLog(made.folder / "audit.jsonl") as log:
        learned = RoundLearned(round=0, model="0" * 64)
        _half_and_whole(log.path, partial(log.append, "server", learned), file_limit)
    with made.ledger("b") as ledger:
        head = sign_head(ledger, made.keys["b"])
    book = HeadBook(a / "new.jsonl", "a", made.keys["a"], {"b": made.keys["b"].public})
    (a / "new.jsonl").touch()
    _half_and_whole(a / "new.jsonl", partial(book.keep, head), file_limit)
    one = read_checkpoints(a / "checkpoints.jsonl")[-1]
    _half_and_whole(
        a / "checkpoints.jsonl", partial(append_line, a / "checkpoints.jsonl", one), file_limit
    )
    counts = [read(path) for path, read in appended(made).items()]
    assert min(counts) >= 1
    assert len(HeadBook(a / "new.jsonl", "a", made.keys["a"], {}).kept) == 1
    with Transcript(made.folder / "transcript") as transcript:
        assert not transcript.torn


def _half_and_whole(path: Path, write: Callable[[], object], limit: Callable[..., None]) -> None:
    before = path.read_bytes()
    limit(path)
    with pytest.raises(NatflError, match="cannot be"):
        write()
    limit(None)
    assert path.read_bytes() == before
    write()
    assert path.read_bytes().startswith(before)
    assert path.read_bytes().count(b"\n") == before.count(b"\n") + 1


def test_r05_folders_that_may_not_be_written_are_one_line(played) -> None:
    if os.geteuid():
        pytest.skip("needs another user than the owner")

    def nobody(moment: str) -> None:
        if moment == "before ledger line":
            os.seteuid(65534)

    assert played.attempt(3, None, nobody) is Ended.REFUSED
    played.check()
    assert played.attempt(3) is Ended.WELL
    played.check()


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


# R10: the clock.


def test_r10_a_log_is_whole_whatever_the_clock_does(tmp_path, monkeypatch) -> None:
    """24 jumps, from a second to ten years either way: order is by number, not by time."""
    start, jumps = datetime(2026, 3, 29, 0, 59, 59, tzinfo=UTC), []
    for seconds in (1, 2, 60, 3600, 86_400, 7 * 86_400, 30 * 86_400, 365 * 86_400):
        jumps += [seconds, -seconds]
    jumps += [sign * 86_400 * 365 * years for years in (2, 4, 8, 10) for sign in (1, -1)]
    assert len(jumps) == 24

    class Clock(datetime):
        at = start

        @classmethod
        def now(cls, tz=None):
            return cls.at

    monkeypatch.setattr("protocols.audit_log.datetime", Clock)
    for jump in jumps:
        Clock.at += timedelta(seconds=jump)
        with AuditLog(tmp_path / "audit.jsonl") as log:
            log.append("server", RoundLearned(round=len(log.records), model="0" * 64))
    log = read_log((tmp_path / "audit.jsonl").read_bytes())
    assert [record.body.round for record in log.records()] == list(range(24))


def test_r10_the_parties_ask_no_clock(played) -> None:
    """A delayed plan is judged by its number: old messages that arrive late open nothing."""
    assert played.attempt(3, Schedule(seed=1, delay=0.3)) is Ended.REFUSED
    assert played.attempt(3, Schedule(seed=2, replay=0.02)) in {Ended.WELL, Ended.REFUSED}
    assert played.attempt(3) is Ended.WELL
    played.check()

"""R5: disks that fill up or refuse."""

import errno
import os
import resource
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from protocols.audit_events import RoundLearned
from protocols.audit_log import AuditLog
from protocols.checkpoints import append_line, read_checkpoints
from protocols.errors import NatflError
from protocols.ledger_heads import HeadBook, sign_head
from protocols.transcript import Transcript
from tests.faults.federation import Ended, Federation
from tests.faults.reading import appended

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
    for number, left in enumerate((4, 120, 240, 360), start=1):
        free = shutil.disk_usage(small_disk).free
        ballast.write_bytes(bytes(max(free - left * 1024, 0)))
        ends[made.attempt(number)] += 1
        ballast.unlink()
        made.check()
        assert made.attempt(number) is Ended.WELL
    assert ends[Ended.REFUSED] >= 2
    made.check()


def test_r05_a_limit_on_the_size_of_files_or_their_number_is_one_line(federation) -> None:
    made, ends = federation(rounds=30), Counter[Ended]()
    assert made.attempt(0) is Ended.WELL
    limits = [(resource.RLIMIT_FSIZE, size) for size in (500, 20_000)]
    limits += [(resource.RLIMIT_NOFILE, fds) for fds in (12, 30)]
    for number, (which, limit) in enumerate(limits, start=1):

        def lowered(_: str, which: int = which, limit: int = limit) -> None:
            resource.setrlimit(which, (limit, resource.getrlimit(which)[1]))

        ends[made.attempt(number, None, lowered)] += 1
        made.check()
        assert made.attempt(number) is Ended.WELL
    assert ends[Ended.REFUSED] >= 2
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

"""R4: disks that tear lines and pages."""

import os
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from protocols.ledger import Ledger
from tests.faults.federation import Ended, Federation
from tests.faults.reading import appended

SECTOR = 512


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
    lines = sum(path.read_bytes().count(b"\n") for path in appended(played))
    assert tear_everything(played, every=1) == 7 * lines
    print(7 * lines)  # noqa: T201 - the count of docs/results/reliability.md


LINES = {
    "transcript line": "transcript/index.jsonl",
    "journal line": "holders/a.holder/journal/index.jsonl",
    "audit record": "audit.jsonl",
    "checkpoint": "sites/a/checkpoints.jsonl",
    "kept head": "sites/b/heads.jsonl",
}


def test_r04_the_parties_go_on_behind_a_line_that_power_loss_tore(federation) -> None:
    """Everybody dies while a line is written; the parties themselves open what is left."""
    made = federation(rounds=6)
    assert made.attempt(0) is Ended.WELL
    for number, (kind, file) in enumerate(LINES.items(), start=1):
        path = made.folder / file

        def tear(moment: str, kind: str = kind, path: Path = path) -> None:
            if moment == f"before {kind}":
                with path.open("ab") as torn_file:
                    torn_file.write(path.read_bytes().splitlines()[-1][:70])
                os._exit(Ended.KILLED.value)

        assert made.attempt(number, None, tear) is Ended.KILLED, kind
        assert made.attempt(number) is Ended.WELL, (kind, made.tape.read()[-1])
        made.check()


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

"""A ledger whose process is killed again and again loses no charge and sends nothing twice."""

import contextlib
import multiprocessing
import os
import random
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from protocols.chain import digest
from protocols.mechanisms import ShardTeachers
from protocols.quantize import Layout, Segment
from tests.protocols.ledgers import DRAWN, EVENT, key, open_ledger
from tests.protocols.ledgers import path as path

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

"""A site's process in `benchmarks.deployed`: the deployment's own, which also answers empty ones.

To an empty question it answers one byte, after as much work as its learning took when the same
phase was last asked in earnest.
"""

from __future__ import annotations

import sys
import time
from functools import wraps
from pathlib import Path
from typing import Any, Final

import torch

from secure_natfl.deploy import training
from secure_natfl.deploy.serve import SOCKET, open_party, serve
from secure_natfl.systems.natimg_fl import NatImgFL

EMPTY: Final = b"0"


class Meter:
    """CPU seconds that this process spent in what is learning."""

    def __init__(self) -> None:
        self._spent = 0.0

    def count(self, owner: Any, name: str, sign: float = 1.0) -> None:
        """From now on, a function's time counts; sign −1: it does not, within one that does."""
        inner = getattr(owner, name)

        @wraps(inner)
        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.process_time()
            try:
                return inner(*arguments, **named)
            finally:
                self._spent += sign * (time.process_time() - start)

        setattr(owner, name, timed)

    def taken(self) -> float:
        """Seconds since it was last asked."""
        spent, self._spent = self._spent, 0.0
        return spent


class Both:
    """A party that also plays the empty app's."""

    def __init__(self, folder: Path) -> None:
        self._party, self._meter = open_party(folder), Meter()
        self._learned: dict[str, float] = {}
        # What a site learns with; charging its ledger is no learning.
        for name in ("contribute", "returned", "personalise", "answering"):
            self._meter.count(NatImgFL, name)
        self._meter.count(training, "standing")
        self._meter.count(training.TrainedOutput, "begin", -1.0)

    @property
    def name(self) -> str:
        """The party's."""
        return self._party.name

    def handle(self, phase: str, body: bytes) -> bytes:
        """See `secure_natfl.deploy.party.Party`."""
        if body == EMPTY:
            burn(self._learned.get(phase, 0.0))
            return EMPTY
        self._meter.taken()
        found = self._party.handle(phase, body)
        self._learned[phase] = self._meter.taken()
        sys.stdout.write(f"{phase} learned {self._learned[phase]:.3f} s\n")
        sys.stdout.flush()
        return found

    def close(self) -> None:
        """Close the party."""
        self._party.close()


def burn(seconds: float) -> None:
    """Keep the processor busy for so many seconds of its time."""
    end, square = time.process_time() + seconds, torch.ones(128, 128)
    while time.process_time() < end:
        torch.mm(square, square)


if __name__ == "__main__":
    torch.set_num_threads(1)
    at = Path(sys.argv[1]).resolve()
    serve(Both(at), at / SOCKET)

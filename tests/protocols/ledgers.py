"""A ledger of one site, as the tests of ledgers open it."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocols.accounting import (
    REPLACE_ONE,
    Event,
)
from protocols.ledger import Ledger
from protocols.mechanisms import ReleaseKey

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

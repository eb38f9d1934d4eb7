"""Plans and ledgers for the tests of noisy descents."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocols.accounting import ADD_OR_REMOVE_ONE
from protocols.chain import RandomBytes
from protocols.dp_sgd import DpSgd
from protocols.ledger import Ledger, ReleaseKey

KEY = ReleaseKey("session", 0)
SIZE = 6


def plan(**changes: Any) -> DpSgd:
    figures: dict[str, Any] = {
        "clip_norm": 2.0,
        "noise_multiplier": 1.5,
        "rate": 1.0,
        "steps": 3,
        "size": SIZE,
        "expected": 4.0,
    }
    return DpSgd(**figures | changes)


def open_ledger(path: Path, **changes: Any) -> Ledger:
    figures: dict[str, Any] = {"relation": ADD_OR_REMOVE_ONE, "budget_epsilon": None, "delta": 1e-5}
    return Ledger(path, "A", "p", **figures | changes)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with open_ledger(tmp_path / "ledger.db") as opened:
        yield opened


def one_step(chosen: DpSgd, ledger: Any, random: RandomBytes, units: list[Any]) -> np.ndarray:
    descent = chosen.begin(ledger, KEY, random)
    sampled = descent.sample(len(units))
    return descent.step([units[i] for i in sampled])


class Accepting:
    """Stands in where a property runs hundreds of times: it lets everything begin."""

    def begin(self, key: ReleaseKey, event: object) -> None:
        pass

    def demand_open(self) -> None:
        pass

"""Controls: parties that break one rule are found out by the invariants, each by its own."""

import os
import shutil
from collections.abc import Callable

import numpy as np
import pytest

from protocols.chain import digest
from protocols.holding import Holding
from protocols.ledger import Ledger, ReleaseKey
from protocols.messages import RoundPlan
from protocols.release import Released
from tests.faults.federation import Ended, Federation, killed_at
from tests.faults.network import Schedule


class DrawsAnew(Federation):
    """Sites that draw fresh noise for a retry instead of sending what they stored."""

    def _releaser(self, name: str, ledgers: dict[str, Ledger]) -> Callable[[RoundPlan], Released]:
        honest = super()._releaser(name, ledgers)

        def release(plan: RoundPlan) -> Released:
            released = honest(plan)
            noise = np.frombuffer(os.urandom(self.layout.size), np.int8)
            object.__setattr__(released, "values", released.values + noise)
            sent = digest(released.values.astype("<i8").tobytes())
            self.tape.note("release", site=name, round=plan.round, sha256=sent)
            return released

        return release


class Forgets(Federation):
    """Key holders whose journal does not outlive a process."""

    def holder(self, name: str) -> Holding:
        shutil.rmtree(self.folder / "holders" / name, ignore_errors=True)
        return super().holder(name)


class SendsUncharged(Federation):
    """Sites that keep a second ledger for what they really send."""

    def ledger(self, name: str) -> Ledger:
        if self.playing:
            path = self.folder / f"{name}.db"
            return Ledger(path, name, "patients", budget_epsilon=None, delta=1e-5)
        return super().ledger(name)

    playing = False

    def _played(self, number: int, schedule: Schedule) -> None:
        self.playing = True
        super()._played(number, schedule)


def test_fresh_noise_on_a_retry_is_found(tmp_path) -> None:
    federation = DrawsAnew(tmp_path)
    federation.attempt(0)
    with pytest.raises(AssertionError, match="a retry drew other integers"):
        federation.check()


def test_holders_that_forget_are_found(tmp_path) -> None:
    """They answer a second request for a round: the server lost one client in between."""
    federation = Forgets(tmp_path)
    killed = killed_at(0, lambda moment: moment == "before kept head")
    assert federation.attempt(0, None, killed) is Ended.KILLED
    shutil.rmtree(federation.folder / "transcript")
    federation.attempt(0, Schedule(cut=("d",)))
    with pytest.raises(AssertionError, match=r"two sums|two requests|does not know"):
        federation.check()


def test_what_is_sent_without_a_charge_is_found(tmp_path) -> None:
    federation = SendsUncharged(tmp_path)
    federation.attempt(0)
    with pytest.raises(AssertionError, match="sent without a charge"):
        federation.check()


def test_a_charge_that_is_taken_back_is_found(tmp_path) -> None:
    federation = Federation(tmp_path)
    file = tmp_path / "sites" / "a" / "ledger.db"
    federation.ledger("a").close()
    empty = file.read_bytes()
    federation.attempt(0, Schedule(drop=1.0))
    with federation.ledger("a") as ledger:
        ledger.charge(ReleaseKey("study", 0), federation.plan.mechanisms["a"].event())
    federation.check()
    file.write_bytes(empty)
    with pytest.raises(AssertionError, match="changed or taken back"):
        federation.check()

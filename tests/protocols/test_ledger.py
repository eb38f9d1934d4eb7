"""What a ledger charges, stores and refuses."""

import math
from pathlib import Path

import numpy as np
import pytest

from protocols.accounting import (
    ADD_OR_REMOVE_ONE,
    REPLACE_ONE,
    Event,
    compose,
    epsilon_from_rho,
)
from protocols.errors import LedgerError, PrivacyError
from protocols.ledger import Budget
from tests.protocols.ledgers import DRAWN, EVENT, FREE, key, open_ledger
from tests.protocols.ledgers import path as path


def test_spending_adds_up_over_runs(path: Path) -> None:
    for session in ("one", "two"):
        with open_ledger(path) as ledger:
            for number in range(3):
                ledger.charge(key(number, session), EVENT)
    with open_ledger(path) as ledger:
        spent = ledger.spent()
        assert spent.charges == 6
        assert spent.rho == pytest.approx(0.6)
        assert spent.epsilon == epsilon_from_rho(spent.rho, 1e-5)
        assert spent.epsilon_isolated == pytest.approx(epsilon_from_rho(1.8, 1e-5))
        ledger.verify()


def test_a_key_is_charged_once(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.charge(key(0), EVENT)
        ledger.charge(key(0), EVENT)
        assert len(ledger.lines()) == ledger.spent().charges == 1
    with open_ledger(path) as ledger:
        ledger.charge(key(0), EVENT)
        assert ledger.spent().charges == 1


def test_a_key_is_not_charged_for_something_else(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.charge(key(0), EVENT)
        with pytest.raises(LedgerError, match="another mechanism"):
            ledger.charge(key(0), FREE)


def test_integers_come_back_as_they_were_stored(path: Path) -> None:
    with open_ledger(path) as ledger:
        assert ledger.stored(key(0)) is None
        ledger.charge(key(0), EVENT)
        assert ledger.stored(key(0)) is None
        ledger.store(key(0), DRAWN)
    with open_ledger(path) as ledger:
        stored = ledger.stored(key(0))
        assert stored is not None
        assert stored.dtype == np.int64
        np.testing.assert_array_equal(stored, DRAWN)
        assert ledger.stored(key(1)) is None
        assert ledger.stored(key(0, "other")) is None


def test_integers_are_stored_after_a_charge_and_once(path: Path) -> None:
    with open_ledger(path) as ledger:
        with pytest.raises(LedgerError, match="not charged"):
            ledger.store(key(0), DRAWN)
        ledger.charge(key(0), EVENT)
        ledger.store(key(0), DRAWN)
        with pytest.raises(LedgerError, match="stored already"):
            ledger.store(key(0), DRAWN + 1)
        np.testing.assert_array_equal(ledger.stored(key(0)), DRAWN)


def test_the_file_itself_refuses_integers_without_a_charge(path: Path) -> None:
    with open_ledger(path) as ledger:
        with pytest.raises(LedgerError, match="its rules refuse the change"):
            ledger._file.attach(1, b"integers")
        ledger.charge(key(0), EVENT)
        ledger._file.attach(1, b"integers")
        with pytest.raises(LedgerError, match="its rules refuse the change"):
            ledger._file.attach(1, b"others")


def test_patient_sets_share_a_ledger_and_add_up_apart(path: Path) -> None:
    with open_ledger(path, patients="p") as ledger:
        ledger.charge(key(0), EVENT)
        ledger.store(key(0), DRAWN)
    with open_ledger(path, patients="q") as ledger:
        assert ledger.spent().charges == 0
        assert ledger.stored(key(0)) is None
        ledger.charge(key(0), EVENT)
        ledger.charge(key(1), EVENT)
        assert ledger.spent().charges == 2
        assert [line["patients"] for line in ledger.lines()] == ["p", "q", "q"]
    with open_ledger(path, patients="p") as ledger:
        assert ledger.spent().charges == 1


def test_overspending_is_refused_before_anything_is_written(path: Path) -> None:
    budget = epsilon_from_rho(0.35, 1e-5)
    with open_ledger(path, budget_epsilon=budget) as ledger:
        for number in range(3):
            ledger.charge(key(number), EVENT)
        before = path.read_bytes(), ledger.lines(), ledger.head
        with pytest.raises(LedgerError, match="beyond the budget") as refusal:
            ledger.charge(key(3), EVENT)
        assert (path.read_bytes(), ledger.lines(), ledger.head) == before
        # A retry of what was charged still works.
        ledger.charge(key(2), EVENT)
    enough = float(refusal.value.fix.split("ε = ")[1].split(",")[0])
    with open_ledger(path, budget_epsilon=enough) as ledger:
        ledger.charge(key(3), EVENT)
    with open_ledger(path, budget_epsilon=enough - 0.01) as ledger:
        assert ledger.spent().epsilon > enough - 0.01


def test_a_refusal_names_noise_and_releases_that_would_fit(path: Path) -> None:
    budget = epsilon_from_rho(0.35, 1e-5)
    with open_ledger(path, budget_epsilon=budget) as ledger:
        with pytest.raises(LedgerError, match="or 3 such releases would fit") as refusal:
            ledger.require(EVENT, 12)
        ledger.require(EVENT, 3)
        wider = float(refusal.value.fix.split(" times")[0].split(" ")[-1])
        fitting = Event("shard-teachers", REPLACE_ONE, 0.1 / wider**2, 0.3, 0.0, 0.0, 0.0)
        ledger.require(fitting, 12)
        assert ledger.lines() == []


def test_an_unprotected_release_needs_a_ledger_without_budget(path: Path) -> None:
    with open_ledger(path, budget_epsilon=1000.0) as ledger:
        with pytest.raises(LedgerError, match="choose a mechanism with noise"):
            ledger.charge(key(0), FREE)
        assert ledger.lines() == []
    with open_ledger(path) as ledger:
        ledger.charge(key(0), FREE)
        assert ledger.spent().epsilon == math.inf
    # From then on no budget holds for this patient set, but does for another.
    with (
        open_ledger(path, budget_epsilon=8.0) as ledger,
        pytest.raises(LedgerError, match="from inf to inf"),
    ):
        ledger.charge(key(1), EVENT)
    with open_ledger(path, budget_epsilon=8.0, patients="q") as ledger:
        ledger.charge(key(1), EVENT)


def test_one_relation_per_ledger(path: Path) -> None:
    with open_ledger(path) as ledger:
        other = Event("shard-teachers", "add_remove", 0.1, 0.1, 0.0, 0.0, 0.0)
        with pytest.raises(LedgerError, match="do not add up"):
            ledger.charge(key(0), other)
    with pytest.raises(LedgerError, match="ledger of relation replace_one, not add_remove"):
        open_ledger(path, relation="add_remove")


def test_a_ledger_belongs_to_one_site(path: Path) -> None:
    open_ledger(path).close()
    with pytest.raises(LedgerError, match="ledger of site A, not B"):
        open_ledger(path, site="B")


@pytest.mark.parametrize("change", [{"budget_epsilon": 0.0}, {"delta": 0.0}, {"delta": 1.0}])
def test_impossible_targets_are_refused(path: Path, change: dict[str, float]) -> None:
    with pytest.raises(PrivacyError):
        open_ledger(path, **change)
    assert not path.exists()


def test_lines_are_copies_and_private_data_is_absent(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.charge(key(0), EVENT)
        ledger.store(key(0), DRAWN)
        line = ledger.lines()[0]
        assert line == {"patients": "p", "session": "s", "round": 0, "event": EVENT.line()}
        line["event"]["rho"] = 0.0
        assert ledger.lines()[0]["event"]["rho"] == 0.1


def test_work_begins_once_per_open_ledger_and_never_after_it_is_stored(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.begin(key(0), EVENT)
        with pytest.raises(LedgerError, match="begins a second time"):
            ledger.begin(key(0), EVENT)
        ledger.begin(key(1), EVENT)
        ledger.demand_open()
    with pytest.raises(LedgerError, match="closed ledger"):
        ledger.demand_open()
    # A run that died before it stored anything begins again, under the same charge.
    with open_ledger(path) as ledger:
        ledger.begin(key(0), EVENT)
        assert ledger.spent().charges == 2
        ledger.store(key(0), DRAWN)
    with open_ledger(path) as ledger:
        with pytest.raises(LedgerError, match="its integers are stored"):
            ledger.begin(key(0), EVENT)
        ledger.begin(key(1), EVENT)
        assert ledger.spent().charges == 2


def test_work_that_the_budget_refuses_does_not_begin(path: Path) -> None:
    with open_ledger(path, budget_epsilon=epsilon_from_rho(0.05, 1e-5)) as ledger:
        for _ in range(2):
            with pytest.raises(LedgerError, match="beyond the budget"):
                ledger.begin(key(0), EVENT)
        assert ledger.lines() == []


def test_subsampled_steps_are_charged_and_come_back(path: Path) -> None:
    event = Event(
        "dp-sgd", ADD_OR_REMOVE_ONE, 0, 0, 0, 0, 0, rate=0.1, noise_multiplier=2.0, steps=40
    )
    with open_ledger(path, relation=ADD_OR_REMOVE_ONE) as ledger:
        for number in range(3):
            ledger.charge(key(number), event)
    with open_ledger(path, relation=ADD_OR_REMOVE_ONE) as ledger:
        assert ledger.spent() == compose([event] * 3, 1e-5)
        # The same charge again is a retry, and a changed one is not.
        ledger.charge(key(0), event)
        with pytest.raises(LedgerError, match="another mechanism"):
            ledger.charge(key(0), Event.from_line(event.line() | {"steps": 39}))


def test_units_do_not_add_up(path: Path) -> None:
    with open_ledger(path) as ledger:
        ledger.charge(key(0), EVENT)
        other = Event("client-gaussian", REPLACE_ONE, 0.1, 0.1, 0, 0, 0, unit="client")
        with pytest.raises(LedgerError, match="one client on top of others"):
            ledger.charge(key(1), other)


def test_a_ledger_written_before_steps_existed_still_reads(path: Path) -> None:
    """Lines as they were: no rate, no steps, no unit; the hash chain holds over their bytes."""
    with open_ledger(path) as ledger:
        ledger.charge(key(0), EVENT)
        text = ledger._file._db.execute("SELECT line FROM lines").fetchone()[0]
    assert text == (
        '{"event":{"clamp":1e-20,"closeness":0,"mechanism":"shard-teachers",'
        '"relation":"replace_one","rho":0.1,"rho_isolated":0.3,"sampling":1e-30},'
        '"patients":"p","round":0,"session":"s"}'
    )


def test_the_budget_view_spans_runs_and_patient_sets(path: Path) -> None:
    for patients, session, rounds in (("p", "one", 2), ("q", "one", 1), ("p", "two", 3)):
        with open_ledger(path, patients=patients) as ledger:
            for number in range(rounds):
                ledger.charge(key(number, session), EVENT)
    with open_ledger(path, patients="q") as ledger:
        ledger.erase("ab" * 32)
        spent = [compose([EVENT] * count, 1e-5) for count in range(6)]
        assert ledger.budgets() == (
            Budget("p", "one", spent[2]),
            Budget("p", "two", spent[3]),
            Budget("p", None, spent[5]),
            Budget("q", "one", spent[1]),
            Budget("q", None, spent[1]),
        )
        # Sessions do not add up by themselves: their ε is below the sum's.
        assert spent[5].epsilon > spent[3].epsilon


def test_an_erasure_is_a_line_that_undoes_nothing(path: Path) -> None:
    gone, later = "ab" * 32, "cd" * 32
    with open_ledger(path) as ledger:
        ledger.charge(key(0), EVENT)
        ledger.store(key(0), DRAWN)
        ledger.erase(gone)
        ledger.erase(gone)
        ledger.charge(key(1), EVENT)
        ledger.erase(later)
        assert len(ledger.lines()) == len(ledger.chained()) == 4
        # Other readers find all that a charge has.
        assert all({"session", "round", "event"} <= line.keys() for line in ledger.lines())
    with open_ledger(path) as ledger:
        ledger.verify()
        assert ledger.spent() == compose([EVENT] * 2, 1e-5)
        assert [e.patient for e in ledger.erasures()] == [gone, later]
        assert [e.releases for e in ledger.erasures()] == [(key(0),), (key(0), key(1))]
        np.testing.assert_array_equal(ledger.stored(key(0)), DRAWN)
    with open_ledger(path, patients="q") as ledger:
        assert ledger.erasures() == ()


@pytest.mark.parametrize("patient", ["", "Anna", "AB" * 32, "ab" * 31, "ab" * 32 + "\n"])
def test_an_erasure_names_no_patient(path: Path, patient: str) -> None:
    with open_ledger(path) as ledger:
        with pytest.raises(LedgerError, match="no digest"):
            ledger.erase(patient)
        assert ledger.lines() == []

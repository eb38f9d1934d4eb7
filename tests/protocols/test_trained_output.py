"""Noise in training: what a finished training says may leave, and nothing else does."""

import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocols.accounting import ADD_OR_REMOVE_ONE, compose
from protocols.dp_sgd import DpSgd
from protocols.errors import LedgerError, PrivacyError
from protocols.ledger import Ledger
from protocols.mechanisms import Mechanism, Paid, ReleaseKey, TrainedOutput
from protocols.quantize import Layout, Segment
from protocols.training_plan import TrainingPlan

LAYOUT = Layout((Segment("logits", 4, 2),))
KEY = ReleaseKey("session", 0)
TRAINING = DpSgd(clip_norm=1.0, noise_multiplier=1.5, rate=0.5, steps=3, size=6, expected=4.0)
TRAINED = TrainedOutput(size=8, training=TRAINING, span=32.0)
SAYS = np.linspace(-3, 3, 8)[None]


def opened(path: Path) -> Ledger:
    return Ledger(path, "A", "p", relation=ADD_OR_REMOVE_ONE, budget_epsilon=None, delta=1e-5)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with opened(tmp_path / "ledger.db") as made:
        yield made


def walk(paid: Paid, steps: int | None = None) -> None:
    for _ in range(paid.descent.left if steps is None else steps):
        chosen = paid.descent.sample(8)
        paid.descent.step([np.ones(6)] * len(chosen))


def test_what_a_finished_training_says_is_stored_and_handed_out(ledger: Ledger) -> None:
    mechanism: Mechanism = TRAINED
    assert mechanism.again(ledger, KEY, LAYOUT) is None
    paid = TRAINED.begin(ledger, KEY, os.urandom)
    walk(paid)
    released = TRAINED.release(SAYS, LAYOUT, paid)
    assert released.key == KEY
    assert (ledger.stored(KEY) == released.values).all()
    np.testing.assert_allclose(TRAINED.grid.dequantise(released.values), SAYS[0], atol=2e-4)
    (line,) = ledger.lines()
    assert line["event"]["mechanism"] == "dp-sgd"
    assert ledger.spent() == compose([TRAINED.event()], 1e-5)


@pytest.mark.parametrize("done", [0, 1, 2])
def test_nothing_is_released_of_a_training_that_is_not_finished(ledger: Ledger, done: int) -> None:
    paid = TRAINED.begin(ledger, KEY, os.urandom)
    walk(paid, done)
    with pytest.raises(PrivacyError, match=f"{3 - done} of 3 steps to go"):
        TRAINED.release(SAYS, LAYOUT, paid)
    # The last sample alone does not finish it.
    walk(paid, 2 - done)
    paid.descent.sample(8)
    with pytest.raises(PrivacyError, match="1 of 3 steps to go"):
        TRAINED.release(SAYS, LAYOUT, paid)
    assert ledger.stored(KEY) is None


@pytest.mark.parametrize("change", [{"noise_multiplier": 1.0}, {"clip_norm": 2.0}, {"steps": 2}])
def test_another_mechanisms_training_is_refused(ledger: Ledger, change: dict[str, Any]) -> None:
    weaker = dataclasses.replace(TRAINED, training=dataclasses.replace(TRAINING, **change))
    paid = weaker.begin(ledger, KEY, os.urandom)
    walk(paid)
    with pytest.raises(PrivacyError, match="another mechanism's training"):
        TRAINED.release(SAYS, LAYOUT, paid)
    assert ledger.stored(KEY) is None


def test_a_paid_training_is_made_by_its_mechanism_alone(ledger: Ledger) -> None:
    paid = TRAINED.begin(ledger, KEY, os.urandom)
    with pytest.raises(PrivacyError, match="a Paid cannot be made by hand"):
        Paid(paid.descent, ReleaseKey("session", 1))
    with pytest.raises((PrivacyError, ValueError)):
        dataclasses.replace(paid, key=ReleaseKey("session", 1))


def test_one_training_is_released_once_and_a_retry_sends_the_same(ledger: Ledger) -> None:
    paid = TRAINED.begin(ledger, KEY, os.urandom)
    walk(paid)
    first = TRAINED.release(SAYS, LAYOUT, paid)
    with pytest.raises(LedgerError, match="others are stored already"):
        TRAINED.release(-SAYS, LAYOUT, paid)
    with pytest.raises(LedgerError, match="begins a second time"):
        TRAINED.begin(ledger, KEY, os.urandom)
    again = TRAINED.again(ledger, KEY, LAYOUT)
    assert again is not None
    np.testing.assert_array_equal(again.values, first.values)
    assert len(ledger.lines()) == 1
    with pytest.raises(LedgerError, match="8 integers are stored"):
        TRAINED.again(ledger, KEY, Layout((Segment("logits", 1, 2),)))


def test_a_training_that_died_begins_anew_under_its_charge(tmp_path: Path) -> None:
    with opened(tmp_path / "l.db") as ledger:
        lost = TRAINED.begin(ledger, KEY, os.urandom)
        walk(lost, 2)
    with opened(tmp_path / "l.db") as ledger:
        with pytest.raises(LedgerError, match="closed ledger"):
            walk(lost)
        paid = TRAINED.begin(ledger, KEY, os.urandom)
        assert paid.descent.left == 3
        walk(paid)
        TRAINED.release(SAYS, LAYOUT, paid)
        assert ledger.spent().charges == 1
    with (
        opened(tmp_path / "l.db") as ledger,
        pytest.raises(LedgerError, match="integers are stored"),
    ):
        TRAINED.begin(ledger, KEY, os.urandom)


def test_the_charge_is_on_disk_before_a_unit_is_sampled(ledger: Ledger) -> None:
    seen: list[int] = []

    def watching(count: int) -> bytes:
        seen.append(len(ledger.lines()))
        return os.urandom(count)

    walk(TRAINED.begin(ledger, KEY, watching))
    assert set(seen) == {1}


def test_values_beyond_the_span_are_brought_back_to_it_each_apart(ledger: Ledger) -> None:
    paid = TRAINED.begin(ledger, KEY, os.urandom)
    walk(paid)
    loud = np.array([[1e6, -33.0, 32.0, 31.0, -1.0, 0.0, 1.0, -1e9]])
    released = TRAINED.release(loud, LAYOUT, paid)
    back = TRAINED.grid.dequantise(released.values)
    np.testing.assert_allclose(back, np.clip(loud[0], -32, 32), atol=2e-4)
    assert np.abs(released.values).max() == TRAINED.limit == 2**17 - 1


def test_a_model_that_diverged_stops_nothing_for_that_would_tell(ledger: Ledger) -> None:
    paid = TRAINED.begin(ledger, KEY, os.urandom)
    walk(paid)
    says = np.array([[math.nan, math.inf, -math.inf, 1e300, 0.0, 0.0, 0.0, 1.0]])
    back = TRAINED.grid.dequantise(TRAINED.release(says, LAYOUT, paid).values)
    np.testing.assert_allclose(back, [0, 32, -32, 32, 0, 0, 0, 1], atol=2e-4)


@pytest.mark.parametrize("says", [np.zeros((2, 8)), np.zeros((1, 9))])
def test_what_cannot_be_sent_is_refused(ledger: Ledger, says: np.ndarray) -> None:
    paid = TRAINED.begin(ledger, KEY, os.urandom)
    walk(paid)
    with pytest.raises(PrivacyError, match="planned for"):
        TRAINED.release(says, LAYOUT, paid)
    assert ledger.stored(KEY) is None


@pytest.mark.parametrize("change", [{"size": 0}, {"span": 0.0}, {"span": math.inf}, {"bits": 1}])
def test_an_impossible_output_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError):
        dataclasses.replace(TRAINED, **change)


# The plan of a federation


def plan(**changes: Any) -> TrainingPlan:
    figures: dict[str, Any] = {
        "epsilon": 1.0,
        "delta": 1e-5,
        "rounds": 2,
        "groups": {"a": "g", "b": "g"},
        "units": {"a": 40, "b": 100},
        "parameters": {"a": 10, "b": 30},
        "clip_norm": 1.0,
        "rate": 0.5,
        "steps": 5,
        "span": 32.0,
        "size": 8,
    }
    return TrainingPlan.calibrate(**figures | changes)


def test_every_site_has_the_asked_epsilon_whoever_colludes() -> None:
    made = plan()
    for site, units in (("a", 40), ("b", 100)):
        spent = made.spending(site)
        assert 0.99 < spent.epsilon <= 1.0
        assert spent.epsilon == spent.epsilon_isolated
        training = made.mechanisms[site].training
        assert training.expected == 0.5 * units
        assert training.noise_multiplier == made.mechanisms["a"].training.noise_multiplier
    assert made.epsilon == made.epsilon_isolated == max(made.client_epsilons.values())
    assert 1e-5 <= made.delta_total <= 1.01e-5
    assert (made.colluders, made.dropouts) == (None, None)
    assert made.relation == ADD_OR_REMOVE_ONE
    assert "everybody but the site itself" in made.adversary
    # A forgotten round would show.
    assert compose([made.mechanisms["a"].event()], 1e-5).epsilon < 0.9 * made.epsilon


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"epsilon": 0.0}, "above 0"),
        ({"delta": 0.02}, r"^b: delta = 0\.02 .*between 0 and 0\.01.*choose δ = 1e-05"),
        ({"rate": 1.5}, "at most 1"),
        ({"rate": 0.0}, "above 0"),
        ({"rounds": 0}, "at least 1 round"),
        ({"units": {"a": 1, "b": 100}}, "^a: 1 unit.*leave the site out"),
        ({"rate": 0.02}, r"^a: 40 unit\(s\) .* set the rate to 0\.025"),
    ],
)
def test_an_impossible_plan_is_refused_with_what_would_work(
    change: dict[str, Any], says: str
) -> None:
    with pytest.raises(PrivacyError, match=says):
        plan(**change)


def test_the_advised_rate_works() -> None:
    for units in (3, 7, 41, 999):
        with pytest.raises(PrivacyError) as refused:
            plan(units={"a": units, "b": 1000}, rate=0.5 / units)
        advised = float(str(refused.value).partition("set the rate to ")[2].partition(",")[0])
        assert 1 / units <= advised <= min(1.1 / units, 1)

"""What a noisy descent is charged, how often it may begin, and which plans there are."""

import copy
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

from protocols.accounting import compose
from protocols.dp_sgd import Descent, DpSgd
from protocols.errors import LedgerError, PrivacyError
from protocols.ledger import Ledger, ReleaseKey
from tests.protocols.descents import KEY, SIZE, Accepting, open_ledger, plan
from tests.protocols.descents import ledger as ledger

# Steps are counted, and charged before they are made.


def test_empty_samples_are_noised_and_counted(ledger: Ledger) -> None:
    chosen = plan(rate=1e-9, steps=2)
    descent = chosen.begin(ledger, KEY, os.urandom)
    for left in (1, 0):
        assert descent.sample(20).size == 0
        out = descent.step([])
        assert np.abs(out).min() > 0
        assert descent.left == left
    with pytest.raises(PrivacyError, match="all 2 steps are done"):
        descent.sample(20)
    assert ledger.spent().charges == 1
    assert ledger.lines()[0]["event"]["steps"] == 2


def test_no_step_without_a_sample_and_no_sample_twice(ledger: Ledger) -> None:
    descent = plan().begin(ledger, KEY, os.urandom)
    with pytest.raises(PrivacyError, match="step without a sample"):
        descent.step([])
    descent.sample(2)
    with pytest.raises(PrivacyError, match="waits for its step"):
        descent.sample(2)
    descent.step(np.zeros((2, SIZE)))
    with pytest.raises(PrivacyError, match="step without a sample"):
        descent.step([])


@pytest.mark.parametrize("count", [0, 1, 3, 30])
def test_as_many_gradients_as_were_sampled(count: int) -> None:
    def no_random(size: int) -> bytes:
        raise AssertionError("noise was drawn")

    descent = plan().begin(Accepting(), KEY, no_random)
    descent.sample(2)
    with pytest.raises(PrivacyError, match=f"{count} gradients for a sample of 2"):
        descent.step(np.zeros((count, SIZE)))
    assert descent.left == 3


def test_gradients_are_taken_one_at_a_time(ledger: Ledger) -> None:
    descent = plan().begin(ledger, KEY, os.urandom)
    descent.sample(3)
    assert descent.step(np.ones(SIZE, np.float32) for _ in range(3)).dtype == np.float64


def test_the_charge_is_on_disk_before_a_coin_is_drawn(ledger: Ledger) -> None:
    seen: list[int] = []

    def watching(count: int) -> bytes:
        seen.append(len(ledger.lines()))
        return os.urandom(count)

    descent = plan(rate=0.5).begin(ledger, KEY, watching)
    assert seen == []
    descent.step(np.zeros((descent.sample(9).size, SIZE)))
    assert set(seen) == {1}


def test_a_budget_that_does_not_suffice_names_what_would(tmp_path: Path) -> None:
    chosen = plan(rate=0.2, noise_multiplier=2.0, steps=30)
    two = compose([chosen.event()] * 2, 1e-5).epsilon
    with open_ledger(tmp_path / "ledger.db", budget_epsilon=two + 1e-6) as ledger:
        with pytest.raises(LedgerError, match="or 2 such releases would fit") as refusal:
            ledger.require(chosen.event(), 5)
        enough = float(refusal.value.fix.split("ε = ")[1].split(",")[0])
        assert compose([chosen.event()] * 5, 1e-5).epsilon <= enough
        for number in range(2):
            chosen.begin(ledger, ReleaseKey("s", number), os.urandom)
        with pytest.raises(LedgerError, match="beyond the budget"):
            chosen.begin(ledger, ReleaseKey("s", 2), os.urandom)
        assert ledger.spent().charges == 2


def test_a_ledger_of_replacements_refuses(tmp_path: Path) -> None:
    with (
        open_ledger(tmp_path / "ledger.db", relation="replace_one") as ledger,
        pytest.raises(LedgerError, match="do not add up"),
    ):
        plan().begin(ledger, KEY, os.urandom)


# One charge, one outcome.


def test_nothing_begins_twice_while_a_descent_may_be_alive(ledger: Ledger) -> None:
    plan().begin(ledger, KEY, os.urandom)
    with pytest.raises(LedgerError, match="begins a second time"):
        plan().begin(ledger, KEY, os.urandom)


def test_a_descent_ends_with_its_ledger(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "ledger.db") as ledger:
        waiting = plan().begin(ledger, KEY, os.urandom)
        sampled = plan().begin(ledger, ReleaseKey("session", 1), os.urandom)
        sampled.sample(0)
    with pytest.raises(LedgerError, match="closed ledger"):
        waiting.sample(2)
    with pytest.raises(LedgerError, match="closed ledger"):
        sampled.step([])


def test_after_a_crash_the_charge_stands_and_pays_for_one_run(tmp_path: Path) -> None:
    """SIGKILL after two of three steps, in a process of its own; then a run to the end."""
    path = tmp_path / "ledger.db"
    code = """
import os, signal, sys
from pathlib import Path
from protocols.dp_sgd import DpSgd
from protocols.ledger import Ledger, ReleaseKey
ledger = Ledger(Path(sys.argv[1]), "A", "p", relation="add_or_remove_one", budget_epsilon=None,
                delta=1e-5)
plan = DpSgd(clip_norm=2.0, noise_multiplier=1.5, rate=1.0, steps=3, size=6, expected=4.0)
descent = plan.begin(ledger, ReleaseKey("session", 0), os.urandom)
for _ in range(2):
    descent.sample(0)
    descent.step([])
os.kill(os.getpid(), signal.SIGKILL)
"""
    died = subprocess.run([sys.executable, "-c", code, path], check=False)
    assert died.returncode == -9
    with open_ledger(path) as ledger:
        before = ledger.spent()
        assert before.charges == 1
        descent = plan().begin(ledger, KEY, os.urandom)
        assert ledger.spent() == before
        # From the first step again: what the dead run drew is not counted as done.
        assert descent.left == 3
        ledger.store(KEY, np.arange(5))
    with open_ledger(path) as ledger:
        with pytest.raises(LedgerError, match="its integers are stored"):
            plan().begin(ledger, KEY, os.urandom)
        with pytest.raises(LedgerError, match="another mechanism"):
            ledger.charge(KEY, plan(noise_multiplier=3.0).event())
        assert ledger.spent() == before


def test_a_descent_is_not_made_by_hand_nor_copied(ledger: Ledger) -> None:
    with pytest.raises(PrivacyError, match="cannot be made by hand"):
        Descent(plan(), ledger, os.urandom)
    descent = plan().begin(ledger, KEY, os.urandom)
    for copying in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(PrivacyError, match="cannot be copied"):
            copying(descent)


# Plans.


@pytest.mark.parametrize(
    ("epsilon", "rate", "steps"), [(0.1, 0.1, 50), (1.0, 0.1, 50), (8.0, 0.25, 40)]
)
def test_calibration_meets_its_epsilon_over_all_rounds(
    epsilon: float, rate: float, steps: int
) -> None:
    rounds = 3
    chosen = DpSgd.calibrate(
        epsilon=epsilon,
        delta=1e-5,
        rounds=rounds,
        clip_norm=1.0,
        rate=rate,
        steps=steps,
        size=1000,
        expected=500 * rate,
    )
    spent = compose([chosen.event()] * rounds, 1e-5)
    assert epsilon * 0.9998 <= spent.epsilon <= epsilon
    assert spent.delta_total <= 1.01e-5
    assert spent.accountant == "PLD"
    assert spent.epsilon == spent.epsilon_isolated < spent.cross_check < 1.35 * epsilon


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 8.0])
def test_without_sampling_calibration_gives_the_noise_of_one_gaussian(epsilon: float) -> None:
    # Balle and Wang 2018, Theorem 8: steps of noise z are one Gaussian of noise z / √steps.
    def delta(noise: float) -> float:
        mu = math.sqrt(20) / noise
        left, right = stats.norm.cdf([mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu])
        return float(left - math.exp(epsilon) * right)

    exact = optimize.brentq(lambda noise: delta(noise) - 1e-5, 0.5, 1000)
    assert exact <= calibrated(epsilon=epsilon, rate=1.0).noise_multiplier <= 1.0002 * exact


def calibrated(**changes: Any) -> DpSgd:
    figures: dict[str, Any] = {
        "epsilon": 4.0,
        "delta": 1e-5,
        "rounds": 2,
        "clip_norm": 1.0,
        "rate": 0.2,
        "steps": 10,
        "size": 10,
        "expected": 20.0,
    }
    return DpSgd.calibrate(**figures | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": 0.0}, "choose ε above 0"),
        ({"epsilon": -1.0}, "choose ε above 0"),
        ({"epsilon": math.nan}, "choose ε above 0"),
        ({"epsilon": math.inf}, "finite ε"),
        ({"delta": 0.01}, "one over 100 units.*choose δ = 1e-05"),
        ({"delta": 0.0}, "choose δ"),
        ({"rate": 0.0}, "at most 1: 0.1"),
        ({"rate": 1.1}, "at most 1: 0.1"),
        ({"rate": math.nan}, "at most 1: 0.1"),
        ({"rounds": 0}, "at least 1 round"),
        ({"steps": 0}, "at least 1 of each"),
        ({"size": 0}, "at least 1 of each"),
        ({"expected": 0.0}, "figures above 0"),
        ({"clip_norm": math.inf}, "figures above 0"),
    ],
)
def test_impossible_plans_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(PrivacyError, match=message):
        calibrated(**changes)


@pytest.mark.parametrize("noise", [0.0, 0.01, -1.0, math.nan, math.inf, 2.0**19])
def test_noise_out_of_range_is_refused(noise: float) -> None:
    with pytest.raises(PrivacyError, match="noise multiplier"):
        plan(noise_multiplier=noise)


def test_a_budget_too_small_for_the_rounds_names_one_that_works() -> None:
    figures: dict[str, Any] = {"delta": 1e-12, "rate": 1.0, "rounds": 1000, "steps": 1000}
    with pytest.raises(PrivacyError, match="would work") as refusal:
        calibrated(epsilon=1e-3, **figures)
    enough = float(refusal.value.fix.split("ε = ")[1].split(" ")[0])
    assert calibrated(epsilon=enough, **figures).noise_multiplier <= 2.0**18


def test_the_statement_says_what_was_planned() -> None:
    said = plan(rate=0.25, steps=40).statement()
    for part in ("40 steps", "rate 0.25", "add_or_remove_one", "norm 2", "6 parameters", "DP"):
        assert part in said

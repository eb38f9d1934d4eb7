import copy
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import optimize, stats

from protocols.accounting import ADD_OR_REMOVE_ONE, compose
from protocols.chain import RandomBytes
from protocols.dp_sgd import Descent, DpSgd, poisson_sample
from protocols.errors import LedgerError, PrivacyError
from protocols.ledger import Ledger, ReleaseKey
from protocols.sampler import seeded_random
from protocols.unit_clip import _write, clipped

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


# Clipping.

numbers = st.one_of(
    st.floats(width=64, allow_nan=True, allow_infinity=True, allow_subnormal=True),
    st.floats(-3, 3),
    st.sampled_from([0.0, 5e-324, 1.7e308, -1.7e308, math.nan, math.inf, -math.inf]),
)
gradients = arrays(np.float64, SIZE, elements=numbers)


def norm_squared(integers: np.ndarray) -> int:
    return sum(int(x) ** 2 for x in integers)


@settings(deadline=None, max_examples=300)
@given(
    gradients, st.sampled_from([1e-300, 1e-3, 1.0, 7.3, 1e300]), st.sampled_from([1, 997, 2**37])
)
def test_a_units_integers_never_exceed_the_clip(
    gradient: np.ndarray, clip: float, clip_int: int
) -> None:
    integers = clipped(gradient, SIZE, clip, clip_int)
    assert norm_squared(integers) <= clip_int**2
    if not np.isfinite(gradient).all():
        assert not integers.any()


@settings(deadline=None, max_examples=200)
@given(st.lists(gradients, max_size=3), gradients, st.integers(0, 3))
def test_one_unit_more_moves_the_noisy_sum_by_at_most_the_clip(
    units: list[np.ndarray], extra: np.ndarray, place: int
) -> None:
    """On the real steps, with the same noise on both sides."""
    chosen = plan(steps=1)
    more = [*units[:place], extra, *units[place:]]
    outcomes = [
        one_step(chosen, Accepting(), seeded_random(b"same"), data) for data in (units, more)
    ]
    grid = chosen.clip_norm / chosen.clip_int / chosen.expected
    one, two = (np.rint(outcome / grid).astype(np.int64) for outcome in outcomes)
    assert norm_squared(two - one) <= chosen.clip_int**2


@pytest.mark.parametrize("length", [2.0, 2.000001, 50.0, 1e308])
def test_the_sensitivity_is_attained(length: float) -> None:
    chosen, unit = plan(steps=1), np.zeros(SIZE)
    unit[3] = -length
    with_unit, without = (
        one_step(chosen, Accepting(), seeded_random(b"same"), data) for data in ([unit], [])
    )
    assert abs(with_unit - without).max() == pytest.approx(chosen.clip_norm / 4.0, rel=1e-9)


def test_the_clip_keeps_small_gradients_and_the_direction_of_large_ones() -> None:
    small = np.array([0.1, -0.2, 0.3, 0.0, 1e-3, 0.5])
    np.testing.assert_allclose(clipped(small, SIZE, 2.0, 2**30) * 2.0**-29, small, atol=2e-9)
    large = clipped(1e200 * small, SIZE, 2.0, 2**30).astype(float)
    assert np.linalg.norm(large) > 0.999999 * 2**30
    np.testing.assert_allclose(
        large / np.linalg.norm(large), small / np.linalg.norm(small), atol=1e-8
    )


@pytest.mark.parametrize("size", [1, 65_535, 65_537, 300_000])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_the_clip_is_exact_for_long_vectors(size: int, kind: type) -> None:
    gradient = np.random.default_rng(1).normal(size=size).astype(kind) * kind(30)
    integers = clipped(gradient, size, 0.5, 2**31)
    assert 2**31 * (1 - 1e-5) < math.isqrt(norm_squared(integers)) <= 2**31


@pytest.mark.parametrize("bits", [10, 24, 37])
def test_squares_are_counted_exactly(bits: int) -> None:
    values = np.random.default_rng(2).integers(-(2**bits), 2**bits, 20_000)
    parts = (values[i : i + 8192].astype(float) for i in range(0, values.size, 8192))
    copied = np.zeros_like(values)
    assert _write(parts, copied) == norm_squared(values)
    assert np.array_equal(copied, values)


@pytest.mark.parametrize("bad", [np.zeros((SIZE, 1)), np.zeros(SIZE + 1), np.zeros(SIZE, int)])
def test_other_shapes_and_types_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(PrivacyError, match="a gradient of shape"):
        clipped(bad, SIZE, 1.0, 1000)


# Sampling.


def test_coins_are_independent_and_of_the_stated_rate() -> None:
    """2,000 samples of 40 units: each unit, each pair, and the law of the sample's size."""
    rate, units, draws = 0.15, 40, 2000
    random = seeded_random(b"coins")
    taken = np.zeros((draws, units))
    for row in taken:
        row[poisson_sample(units, rate, random)] = 1
    inclusions = taken.sum(axis=0)
    statistic = ((inclusions - draws * rate) ** 2).sum() / (draws * rate * (1 - rate))
    assert stats.chi2.sf(statistic, units) > 1e-3
    # A shuffled or fixed batch has sizes without this spread, and pairs that avoid each other.
    sizes = taken.sum(axis=1)
    spread = sizes.var(ddof=1) * (draws - 1) / (units * rate * (1 - rate))
    assert 1e-3 < stats.chi2.cdf(spread, draws - 1) < 1 - 1e-3
    pairs = (taken.T @ taken)[np.triu_indices(units, 1)]
    z = (pairs - draws * rate**2) / math.sqrt(draws * rate**2 * (1 - rate**2))
    assert np.abs(z).max() < stats.norm.isf(1e-3 / pairs.size)
    # Neighbouring steps know nothing of each other.
    serial = ((taken[1:] - rate) * (taken[:-1] - rate)).sum()
    assert abs(serial) < 4 * rate * (1 - rate) * math.sqrt(units * draws)


def test_the_threshold_of_the_coins_is_exact() -> None:
    def word(value: int) -> RandomBytes:
        return lambda count: value.to_bytes(8, "little") * (count // 8)

    assert poisson_sample(3, 0.25, word(2**62 - 1)).tolist() == [0, 1, 2]
    assert poisson_sample(3, 0.25, word(2**62)).tolist() == []
    assert poisson_sample(3, 1.0, word(2**64 - 1)).tolist() == [0, 1, 2]
    largest = math.nextafter(1.0, 0.0)
    assert poisson_sample(1, largest, word(2**64 - 2**11 - 1)).tolist() == [0]
    assert poisson_sample(1, largest, word(2**64 - 2**11)).tolist() == []


def test_a_descent_samples_with_the_rate_that_it_charges(ledger: Ledger) -> None:
    chosen = plan(rate=0.3, steps=400)
    descent = chosen.begin(ledger, KEY, seeded_random(b"rate"))
    sizes = []
    for _ in range(chosen.steps):
        sizes.append(descent.sample(50).size)
        descent.step(np.zeros((sizes[-1], SIZE)))
    assert stats.binomtest(sum(sizes), 50 * chosen.steps, 0.3).pvalue > 1e-3
    spread = np.var(sizes, ddof=1) * (chosen.steps - 1) / (50 * 0.3 * 0.7)
    assert 1e-3 < stats.chi2.cdf(spread, chosen.steps - 1) < 1 - 1e-3
    assert ledger.lines()[0]["event"]["rate"] == 0.3


# Noise.


@pytest.mark.parametrize("noise", [0.3, 1.0, 40.0])
def test_the_noise_has_the_stated_law(noise: float) -> None:
    """Chi-square on the variance and Kolmogorov-Smirnov, 100,000 draws: 1 % off would show."""
    chosen = plan(size=100_000, noise_multiplier=noise, steps=1)
    out = one_step(chosen, Accepting(), seeded_random(b"law"), [])
    scaled = out * chosen.expected / (noise * chosen.clip_norm)
    assert 1e-3 < stats.chi2.cdf((scaled**2).sum(), scaled.size) < 1 - 1e-3
    assert stats.kstest(scaled, "norm").pvalue > 1e-3


@pytest.mark.parametrize("wrong", [0.5, 0.707, 0.98])
def test_the_law_test_would_see_too_little_noise(wrong: float) -> None:
    out = wrong * np.random.default_rng(5).normal(size=100_000)
    assert stats.chi2.cdf((out**2).sum(), out.size) < 1e-3


def test_noise_is_drawn_afresh_at_each_step_and_round(tmp_path: Path) -> None:
    chosen = plan(size=20_000, steps=3)
    outs = []
    with open_ledger(tmp_path / "ledger.db") as ledger:
        random = seeded_random(b"steps")
        for number in range(2):
            descent = chosen.begin(ledger, ReleaseKey("s", number), random)
            for _ in range(3):
                descent.sample(0)
                outs.append(descent.step([]))
    for one in range(6):
        for two in range(one):
            assert abs(np.corrcoef(outs[one], outs[two])[0, 1]) < 4.5 / math.sqrt(20_000)


def test_the_sum_and_the_scale_of_a_step() -> None:
    chosen = plan(noise_multiplier=0.05, steps=1, clip_norm=1e6, size=SIZE, expected=8.0)
    units = [np.full(SIZE, 10_000.0 * i) for i in range(1, 4)]
    out = one_step(chosen, Accepting(), seeded_random(b"sum"), units)
    noise = 0.05 * 1e6 / 8.0
    np.testing.assert_allclose(out, np.full(SIZE, 60_000 / 8.0), atol=6 * noise)
    quiet = one_step(chosen, Accepting(), seeded_random(b"sum"), [])
    np.testing.assert_allclose(out - quiet, np.full(SIZE, 60_000 / 8.0), rtol=1e-6)


def test_the_distance_of_the_integer_noise_from_a_rounded_gaussian() -> None:
    """The stated bound, against an exact sum at widths where doubles can still tell."""
    for sigma in (2.0, 8.0, 30.0):
        x = np.arange(-int(12 * sigma), int(12 * sigma) + 1)
        discrete = np.exp(-((x / sigma) ** 2) / 2)
        discrete /= discrete.sum()
        rounded = stats.norm.sf((np.abs(x) - 0.5) / sigma) - stats.norm.sf(
            (np.abs(x) + 0.5) / sigma
        )
        rounded[x == 0] = 1 - 2 * stats.norm.sf(0.5 / sigma)
        keep = rounded > 1e-18
        divergence = (discrete[keep] * np.log(discrete[keep] / rounded[keep])).sum()
        assert 0 < divergence <= 1 / (320 * sigma**4)
        distance = np.abs(discrete - rounded).sum() / 2
        assert distance <= 1 / (25 * sigma**2)


@pytest.mark.parametrize("noise", [0.05, 1.0, 1.37, 2.0**18])
def test_closeness_is_charged_and_small(noise: float) -> None:
    event = plan(noise_multiplier=noise, size=10**7, steps=1000).event()
    assert event.closeness == pytest.approx(
        math.sqrt(1e10) / (25 * plan(noise_multiplier=noise).sigma_int ** 2)
    )
    assert plan(noise_multiplier=noise, size=1, steps=1).event().closeness < 1e-18
    assert 0 < event.slack < 1e-13


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

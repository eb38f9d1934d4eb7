"""Clipping, sampling and noise of a descent."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from protocols.chain import RandomBytes
from protocols.dp_sgd import poisson_sample
from protocols.errors import PrivacyError
from protocols.ledger import Ledger, ReleaseKey
from protocols.sampler import seeded_random
from protocols.unit_clip import _write, clipped
from tests.protocols.descents import KEY, SIZE, Accepting, one_step, open_ledger, plan
from tests.protocols.descents import ledger as ledger

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

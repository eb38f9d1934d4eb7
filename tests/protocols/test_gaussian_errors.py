import math
import os
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from protocols import gaussian_errors as module
from protocols.chain import RandomBytes
from protocols.errors import ConfigError
from protocols.gaussian_errors import gaussian_errors
from protocols.multikey import MK18_39
from protocols.sampler import discrete_gaussian, seeded_random

SIGMAS = [1.0, 8.25, 33.0, 82.5]


def law(sigma: float) -> dict[int, Fraction]:
    """N_Z(0, σ²) to 70 digits, over 20σ."""
    with localcontext() as context:
        context.prec = 80
        reach = math.ceil(20 * sigma)
        double = 2 * Decimal(sigma) ** 2
        weights = {x: (-Decimal(x * x) / double).exp() for x in range(-reach, reach + 1)}
        total = sum(weights.values())
        return {x: Fraction(weight / total) for x, weight in weights.items()}


def chi_square(draws: np.ndarray, sigma: float) -> float:
    exact = law(sigma)
    reach = max(exact)
    expected = np.array([float(p) for p in exact.values()]) * draws.size
    observed = np.bincount(draws + reach, minlength=2 * reach + 1)
    common = expected >= 20
    pooled = np.append(expected[common], expected[~common].sum())
    counts = np.append(observed[common], observed[~common].sum())
    return float(stats.chisquare(counts, pooled * counts.sum() / pooled.sum()).pvalue)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_probabilities_of_the_table_are_right_to_110_bits(sigma: float) -> None:
    table, exact = module._table(sigma), law(sigma)
    columns, full = 1 << table.column_bits, 1 << 128 - table.column_bits
    found = dict.fromkeys(exact, 0)
    for column in range(columns):
        threshold = table.thresholds[column]
        assert 0 <= threshold <= full
        assert threshold >> 64 == int(table.high[column])
        if threshold:
            found[int(table.own[column])] += threshold
        if threshold < full:
            found[int(table.alias[column])] += full - threshold
    assert sum(found.values()) == 2**128
    gaps = [abs(Fraction(found[x], 2**128) - exact[x]) for x in exact]
    assert max(gaps) < Fraction(1, 2**110)
    assert sum(gaps) / 2 < Fraction(1, 2**110)
    assert max(x for x in found if found[x]) <= 14 * sigma


@pytest.mark.parametrize("sigma", SIGMAS)
def test_a_million_draws_follow_the_exact_law(sigma: float) -> None:
    draws = gaussian_errors(1_000_000, sigma, seeded_random(b"alias %f" % sigma))
    assert draws.dtype == np.int64
    assert np.abs(draws).max() <= 14 * sigma
    assert chi_square(draws, sigma) > 1e-6


def test_the_fit_test_sees_two_percent_of_sigma() -> None:
    draws = gaussian_errors(1_000_000, 1.02 * 33.0, seeded_random(b"power"))
    assert chi_square(draws, 33.0) < 1e-6


def test_a_million_draws_look_like_those_of_the_other_sampler() -> None:
    one = gaussian_errors(1_000_000, 33.0, seeded_random(b"one"))
    other = discrete_gaussian(1_000_000, 33.0, seeded_random(b"other"))
    counts = np.array([np.bincount(np.clip(x, -130, 130) + 130) for x in (one, other)])
    assert stats.chi2_contingency(counts).pvalue > 1e-6


def crafted(words: list[int], further: int) -> RandomBytes:
    """First the words of the draws, then one further word at each call."""
    first = b"".join(word.to_bytes(8, "little") for word in words)
    calls = iter([first])
    return lambda count: next(calls, further.to_bytes(8, "little"))


def test_each_side_of_a_threshold_and_the_tie_on_it() -> None:
    sigma = MK18_39.error_width(4)
    table = module._table(sigma)
    shared = [i for i, threshold in enumerate(table.thresholds) if threshold >> 64 > 0]
    shared = [i for i in shared if table.thresholds[i] < 1 << 128 - table.column_bits]
    assert len(shared) > 300
    for column in shared[::7]:
        threshold = table.thresholds[column]
        high, low = threshold >> 64, threshold & (1 << 64) - 1
        own, alias = int(table.own[column]), int(table.alias[column])
        assert own != alias
        for lot, further, expected in (
            (high - 1, 0, own),
            (high + 1, 0, alias),
            (high, low - 1, own),
            (high, low, alias),
        ):
            word = lot << table.column_bits | column
            draws = gaussian_errors(3, sigma, crafted([word] * 3, further))
            assert draws.tolist() == [expected] * 3


def test_the_largest_errors_are_those_of_a_unit_of_probability() -> None:
    sigma = MK18_39.error_width(4)
    words = list(range(1 << module._table(sigma).column_bits))
    draws = gaussian_errors(len(words), sigma, crafted(words, 0))
    largest = max(x for x, probability in law(sigma).items() if probability >= Fraction(1, 2**128))
    assert (draws.min(), draws.max()) == (-largest, largest)
    assert 13 * sigma < largest + 2 < 14 * sigma


def test_no_draw_is_lost_and_each_takes_one_word() -> None:
    asked = []

    def random(count: int) -> bytes:
        asked.append(count)
        return os.urandom(count)

    for size in (0, 1, 30_720):
        assert gaussian_errors(size, 33.0, random).shape == (size,)
    assert asked == [0, 8, 8 * 30_720]


@pytest.mark.parametrize("sigma", [0.0, 0.9, -3.0, 1025.0, math.nan, math.inf])
def test_other_widths_are_refused(sigma: float) -> None:
    with pytest.raises(ConfigError, match="errors of σ"):
        gaussian_errors(1, sigma, os.urandom)

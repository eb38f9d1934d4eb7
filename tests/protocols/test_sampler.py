import math
import os
import random as python_random
import time

import numpy as np
import pytest
from scipy import stats

from protocols import sampler
from protocols.chain import RandomBytes
from protocols.errors import PrivacyError
from protocols.sampler import discrete_gaussian, seeded_random

SIGMAS = [0.3, 1.0, 4.7, 31.9, 32.0, 47.3, 1000.0, 123_456.7, 1e6]


class Forbidden:
    """Stands in for a generator that must not be used."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"a global generator was used: {name}")


def chi_square(draws: np.ndarray, sigma: float) -> float:
    """p-value of the draws against the exact probabilities, in at most 80 bins."""
    width = max(1, round(sigma / 8))
    reach = math.ceil(10 * sigma / width) * width + width
    x = np.arange(-reach, reach + 1)
    mass = np.exp(-(x.astype(np.float64) ** 2) / (2 * sigma**2))
    expected = np.bincount((x + reach) // width, weights=mass / mass.sum()) * draws.size
    observed = np.bincount((draws + reach) // width, minlength=expected.size)
    common = expected >= 20
    pooled = np.append(expected[common], expected[~common].sum())
    counts = np.append(observed[common], observed[~common].sum())
    if pooled[-1] < 5:
        pooled, counts = pooled[:-1], counts[:-1]
    return float(stats.chisquare(counts, pooled * counts.sum() / pooled.sum()).pvalue)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_draws_follow_the_exact_probabilities(sigma: float) -> None:
    draws = discrete_gaussian(200_000, sigma, seeded_random(f"fit {sigma}".encode()))
    assert draws.dtype == np.int64
    assert chi_square(draws, sigma) > 1e-3


@pytest.mark.parametrize("sigma", [1.0, 47.3, 1e6])
def test_the_fit_test_sees_two_percent_of_sigma(sigma: float) -> None:
    draws = discrete_gaussian(200_000, 1.02 * sigma, seeded_random(b"power"))
    assert chi_square(draws, sigma) < 1e-3


@pytest.mark.parametrize("sigma", [4.0, 1000.0, 1e6, 2.0**40])
def test_moments(sigma: float) -> None:
    draws = discrete_gaussian(200_000, sigma, seeded_random(b"moments")) / sigma
    assert abs(draws.mean()) < 4 / math.sqrt(draws.size)
    assert abs(draws.var() - 1) < 4 * math.sqrt(2 / draws.size)
    assert abs((draws**4).mean() - 3) < 4 * math.sqrt(96 / draws.size)


def test_the_law_is_smooth_within_blocks_and_across_their_borders() -> None:
    draws = discrete_gaussian(400_000, 300.0, seeded_random(b"blocks"))
    x = np.arange(-64, 65)
    counts = np.array([np.count_nonzero(draws == value) for value in x])
    expected = np.exp(-((x / 300) ** 2) / 2)
    assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-3


def test_the_tail_beyond_four_sigma_is_neither_cut_nor_heavy() -> None:
    draws = np.abs(discrete_gaussian(2_000_000, 100.0, seeded_random(b"tail")))
    beyond_four = np.count_nonzero(draws > 400)
    assert stats.binomtest(beyond_four, draws.size, 2 * stats.norm.sf(4.005)).pvalue > 1e-3


def test_neighbouring_draws_are_independent() -> None:
    draws = discrete_gaussian(200_000, 50.0, seeded_random(b"serial")) / 50
    for lag in (1, 2, 7):
        assert abs((draws[:-lag] * draws[lag:]).mean()) < 4 / math.sqrt(draws.size)


@pytest.mark.parametrize("size", [0, 1, 2, 17, 1000])
def test_sizes(size: int) -> None:
    assert discrete_gaussian(size, 0.3, os.urandom).shape == (size,)


@pytest.mark.parametrize("sigma", [0.0, -1.0, 0.05, math.nan, math.inf, 2.0**41])
def test_other_sigmas_are_refused(sigma: float) -> None:
    with pytest.raises(PrivacyError, match="noise of σ"):
        discrete_gaussian(1, sigma, os.urandom)


def test_only_the_given_bytes_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "random", Forbidden())
    monkeypatch.setattr(python_random, "random", Forbidden())
    monkeypatch.setattr(python_random, "getrandbits", Forbidden())
    monkeypatch.setattr(os, "urandom", Forbidden())
    one = discrete_gaussian(5000, 77.0, seeded_random(b"same"))
    two = discrete_gaussian(5000, 77.0, seeded_random(b"same"))
    other = discrete_gaussian(5000, 77.0, seeded_random(b"other"))
    np.testing.assert_array_equal(one, two)
    assert (one == other).mean() < 0.1


def test_exact_comparison_agrees_with_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    def source(seed: bytes) -> RandomBytes:
        words, extra = seeded_random(seed), seeded_random(b"extra bits")
        return lambda count: extra(count) if count == 8 else words(count)

    fast = discrete_gaussian(400, 5000.3, source(b"compare"))
    monkeypatch.setattr(sampler, "_GUARD", 2.0)
    np.testing.assert_array_equal(discrete_gaussian(400, 5000.3, source(b"compare")), fast)


def test_a_tie_in_the_table_is_decided_by_more_bits() -> None:
    table = sampler._table(3.0)
    low = sampler._blocks(table, table.high[:5], lambda count: b"\x00" * count)
    high = sampler._blocks(table, table.high[:5], lambda count: b"\xff" * count)
    assert low.tolist() == [0, 1, 2, 3, 4]
    assert high.tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("sigma", [0.3, 5.0, 700.0])
def test_the_table_holds_the_stated_precision(sigma: float) -> None:
    table = sampler._table(sigma)
    edges = np.array([t / 2**128 for t in (0, *table.thresholds, 2**128)])
    starts = np.arange(edges.size - 1) * table.width
    weights = np.exp(-((starts / sigma) ** 2) / 2)
    np.testing.assert_allclose(np.diff(edges), weights / weights.sum(), atol=1e-15)
    # What lies beyond the last block, and 2^-128 per block, is all that the table leaves out.
    cut = stats.norm.logsf(sampler._TAIL) + math.log(2)
    assert math.exp(cut) + edges.size * 2.0**-126 < sampler.DISTANCE


def test_a_draw_takes_less_than_a_microsecond() -> None:
    discrete_gaussian(28_000, 1e4, os.urandom)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        discrete_gaussian(28_000, 1e4, os.urandom)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) / 28_000 < 1e-6


def test_seeded_streams_do_not_repeat() -> None:
    stream = seeded_random(b"seed")
    blocks = {stream(16) for _ in range(100)} | {seeded_random(b"other")(16)}
    assert len(blocks) == 101
    assert seeded_random(b"a")(5) == seeded_random(b"a")(5)

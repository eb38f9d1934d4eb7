import dataclasses
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from protocols.accounting import REPLACE_ONE, Event
from protocols.errors import LedgerError, PrivacyError
from protocols.ledger import Ledger
from protocols.mechanisms import Bounded, NoNoise, Released, ReleaseKey, ShardTeachers
from protocols.quantize import Layout, Segment
from protocols.release import ClippedSum
from protocols.sampler import seeded_random

LAYOUT = Layout((Segment("logits", 4, 2),))
KEY = ReleaseKey("session", 0)
SHARDS = ShardTeachers(
    shards=5,
    clip_norm=2.0,
    clip_int=1000,
    size=8,
    sigma_share=3000.0,
    alpha=1,
    alpha_max=2,
    honest=3,
)
PLAIN = NoNoise(shards=5, clip_norm=2.0, clip_int=1000, size=8)
MECHANISMS: list[ClippedSum] = [SHARDS, PLAIN]

values = st.one_of(st.floats(-5, 5), st.floats(-1e6, 1e6), st.sampled_from([0.0, 1e12]))
teachers = arrays(np.float64, (5, 8), elements=values)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db", "A", "p", budget_epsilon=None, delta=1e-5) as opened:
        yield opened


def no_random(count: int) -> bytes:
    raise AssertionError("noise was drawn")


def some(scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(1).normal(0, scale, (5, 8))


@settings(deadline=None)
@given(teachers, arrays(np.float64, 8, elements=values), st.integers(0, 4))
def test_replacing_one_teacher_moves_the_sum_by_at_most_twice_the_clip(
    before: np.ndarray, teacher: np.ndarray, row: int
) -> None:
    after = before.copy()
    after[row] = teacher
    for mechanism in (SHARDS, PLAIN):
        one, two = (mechanism.bound(x, LAYOUT).values for x in (before, after))
        distance = sum(int(d) ** 2 for d in one - two)
        assert distance <= mechanism.sensitivity**2 == (2 * 1000) ** 2


def test_the_sensitivity_is_attained() -> None:
    before, after = np.zeros((5, 8)), np.zeros((5, 8))
    before[2, 3], after[2, 3] = 50.0, -50.0
    one, two = (SHARDS.bound(x, LAYOUT).values for x in (before, after))
    assert np.abs(one - two).max() == SHARDS.sensitivity


def test_clipping_each_row_of_a_teacher_would_break_the_bound() -> None:
    """The mutant: one norm per proxy image, as if rows were separate releases."""
    teacher = np.full((4, 2), 10.0)
    per_row = teacher * (2.0 / np.linalg.norm(teacher, axis=1, keepdims=True))
    whole = np.zeros((5, 8))
    whole[0] = LAYOUT.pack({"logits": teacher})
    joint = SHARDS.bound(whole, LAYOUT).values * SHARDS.step
    assert np.linalg.norm(per_row) > 1.9 * SHARDS.clip_norm
    assert np.linalg.norm(joint) <= SHARDS.clip_norm


def test_small_teachers_pass_unchanged() -> None:
    rows = some(0.1)
    bounded = SHARDS.bound(rows, LAYOUT)
    np.testing.assert_allclose(bounded.values * SHARDS.step, rows.sum(axis=0), atol=5 * 0.001)


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("shape", [(4, 8), (5, 9), (8,)])
def test_another_shape_than_planned_is_refused(mechanism: ClippedSum, shape: Any) -> None:
    with pytest.raises(PrivacyError, match="planned for"):
        mechanism.bound(np.zeros(shape), LAYOUT)


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(mechanism: ClippedSum, bad: float) -> None:
    rows = some()
    rows[3, 3] = bad
    with pytest.raises(PrivacyError, match="NaN or infinity"):
        mechanism.bound(rows, LAYOUT)


def test_nothing_is_made_by_hand(ledger: Ledger) -> None:
    integers = np.zeros(8, np.int64)
    with pytest.raises(PrivacyError, match="a Bounded cannot be made by hand"):
        Bounded(integers, LAYOUT, 2000, 5000)
    with pytest.raises(PrivacyError, match="a Released cannot be made by hand"):
        Released(integers, LAYOUT, KEY)
    released = PLAIN.release(PLAIN.bound(some(), LAYOUT), ledger, KEY, no_random)
    with pytest.raises((PrivacyError, ValueError)):
        dataclasses.replace(released, values=integers)
    with pytest.raises(dataclasses.FrozenInstanceError):
        released.values = integers  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        released.values[0] = 1


def test_the_charge_is_on_disk_before_noise_is_drawn(ledger: Ledger) -> None:
    seen: list[tuple[int, bool]] = []

    def watching(count: int) -> bytes:
        seen.append((len(ledger.lines()), ledger.stored(KEY) is None))
        return os.urandom(count)

    SHARDS.release(SHARDS.bound(some(), LAYOUT), ledger, KEY, watching)
    assert set(seen) == {(1, True)}


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_retry_sends_the_same_integers_and_costs_nothing(
    ledger: Ledger, mechanism: ClippedSum
) -> None:
    first = mechanism.release(mechanism.bound(some(), LAYOUT), ledger, KEY, os.urandom)
    # Even when training gave other logits the second time.
    again = mechanism.release(mechanism.bound(some(3.0), LAYOUT), ledger, KEY, no_random)
    np.testing.assert_array_equal(first.values, again.values)
    assert first.key == again.key == KEY
    assert len(ledger.lines()) == 1


def test_a_crash_between_charge_and_store_is_charged_once(ledger: Ledger) -> None:
    def crash(count: int) -> bytes:
        raise InterruptedError

    bounded = SHARDS.bound(some(), LAYOUT)
    with pytest.raises(InterruptedError):
        SHARDS.release(bounded, ledger, KEY, crash)
    assert ledger.spent().charges == 1
    assert ledger.stored(KEY) is None
    released = SHARDS.release(bounded, ledger, KEY, os.urandom)
    np.testing.assert_array_equal(ledger.stored(KEY), released.values)
    assert ledger.spent().charges == 1


def test_an_exhausted_budget_stops_before_anything_is_drawn(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.db", "A", "p", budget_epsilon=0.1, delta=1e-5) as ledger:
        for mechanism in MECHANISMS:
            with pytest.raises(LedgerError, match="beyond the budget"):
                mechanism.release(mechanism.bound(some(), LAYOUT), ledger, KEY, no_random)
        assert ledger.lines() == []
        assert ledger.stored(KEY) is None


def test_stored_integers_of_another_plan_are_refused(ledger: Ledger) -> None:
    PLAIN.release(PLAIN.bound(some(), LAYOUT), ledger, KEY, no_random)
    other = NoNoise(shards=5, clip_norm=2.0, clip_int=1000, size=2)
    bounded = other.bound(np.zeros((5, 2)), Layout((Segment("logits", 1, 2),)))
    with pytest.raises(LedgerError, match="8 integers are stored"):
        other.release(bounded, ledger, KEY, no_random)


@pytest.mark.parametrize("change", [{"clip_int": 2000}, {"shards": 6}])
def test_noise_covers_only_what_the_same_mechanism_bounded(
    ledger: Ledger, change: dict[str, Any]
) -> None:
    wider = dataclasses.replace(PLAIN, **change)
    bounded = wider.bound(np.ones((wider.shards, 8)), LAYOUT)
    with pytest.raises(PrivacyError, match="release with the mechanism that bounded"):
        SHARDS.release(bounded, ledger, KEY, no_random)
    assert ledger.lines() == []


def test_the_noise_has_the_planned_width(tmp_path: Path) -> None:
    size = 20_000
    mechanism = dataclasses.replace(SHARDS, size=size)
    layout = Layout((Segment("logits", size, 1),))
    bounded = mechanism.bound(np.zeros((5, size)), layout)
    with Ledger(tmp_path / "l.db", "A", "p", budget_epsilon=None, delta=1e-5) as ledger:
        draws = [
            mechanism.release(bounded, ledger, ReleaseKey("s", r), seeded_random(bytes([r]))).values
            for r in range(3)
        ]
    squares = sum(float((d.astype(np.float64) ** 2).sum()) for d in draws) / 3000.0**2
    assert 1e-3 < stats.chi2.cdf(squares, 3 * size) < 1 - 1e-3
    # 3 % less noise would be seen, and rounds are independent.
    assert stats.chi2.cdf(0.97**2 * squares, 3 * size) < 1e-3
    assert abs(np.corrcoef(draws[0], draws[1])[0, 1]) < 4 / math.sqrt(size)


def test_noise_is_clamped_to_the_planned_bits(ledger: Ledger) -> None:
    # One standard deviation of headroom instead of ten, so that clamping happens often.
    tight = dataclasses.replace(SHARDS, tail=1.0, bits=15, sigma_share=10_000.0, size=1000)
    layout = Layout((Segment("logits", 1000, 1),))
    bounded = tight.bound(np.zeros((5, 1000)), layout)
    released = tight.release(bounded, ledger, KEY, seeded_random(b"clamp")).values
    assert (released.min(), released.max()) == (-tight.limit, tight.limit) == (-16383, 16383)
    expected = 1000 * 2 * stats.norm.sf(1.6383)
    assert abs(np.count_nonzero(np.abs(released) == tight.limit) - expected) < 40


def test_a_release_without_noise_is_the_exact_sum(ledger: Ledger) -> None:
    bounded = PLAIN.bound(some(), LAYOUT)
    released = PLAIN.release(bounded, ledger, KEY, no_random)
    np.testing.assert_array_equal(released.values, bounded.values)
    assert ledger.spent().epsilon == math.inf
    assert ledger.lines()[0]["event"]["rho"] == "inf"
    assert "ε = inf" in PLAIN.statement()


def test_sites_without_noise_share_the_finest_grid() -> None:
    plans = NoNoise.for_sites(shards={"a": 3, "b": 50}, clip_norm=4.0, size=8, bits=20)
    assert {m.clip_int for m in plans.values()} == {(2**19 - 1) // 50}
    assert plans["b"].signal_bound <= plans["b"].limit < 51 * plans["b"].clip_int
    assert plans["a"].grid.step == plans["b"].grid.step == 4.0 / plans["a"].clip_int
    (alone,) = NoNoise.for_sites(shards={"a": 1}, clip_norm=4.0, size=8, bits=20).values()
    assert alone.clip_int == alone.limit == 2**19 - 1


@pytest.mark.parametrize("shards", [{}, {"a": 0}])
def test_sites_without_teachers_are_refused(shards: dict[str, int]) -> None:
    with pytest.raises(PrivacyError, match="at least one teacher"):
        NoNoise.for_sites(shards=shards, clip_norm=4.0, size=8)


def test_the_event_counts_only_honest_shares() -> None:
    event = SHARDS.event()
    assert event.rho_isolated == pytest.approx(2000**2 / (2 * 3000**2))
    assert event.rho == pytest.approx(2000**2 / (2 * (math.sqrt(3) * 3000) ** 2))
    assert event.clamp == pytest.approx(3 * 8 * 2 * math.exp(-50), rel=1e-9, abs=0)
    assert event.sampling == 3 * 8 * 2.0**-110


def test_a_release_without_noise_is_infinitely_dear_and_exact() -> None:
    assert PLAIN.event() == Event("none", REPLACE_ONE, math.inf, math.inf, 0.0, 0.0, 0.0)


def test_closeness_is_the_published_bound_for_equal_weights() -> None:
    narrow = dataclasses.replace(SHARDS, alpha_max=1, sigma_share=4.0)
    published = 10 * sum(math.exp(-2 * math.pi**2 * 16 * k / (k + 1)) for k in range(1, 3))
    # Ours bounds each term by the largest, k = 1.
    assert published <= narrow.closeness <= 2 * published
    assert narrow.closeness < 1e-60
    assert dataclasses.replace(narrow, honest=1).closeness == 0
    # By hand: ten times the two other shares, each at the largest term.
    assert narrow.closeness == pytest.approx(20 * math.exp(-16 * math.pi**2), rel=1e-9, abs=0)


def test_closeness_counts_a_weighted_share_as_narrower_by_the_largest_weight() -> None:
    # α = 3 of 3: the narrowest share is σ = 12, and counts as 12/3.
    weighted = dataclasses.replace(SHARDS, alpha=3, alpha_max=3, sigma_share=12.0)
    assert weighted.closeness == pytest.approx(20 * math.exp(-16 * math.pi**2), rel=1e-9, abs=0)


def test_the_statement_names_its_figures() -> None:
    text = SHARDS.statement()
    for part in ("zCDP", "replace_one of one patient", "5 teachers", "norm 2 over all 8 values"):
        assert part in text
    # 3000 grid steps of 2/1000.
    assert "share σ = 6 in" in text


@pytest.mark.parametrize(
    "change",
    [
        {"sigma_share": 6e4},
        {"shards": 0},
        {"size": 0},
        {"bits": 1},
        {"bits": 64},
        {"clip_int": 0},
        {"clip_norm": 0.0},
        {"clip_norm": math.nan},
        {"clip_int": 200_000},
        {"alpha": 0},
        {"alpha": 3},
        {"honest": 0},
        {"tail": 0.0},
        {"sigma_share": math.nan},
    ],
)
def test_inconsistent_mechanisms_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError):
        dataclasses.replace(SHARDS, **change)


def test_a_plain_sum_must_fit_its_bits() -> None:
    with pytest.raises(PrivacyError, match="12 bits hold 2047"):
        dataclasses.replace(PLAIN, bits=12)


def hockey_stick(noise: np.ndarray, shift: int, epsilon: float) -> float:
    """The exact δ at `epsilon` of integer noise (its probabilities) moved by `shift`."""
    moved = np.roll(noise, shift)
    return float(np.maximum(noise - math.exp(epsilon) * moved, 0).sum())


def weighted_sum(sigmas: list[float], weights: list[int], reach: int) -> np.ndarray:
    """Exact probabilities of Σ weight·N_Z(0, σ²) on the integers -reach … reach."""
    transform = np.ones(2 * reach + 1, complex)
    for sigma, weight in zip(sigmas, weights, strict=True):
        x = np.arange(-(reach // weight), reach // weight + 1)
        mass = np.exp(-((x / sigma) ** 2) / 2)
        share = np.zeros(2 * reach + 1)
        share[x * weight] = mass / mass.sum()
        transform *= np.fft.fft(share)
    return np.maximum(np.fft.ifft(transform).real, 0)


def test_a_comb_of_weights_is_refused_and_would_leak() -> None:
    """The mutant: α = (19, 19, 19, 1) with σ = 4 at each site, accounted as one Gaussian."""
    weights, shift, epsilon = [19, 19, 19, 1], 8, 0.2
    comb = weighted_sum([4.0] * 4, weights, 2000)
    total = 4.0 * math.sqrt(sum(w * w for w in weights))
    smooth = weighted_sum([total], [1], 2000)
    assert hockey_stick(smooth, shift, epsilon) < 2e-5
    assert hockey_stick(comb, shift, epsilon) > 0.1
    with pytest.raises(PrivacyError, match="comb"):
        dataclasses.replace(SHARDS, alpha=19, alpha_max=19, sigma_share=4.0, honest=4)


def test_shares_within_the_rule_add_up_to_one_gaussian() -> None:
    weights = [5, 5, 2, 1]
    shares = [4 * 5 * 5 / w for w in weights]
    total = math.sqrt(sum((s * w) ** 2 for s, w in zip(shares, weights, strict=True)))
    mixed, smooth = weighted_sum(shares, weights, 3000), weighted_sum([total], [1], 3000)
    np.testing.assert_allclose(mixed, smooth, atol=1e-12)
    for share, weight in zip(shares, weights, strict=True):
        dataclasses.replace(SHARDS, alpha=weight, alpha_max=5, sigma_share=share)
        with pytest.raises(PrivacyError, match="comb"):
            dataclasses.replace(SHARDS, alpha=weight, alpha_max=5, sigma_share=0.99 * share)


@pytest.mark.parametrize(("session", "number"), [("", 0), ("s", -1)])
def test_a_release_key_needs_a_session_and_a_round(session: str, number: int) -> None:
    with pytest.raises(PrivacyError, match="no such release"):
        ReleaseKey(session, number)

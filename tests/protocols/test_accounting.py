import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from protocols.accounting import (
    REPLACE_ONE,
    Event,
    check_target,
    compose,
    epsilon_from_rho,
    gaussian_epsilon,
    rho_from_epsilon,
    total_delta,
)
from protocols.errors import PrivacyError


def event(rho: float = 0.1, slack: float = 0.0) -> Event:
    return Event("shard-teachers", REPLACE_ONE, rho, 3 * rho, slack, 0.0, 0.0)


def formula(rho: float, delta: float) -> float:
    """Canonne, Kamath and Steinke 2020, Corollary 13, minimised by scipy."""

    def bound(log_excess: float) -> float:
        a = 1 + math.exp(log_excess)
        return a * rho + math.log1p(-1 / a) - math.log(a * delta) / (a - 1)

    return float(optimize.minimize_scalar(bound, bounds=(-4, 13), method="bounded").fun)


@pytest.mark.parametrize("rho", [1e-4, 0.01, 0.3, 2.0, 20.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-7])
def test_epsilon_is_the_published_conversion(rho: float, delta: float) -> None:
    assert epsilon_from_rho(rho, delta) == pytest.approx(formula(rho, delta), rel=1e-3)


def test_golden_values() -> None:
    # Twenty Gaussian releases with noise multiplier 4: Rényi 5.3777, exact 4.9833.
    rho = 20 / (2 * 4**2)
    assert epsilon_from_rho(rho, 1e-5) == pytest.approx(5.3777, rel=2e-3)
    assert gaussian_epsilon(rho, 1e-5) == pytest.approx(4.9833, rel=2e-3)


@pytest.mark.parametrize(("epsilon", "mu"), [(0.5, 0.1422), (1, 0.2681), (4, 0.9249)])
def test_the_cross_check_is_the_exact_gaussian(epsilon: float, mu: float) -> None:
    assert gaussian_epsilon(mu**2 / 2, 1e-5) == pytest.approx(epsilon, rel=5e-3)


@pytest.mark.parametrize("rho", [0.01, 0.1, 0.6])
def test_the_headline_is_above_the_cross_check(rho: float) -> None:
    assert 1.0 < epsilon_from_rho(rho, 1e-5) / gaussian_epsilon(rho, 1e-5) < 1.25


@settings(max_examples=25, deadline=None)
@given(st.floats(0.01, 100), st.sampled_from([1e-5, 1e-6, 1e-8]))
def test_the_inverse_stays_within_epsilon_and_wastes_little(epsilon: float, delta: float) -> None:
    rho = rho_from_epsilon(epsilon, delta)
    assert epsilon * (1 - 1e-6) <= epsilon_from_rho(rho, delta) <= epsilon
    # Splitting over rounds and adding up again must not tip over the budget.
    assert epsilon_from_rho(math.fsum([rho / 7] * 7), delta) <= epsilon


@settings(deadline=None)
@given(st.floats(1e-4, 10), st.floats(1e-4, 10))
def test_more_is_never_cheaper(one: float, other: float) -> None:
    both = epsilon_from_rho(one + other, 1e-5)
    assert both >= max(epsilon_from_rho(one, 1e-5), epsilon_from_rho(other, 1e-5))


def test_the_ends_of_the_scale() -> None:
    assert epsilon_from_rho(0.0, 1e-5) == 0
    assert epsilon_from_rho(math.inf, 1e-5) == math.inf
    assert rho_from_epsilon(math.inf, 1e-5) == math.inf
    assert gaussian_epsilon(0.0, 1e-5) == 0


@pytest.mark.parametrize("rho", [-1.0, math.nan])
def test_a_rho_below_zero_is_refused(rho: float) -> None:
    with pytest.raises(PrivacyError, match="zCDP"):
        epsilon_from_rho(rho, 1e-5)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan])
def test_an_epsilon_that_is_not_positive_is_refused(epsilon: float) -> None:
    with pytest.raises(PrivacyError, match="epsilon"):
        rho_from_epsilon(epsilon, 1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_a_delta_outside_its_range_is_refused(delta: float) -> None:
    with pytest.raises(PrivacyError, match="delta"):
        epsilon_from_rho(0.1, delta)


def test_delta_must_be_below_one_over_the_units() -> None:
    check_target(1.0, 0.0099, units=100)
    with pytest.raises(PrivacyError, match=r"one over 100 units.*choose δ = 1e-05"):
        check_target(1.0, 0.01, units=100)


def test_composition_adds_rho_and_converts_once() -> None:
    spent = compose([event(0.1), event(0.2)], 1e-5)
    assert spent.charges == 2
    assert spent.rho == pytest.approx(0.3)
    assert spent.epsilon == epsilon_from_rho(spent.rho, 1e-5)
    assert spent.epsilon_isolated == pytest.approx(epsilon_from_rho(0.9, 1e-5))
    assert spent.delta_total == spent.delta == 1e-5
    assert compose([], 1e-5).epsilon == 0


def test_one_unprotected_release_makes_epsilon_infinite() -> None:
    free = Event("none", REPLACE_ONE, math.inf, math.inf, 0.0, 0.0, 0.0)
    assert compose([event(), free], 1e-5).epsilon == math.inf


def test_what_is_not_ideal_is_charged_to_delta() -> None:
    spent = compose([event(0.1, slack=1e-9)] * 3, 1e-5)
    expected = 1e-5 + (1 + math.exp(spent.epsilon)) * 3e-9
    assert spent.delta_total == pytest.approx(expected, rel=1e-12)
    assert total_delta(1000.0, 1e-5, 1e-9) == 1.0


@pytest.mark.parametrize("rho", [0.1, 1e-300, math.inf])
def test_events_survive_their_json_form(rho: float) -> None:
    original = event(rho)
    line = original.line()
    assert line["rho"] == ("inf" if rho == math.inf else rho)
    assert Event.from_line(line) == original


@pytest.mark.parametrize("change", [{"more": 1}, {"rho": "much"}, {"rho": -1}, {"clamp": None}])
def test_an_unknown_event_is_an_error_never_a_number(change: dict[str, object]) -> None:
    with pytest.raises(PrivacyError):
        Event.from_line(event().line() | change)


def test_an_event_needs_an_isolated_cost_of_at_least_its_cost() -> None:
    with pytest.raises(PrivacyError, match="no such privacy event"):
        Event("shard-teachers", REPLACE_ONE, 0.2, 0.1, 0.0, 0.0, 0.0)

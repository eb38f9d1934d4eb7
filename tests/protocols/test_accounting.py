import ast
import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from protocols.accounting import (
    ADD_OR_REMOVE_ONE,
    REPLACE_ONE,
    Event,
    check_target,
    compose,
    epsilon_from_rho,
    gaussian_epsilon,
    rho_from_epsilon,
    subsampled_epsilon,
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
    assert gaussian_epsilon(math.inf, 1e-5) == math.inf


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
    with pytest.raises(PrivacyError, match="choose δ = 5e-08 or less"):
        check_target(1.0, 1e-5, units=2_000_000)
    for units in (0, 1):
        check_target(1.0, 0.9, units=units)
    with pytest.raises(PrivacyError, match=r"between 0 and 1\).*choose δ = 1e-05"):
        check_target(1.0, 1.0)


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
    with_steps = compose([dataclasses.replace(free, relation=ADD_OR_REMOVE_ONE), steps()], 1e-5)
    assert with_steps.epsilon == with_steps.cross_check == math.inf


def test_what_is_not_ideal_is_charged_to_delta() -> None:
    spent = compose([event(0.1, slack=1e-9)] * 3, 1e-5)
    expected = 1e-5 + (1 + math.exp(spent.epsilon)) * 3e-9
    assert spent.delta_total == pytest.approx(expected, rel=1e-12)
    assert total_delta(1000.0, 1e-5, 1e-9) == 1.0
    assert total_delta(math.inf, 1e-5, 1e-9) == 1e-5
    parts = Event("shard-teachers", REPLACE_ONE, 0.1, 0.1, 1e-9, 2e-9, 4e-9)
    assert parts.slack == pytest.approx(7e-9, rel=1e-9, abs=0)


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


# Poisson-subsampled Gaussian steps.


def steps(noise: float = 2.0, rate: float = 0.128, count: int = 156, **changes: Any) -> Event:
    figures = {"relation": ADD_OR_REMOVE_ONE, "unit": ""} | changes
    return Event(
        "dp-sgd",
        figures["relation"],
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        rate=rate,
        noise_multiplier=noise,
        steps=count,
        unit=figures["unit"],
    )


GOLDEN = [
    # dp-accounting's own tests, pld/accountant_test.py, smallest noise of a subsampled Gaussian.
    ((0.01, 0.67379294682, 1), ADD_OR_REMOVE_ONE, 1.0),
    ((0.001, 3.20956502598 / 6, 25), ADD_OR_REMOVE_ONE, 1.0),
    # The project's reference table, measured with dp-accounting 0.6.0, four digits.
    ((0.128, 0.6, 156), ADD_OR_REMOVE_ONE, 32.51),
    ((0.128, 1.0, 156), ADD_OR_REMOVE_ONE, 11.43),
    ((0.128, 2.0, 156), ADD_OR_REMOVE_ONE, 3.876),
    ((0.128, 4.0, 156), ADD_OR_REMOVE_ONE, 1.633),
    ((0.128, 0.6, 156), REPLACE_ONE, 42.38),
    ((0.128, 1.0, 156), REPLACE_ONE, 18.3),
    ((0.128, 2.0, 156), REPLACE_ONE, 7.55),
    ((0.128, 4.0, 156), REPLACE_ONE, 3.37),
    # The exact curve of the Gaussian mechanism, twenty times noise 4 (same table).
    ((1.0, 4.0, 20), ADD_OR_REMOVE_ONE, 4.9833),
]


@pytest.mark.parametrize(("kind", "relation", "expected"), GOLDEN)
def test_loss_distributions_give_published_figures(
    kind: tuple[float, float, int], relation: str, expected: float
) -> None:
    epsilon, method = subsampled_epsilon((kind,), 1e-5, relation)
    # Within 0.1 %, and half a unit of the last printed digit.
    digits = len(str(expected).partition(".")[2])
    assert epsilon == pytest.approx(expected, abs=max(1e-3 * expected, 0.51 * 10**-digits))
    assert method == "PLD"


@pytest.mark.parametrize(
    ("units", "batch", "noise", "epochs", "delta", "expected"),
    [
        # TensorFlow Privacy, compute_dp_sgd_privacy_test.py: Rényi figures at whole orders.
        (60_000, 150, 1.3, 15, 1e-5, 0.7242234026109595),
        (100_000, 100, 1.0, 30, 1e-7, 1.4154988495444845),
    ],
)
def test_the_renyi_cross_check_gives_published_figures(
    units: int, batch: int, noise: float, epochs: int, delta: float, expected: float
) -> None:
    spent = compose([steps(noise, batch / units, epochs * units // batch)], delta)
    assert spent.cross_check == pytest.approx(expected, rel=1e-3)
    assert 0.75 * expected < spent.epsilon < expected


def test_a_second_numerical_accountant_agrees() -> None:
    """Between the bounds of Opacus' PRV accountant (Gopi, Lee and Wutschitz 2021)."""
    noises = [0.6, 1.0, 2.0, 4.0]
    code = f"""
from opacus.accountants import PRVAccountant
for noise in {noises}:
    accountant = PRVAccountant()
    accountant.history = [(noise, 0.128, 156)]
    errors = {{"eps_error": 0.01, "delta_error": 1e-8}}
    found = accountant._get_dprv(**errors).compute_epsilon(1e-5, *reversed(errors.values()))
    print(found[0], found[2])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    bounds = [tuple(map(float, line.split())) for line in done.stdout.splitlines()]
    for noise, (low, high) in zip(noises, bounds, strict=True):
        assert low <= compose([steps(noise)], 1e-5).epsilon <= high < low + 0.03


@settings(max_examples=5, deadline=None)
@given(st.floats(1.4, 20), st.floats(0.01, 0.5), st.integers(1, 100))
def test_more_steps_a_higher_rate_or_less_noise_is_never_cheaper(
    noise: float, rate: float, count: int
) -> None:
    def cost(noise: float, rate: float, count: int) -> float:
        return compose([steps(noise, rate, count)], 1e-5).epsilon

    base = cost(noise, rate, count)
    # Up to the width of the grid of losses.
    assert cost(noise, rate, 2 * count) >= base - 1e-3
    assert cost(noise, min(2 * rate, 1.0), count) >= base - 1e-3
    assert cost(noise / 2, rate, count) >= base - 1e-3


def test_replacing_costs_more_than_removing() -> None:
    add, replace = (
        compose([steps(relation=relation)], 1e-5).epsilon
        for relation in (ADD_OR_REMOVE_ONE, REPLACE_ONE)
    )
    assert replace > 1.9 * add


def test_replacing_one_in_unsampled_steps_is_twice_the_sensitivity() -> None:
    replaced = compose([steps(8.0, 1.0, 20, relation=REPLACE_ONE)], 1e-5)
    removed = compose([steps(4.0, 1.0, 20)], 1e-5)
    assert replaced.epsilon == pytest.approx(removed.epsilon, rel=1e-3)
    assert replaced.cross_check == pytest.approx(removed.cross_check)


def test_equal_steps_cost_the_same_however_they_are_charged() -> None:
    at_once = compose([steps(count=150)], 1e-5)
    in_parts = compose([steps(count=50)] * 3, 1e-5)
    assert (at_once.epsilon, at_once.cross_check) == (in_parts.epsilon, in_parts.cross_check)
    assert in_parts.charges == 3
    # A round that is forgotten shows.
    assert compose([steps(count=50)] * 2, 1e-5).epsilon < 0.85 * at_once.epsilon


def test_unlike_steps_compose() -> None:
    mixed = compose([steps(2.0, 0.1, 50), steps(3.0, 0.2, 30)], 1e-5)
    parts = [compose([e], 1e-5) for e in (steps(2.0, 0.1, 50), steps(3.0, 0.2, 30))]
    assert max(p.epsilon for p in parts) < mixed.epsilon < sum(p.epsilon for p in parts)
    assert mixed.accountant == "PLD"
    assert mixed.epsilon < mixed.cross_check


def test_discrete_releases_and_steps_split_delta() -> None:
    released = Event("shard-teachers", ADD_OR_REMOVE_ONE, 0.1, 0.3, 0.0, 0.0, 0.0)
    spent = compose([released, steps(), released], 1e-5)
    sampled = compose([steps()], 5e-6).epsilon
    assert spent.epsilon == pytest.approx(epsilon_from_rho(0.2, 5e-6) + sampled)
    assert spent.epsilon_isolated == pytest.approx(epsilon_from_rho(0.6, 5e-6) + sampled)
    assert spent.accountant == "zCDP + PLD"
    assert compose([released], 1e-5).accountant == "zCDP"
    assert compose([released], 1e-5).cross_check is None
    # Rényi accounting needs no split, and must lie above each part alone.
    assert spent.cross_check > max(epsilon_from_rho(0.2, 1e-5), compose([steps()], 1e-5).epsilon)


def test_where_no_loss_distribution_is_finite_renyi_stands_in() -> None:
    kind = ((0.128, 1.0, 156),)
    epsilon, method = subsampled_epsilon(kind, 1e-16, ADD_OR_REMOVE_ONE)
    assert method == "RDP"
    assert subsampled_epsilon(kind, 1e-12, ADD_OR_REMOVE_ONE)[0] < epsilon < math.inf
    assert epsilon == compose([steps(1.0)], 1e-16).cross_check
    assert subsampled_epsilon(kind, 1e-16, REPLACE_ONE) == (math.inf, "RDP")


@pytest.mark.parametrize(
    "kind", [(1e-6, 0.2, 5), (0.5, 0.3, 1000), (0.5, 0.6, 100_000), (0.1, 2.0**18, 10)]
)
def test_extreme_plans_get_an_answer_in_seconds(kind: tuple[float, float, int]) -> None:
    epsilon, method = subsampled_epsilon((kind,), 1e-5, ADD_OR_REMOVE_ONE)
    assert method == "PLD"
    assert 0 <= epsilon < 1e5


def test_a_slower_grid_gives_the_same_figure_to_a_thousandth() -> None:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.pld import PLDAccountant

    fine = PLDAccountant(value_discretization_interval=1e-4)
    fine.compose(PoissonSampledDpEvent(1e-3, GaussianDpEvent(0.2)), 200)
    coarse, _ = subsampled_epsilon(((1e-3, 0.2, 200),), 1e-5, ADD_OR_REMOVE_ONE)
    assert coarse == pytest.approx(fine.get_epsilon(1e-5), rel=1e-3)


def test_relations_and_units_do_not_add_up() -> None:
    for other in (steps(relation=REPLACE_ONE), steps(unit="client")):
        with pytest.raises(PrivacyError, match="do not add up"):
            compose([steps(), other], 1e-5)
    with pytest.raises(PrivacyError, match="no such neighbouring relation"):
        compose([steps(relation="swap")], 1e-5)


def test_step_events_survive_their_json_form() -> None:
    for original in (steps(), steps(rate=1.0), steps(unit="client")):
        assert Event.from_line(original.line()) == original
    line = steps().line()
    assert (line["rate"], line["noise_multiplier"], line["steps"]) == (0.128, 2.0, 156)


def test_lines_written_without_steps_read_and_stay_as_they_were() -> None:
    line = {
        "mechanism": "shard-teachers",
        "relation": REPLACE_ONE,
        "rho": 0.1,
        "rho_isolated": 0.3,
        "closeness": 0.0,
        "clamp": 1e-20,
        "sampling": 1e-30,
    }
    assert Event.from_line(line).line() == line
    assert Event.from_line(line).steps == 0


@pytest.mark.parametrize(
    "change",
    [
        {"rate": 0.0},
        {"rate": 1.5},
        {"rate": -0.1},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": "inf"},
        {"steps": -1},
        {"steps": 2.5},
        {"steps": "3"},
        {"steps": True},
        {"rho": 0.1, "rho_isolated": 0.1},
        {"steps": 0},
    ],
)
def test_steps_that_cannot_be_are_an_error(change: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError):
        Event.from_line(steps().line() | change)


ROOT = Path(__file__).resolve().parents[2]


def test_nothing_computes_epsilon_by_a_forbidden_shortcut() -> None:
    """Neither the central limit (GDP) accountant of Opacus nor the textbook √(2·ln(1.25/δ))."""
    for folder in ("protocols", "secure_natfl", "attacks"):
        for file in (ROOT / folder).rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"GaussianAccountant|accountants\.analysis.*gdp|\bgdp\b", text), (
                file
            )
            constants = {
                node.value
                for node in ast.walk(ast.parse(text))
                if isinstance(node, ast.Constant) and isinstance(node.value, float)
            }
            assert not (1.25 in constants and "delta" in text and "log(" in text), file


def test_the_forbidden_shortcut_is_too_low_where_ours_is_not() -> None:
    # The reference table: Opacus' gdp says 10.59 where the truth is above 11.4.
    assert compose([steps(1.0)], 1e-5).epsilon > 11.4 > 10.59
    # The textbook formula at ε = 16 under-noises: its noise costs more than 16.
    textbook = math.sqrt(2 * math.log(1.25 / 1e-5)) / 16
    assert compose([steps(textbook, 1.0, 1)], 1e-5).epsilon > 16.5

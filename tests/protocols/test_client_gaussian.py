import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import optimize, stats

from protocols.accounting import ADD_OR_REMOVE_ONE, compose
from protocols.client_gaussian import ClientGaussian, ClientPlan, plan_clients, prospect
from protocols.errors import LedgerError, PrivacyError
from protocols.ledger import Ledger, ReleaseKey
from protocols.quantize import Layout, Segment
from protocols.sampler import seeded_random

LAYOUT = Layout((Segment("logits", 4, 2),))
MU = {1: 0.2681, 2: 0.5016, 8: 1.6660}


def clients(count: int = 5, alphas: tuple[int, ...] = (1,), **changes: Any) -> ClientPlan:
    names = [f"site {i}" for i in range(count)]
    figures: dict[str, Any] = {
        "epsilon": 8.0,
        "delta": 1e-5,
        "rounds": 2,
        "alphas": {name: alphas[i % len(alphas)] for i, name in enumerate(names)},
        "groups": dict.fromkeys(names, "g"),
        "colluders": 1,
        "dropouts": 1,
        "clip_norm": 1.0,
        "size": 8,
        "rows": 200,
        "classes": 2,
        "override": True,
    }
    return plan_clients(**figures | changes)


MECHANISM = clients().mechanisms["site 0"]
outputs = arrays(np.float64, (1, 8), elements=st.one_of(st.floats(-9, 9), st.floats(-1e6, 1e6)))


@settings(deadline=None)
@given(outputs)
def test_a_client_moves_the_sum_by_at_most_the_clip(output: np.ndarray) -> None:
    """Removed, its contribution counts as zero."""
    with_it = MECHANISM.bound(output, LAYOUT)
    assert sum(int(x) ** 2 for x in with_it.values) <= MECHANISM.sensitivity**2
    assert with_it.sensitivity == MECHANISM.sensitivity == MECHANISM.clip_int


def test_the_sensitivity_is_attained() -> None:
    mechanism = clients().mechanisms["site 0"]
    output = np.zeros((1, 8))
    output[0, 5] = -70.0
    assert np.abs(mechanism.bound(output, LAYOUT).values).max() == mechanism.sensitivity


@pytest.mark.parametrize("alphas", [(1,), (4, 1, 2)])
def test_all_rounds_meet_epsilon_at_the_actual_weights(alphas: tuple[int, ...]) -> None:
    plan = clients(6, alphas)
    assert 8.0 * (1 - 1e-6) <= plan.epsilon <= 8.0
    assert plan.relation == ADD_OR_REMOVE_ONE
    for site, mechanism in plan.mechanisms.items():
        event = mechanism.event()
        assert (event.unit, event.relation) == ("client", ADD_OR_REMOVE_ONE)
        # By hand: honest weighted shares against the weighted clip of this client.
        variance = 4 * (mechanism.alpha * mechanism.sigma_share) ** 2
        rho = (mechanism.alpha * mechanism.clip_int) ** 2 / (2 * variance)
        assert event.rho == pytest.approx(rho)
        assert plan.spending(site).epsilon <= 8.0
        assert mechanism.reach <= mechanism.limit
    # One round fewer in the books shows.
    event = plan.mechanisms["site 0"].event()
    assert compose([event], 1e-5).epsilon < 0.8 * compose([event] * 2, 1e-5).epsilon


def test_all_shares_together_have_the_planned_deviation(tmp_path: Path) -> None:
    plan = clients(3, (2, 1), size=20_000, rows=10_000, dropouts=0)
    layout = Layout((Segment("logits", 10_000, 2),))
    total = np.zeros(20_000)
    for number, (site, mechanism) in enumerate(plan.mechanisms.items()):
        with Ledger(
            tmp_path / f"{number}.db",
            site,
            "p",
            relation=ADD_OR_REMOVE_ONE,
            budget_epsilon=None,
            delta=1e-5,
        ) as ledger:
            released = mechanism.release(
                mechanism.bound(np.zeros((1, 20_000)), layout),
                ledger,
                ReleaseKey("s", 0),
                seeded_random(site.encode()),
            )
            assert ledger.lines()[0]["event"]["unit"] == "client"
        total += mechanism.alpha * released.values
    any_one = plan.mechanisms["site 0"]
    sigma = plan.z * any_one.clip_int * 2 * math.sqrt(3 / 2)
    statistic = ((total / sigma) ** 2).sum()
    assert 1e-3 < stats.chi2.cdf(statistic, total.size) < 1 - 1e-3


def test_a_ledger_of_patients_takes_no_client(tmp_path: Path) -> None:
    mechanism = clients().mechanisms["site 0"]
    bounded = mechanism.bound(np.zeros((1, 8)), LAYOUT)
    with (
        Ledger(tmp_path / "r.db", "A", "p", budget_epsilon=None, delta=1e-5) as ledger,
        pytest.raises(LedgerError, match="do not add up"),
    ):
        mechanism.release(bounded, ledger, ReleaseKey("s", 0), os.urandom)


def test_the_prospect_matches_published_simulations() -> None:
    """Reference table, M = 200, two classes: one cell fixes the clients' quality, four follow.

    There a vote has L2 norm √½ and noise covers replacing one of √(2M).
    """

    def predicted(count: int, epsilon: int, quality: float) -> float:
        noise = math.sqrt(2) / MU[epsilon] / math.sqrt(0.5)
        return prospect(weights=count, noise=noise, rows=200, classes=2, quality=quality).consensus

    quality = optimize.brentq(lambda q: predicted(20, 8, q) - 0.69, 0.05, 1.0)
    assert quality == pytest.approx(0.4, abs=0.05)
    measured = {(20, 1): 0.51, (20, 2): 0.53, (5, 2): 0.50, (5, 8): 0.54}
    for (count, epsilon), seen in measured.items():
        # Two binomial standard errors of 200 rows.
        assert predicted(count, epsilon, quality) == pytest.approx(seen, abs=0.07)


@pytest.mark.parametrize("classes", [2, 5])
def test_the_prospect_is_the_share_of_rows_that_keep_their_class(classes: int) -> None:
    """Against 20,000 rows of simulated noise."""
    noise, rows = 3.0, 20_000
    chosen = prospect(weights=400, noise=noise, rows=rows, classes=classes, quality=1.0)
    vote = np.full(classes, -1.0 / classes)
    vote[0] += 1
    vote *= 400 / math.sqrt(rows) / np.linalg.norm(vote)
    out = vote + noise * np.random.default_rng(3).normal(size=(rows, classes))
    kept = np.count_nonzero(out.argmax(axis=1) == 0)
    assert stats.binomtest(kept, rows, chosen.consensus).pvalue > 1e-3
    assert chosen.chance == 1 / classes


@pytest.mark.parametrize(("count", "epsilon"), [(4, 8.0), (5, 1.0), (20, 4.0)])
def test_hospitals_are_refused_with_the_figure_and_what_would_work(
    count: int, epsilon: float
) -> None:
    with pytest.raises(PrivacyError, match=r"% of rows.*signal to noise") as refusal:
        clients(count, epsilon=epsilon, override=False)
    fix = refusal.value.fix
    assert "shard-teachers" in fix
    crowd = int(fix.split("; or ")[1].split(" clients")[0])
    assert count < crowd
    assert isinstance(clients(crowd, epsilon=epsilon, override=False), ClientPlan)


def test_an_epsilon_is_offered_where_one_would_work() -> None:
    with pytest.raises(PrivacyError, match="ε = ") as refusal:
        clients(20, override=False, rows=600, rounds=1)
    enough = float(refusal.value.fix.split("ε = ")[1].split(";")[0])
    assert 8.0 < enough <= 32
    assert isinstance(clients(20, epsilon=enough, override=False, rows=600, rounds=1), ClientPlan)
    with pytest.raises(PrivacyError, match="no ε up to 32"):
        clients(5, override=False)


def test_an_override_plans_what_is_refused() -> None:
    plan = clients(override=True)
    assert all(isinstance(m, ClientGaussian) for m in plan.mechanisms.values())
    said = plan.mechanisms["site 0"].statement()
    assert "the whole client" in said
    assert "add_or_remove_one" in said


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": 0},
        {"classes": 1},
        {"quality": 0.0},
        {"quality": 1.1},
        {"epsilon": 0.0},
        {"epsilon": math.inf},
        {"colluders": 0},
        {"colluders": 5},
        {"rounds": 0},
        {"delta": 1.0},
    ],
)
def test_impossible_plans_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(PrivacyError, match="Next: "):
        clients(**changes)

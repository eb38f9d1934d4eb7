import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from protocols.accounting import epsilon_from_rho
from protocols.errors import PrivacyError
from protocols.ledger import Ledger
from protocols.mechanisms import ReleaseKey
from protocols.noise_plan import NoisePlan
from protocols.quantize import Layout, Segment
from protocols.release import RELEASED_BITS, largest_integer
from protocols.sampler import seeded_random

PLAN: dict[str, Any] = {
    "epsilon": 4.0,
    "delta": 1e-5,
    "rounds": 3,
    "alphas": {"a": 2, "b": 1, "c": 1, "d": 2, "e": 1, "f": 3, "g": 3, "h": 1},
    "groups": dict.fromkeys("abcde", "one") | dict.fromkeys("fgh", "two"),
    "colluders": 1,
    "dropouts": 1,
    "shards": {"a": 40, "b": 10, "c": 5, "d": 20, "e": 30, "f": 12, "g": 8, "h": 3},
    "clip_norm": 6.0,
    "size": 2000,
}


def plan(**changes: Any) -> NoisePlan:
    return NoisePlan.calibrate(**PLAN | changes)


def same(sites: str, **changes: Any) -> NoisePlan:
    """One group of like sites."""
    figures: dict[str, Any] = {
        "alphas": dict.fromkeys(sites, 1),
        "groups": dict.fromkeys(sites, "all"),
        "shards": dict.fromkeys(sites, 20),
    }
    return plan(**figures | changes)


def test_the_worst_client_has_exactly_the_target() -> None:
    made = plan()
    assert made.epsilon == pytest.approx(4.0, abs=1e-6)
    assert made.epsilon <= 4.0
    # The worst are those with the largest weight of their group.
    worst = {s for s, e in made.client_epsilons.items() if e == pytest.approx(4.0, abs=1e-6)}
    assert worst == {"a", "d", "f", "g"}


def test_lighter_clients_have_less_epsilon() -> None:
    made = plan()
    for site, alpha, heaviest in (("b", 1, 2), ("h", 1, 3)):
        rho = 3 / (2 * (made.z * heaviest / alpha) ** 2)
        assert made.client_epsilons[site] == pytest.approx(epsilon_from_rho(rho, 1e-5), rel=1e-6)


def test_alone_a_client_has_only_its_own_share() -> None:
    made = plan()
    # Group one counts on h = 5 - 1 - 1 = 3 shares, group two on one.
    assert made.honest == {"one": 3, "two": 1}
    isolated = epsilon_from_rho(3 * 3 / (2 * made.z**2), 1e-5)
    assert made.epsilon_isolated == pytest.approx(isolated, rel=1e-6)
    assert made.epsilon_isolated > made.epsilon


def test_weighted_shares_of_a_group_are_equal_and_add_up() -> None:
    made = plan()
    clip_int = made.mechanisms["a"].clip_int
    for group, heaviest, honest in (("one", 2, 3), ("two", 3, 1)):
        sites = [s for s, g in made.groups.items() if g == group]
        shares = [made.mechanisms[s].alpha * made.mechanisms[s].sigma_share for s in sites]
        # Whichever `honest` of them remain, they carry z times the heaviest sensitivity.
        needed = made.z * 2 * clip_int * heaviest
        np.testing.assert_allclose(shares, needed / math.sqrt(honest))


def test_shares_that_forget_the_weights_would_not_reach_the_target() -> None:
    """The mutant: σ = z·2S/√h at every site, whatever α."""
    made = plan()
    sites = ["b", "c", "e"]  # the light ones remain honest beside the heavy victim
    mutant = made.z * 2 * made.mechanisms["a"].clip_int / math.sqrt(3)
    variance = sum((made.mechanisms[s].alpha * mutant) ** 2 for s in sites)
    rho = 3 * (2 * made.mechanisms["a"].sensitivity) ** 2 / (2 * variance)
    assert epsilon_from_rho(rho, 1e-5) > 2 * made.epsilon


def test_all_sites_share_one_grid_with_headroom_for_the_noise() -> None:
    made, limit = plan(), largest_integer(RELEASED_BITS)
    mechanisms = made.mechanisms.values()
    assert len({(m.clip_int, m.step, m.bits) for m in mechanisms}) == 1
    assert all(m.signal_bound + 10 * m.sigma_share <= limit for m in mechanisms)
    # The finest such grid: one more step would not fit the largest site and share.
    ratio = max(m.sigma_share / m.clip_int for m in mechanisms)
    assert (made.mechanisms["a"].clip_int + 1) * (40 + 10 * ratio) > limit


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 6), min_size=4),
    st.floats(0.2, 12),
    st.integers(1, 2),
    st.integers(0, 1),
)
def test_every_plan_keeps_its_promises(
    alphas: dict[str, int], epsilon: float, colluders: int, dropouts: int
) -> None:
    made = plan(
        alphas=alphas,
        groups=dict.fromkeys(alphas, "all"),
        shards=dict.fromkeys(alphas, 10),
        epsilon=epsilon,
        colluders=colluders,
        dropouts=dropouts,
        size=28_000,
        bits=24,
    )
    assert epsilon * (1 - 1e-6) <= made.epsilon <= epsilon
    assert made.epsilon <= made.epsilon_isolated
    assert 1e-5 <= made.delta_total <= 1.01e-5
    assert min(m.sigma_share for m in made.mechanisms.values()) >= 4 * max(alphas.values())


def test_fewer_honest_shares_mean_wider_ones() -> None:
    shares = [same("abcdef", colluders=t).mechanisms["a"] for t in (1, 2, 3)]
    ratios = [m.sigma_share / m.clip_int for m in shares]
    assert ratios == sorted(ratios)
    assert ratios[2] == pytest.approx(ratios[0] * math.sqrt(2))


def test_the_noise_of_an_aggregate_is_what_the_plan_states(tmp_path: Path) -> None:
    made = plan(size=5000)
    layout = Layout((Segment("logits", 5000, 1),))
    total = np.zeros(5000, np.int64)
    for site in "abcde":
        mechanism = made.mechanisms[site]
        bounded = mechanism.bound(np.zeros((mechanism.shards, 5000)), layout)
        path = tmp_path / f"{site}.db"
        with Ledger(path, site, "p", budget_epsilon=4.0, delta=1e-5) as ledger:
            random = seeded_random(site.encode())
            released = mechanism.release(bounded, ledger, ReleaseKey("s", 0), random)
        total += mechanism.alpha * released.values
    squares = float((total.astype(np.float64) ** 2).sum())
    variance = made.noise_norm["one"] ** 2 / 5000
    assert 1e-3 < stats.chi2.cdf(squares / variance, 5000) < 1 - 1e-3
    # One colluder and one dropout later, the promised noise is still there: 3 shares of 5.
    promised = (made.z * 2 * made.mechanisms["a"].clip_int * 2) ** 2
    assert variance * 3 / 5 == pytest.approx(promised)


def test_signal_against_noise() -> None:
    made = plan()
    clip_int = made.mechanisms["a"].clip_int
    assert made.signal_bound["one"] == (2 * 40 + 10 + 5 + 2 * 20 + 30) * clip_int
    shares = 5 * 2000 * (2 * made.mechanisms["a"].sigma_share) ** 2
    assert made.noise_norm["one"] == pytest.approx(math.sqrt(shares))


def test_the_whole_plan_fits_a_ledger_with_its_own_epsilon(tmp_path: Path) -> None:
    made = plan()
    event = made.mechanisms["a"].event()
    with Ledger(tmp_path / "l.db", "a", "p", budget_epsilon=4.0, delta=1e-5) as ledger:
        ledger.require(event, made.rounds)
        for number in range(made.rounds):
            ledger.charge(ReleaseKey("s", number), event)
        assert ledger.spent().epsilon == made.client_epsilons["a"] == made.spending("a").epsilon


def test_openings_below_the_floor_have_too_little_noise() -> None:
    assert plan().min_participants == {"one": 4, "two": 2}


def test_figures_carry_relation_and_adversary() -> None:
    made = plan()
    assert made.relation == "replace_one"
    assert "up to 1 client(s)" in made.adversary
    assert "honest-but-curious" in made.adversary


def test_a_group_that_is_too_small_says_what_would_work() -> None:
    with pytest.raises(PrivacyError, match=r"group all: 3 participant.*5 participants would work"):
        same("abc", colluders=2, dropouts=2)
    assert same("abcde", colluders=2, dropouts=2).honest == {"all": 1}


def test_colluders_are_counted_in_every_group() -> None:
    with pytest.raises(PrivacyError, match="group two"):
        plan(colluders=2)


def test_noise_without_a_colluder_is_refused() -> None:
    with pytest.raises(PrivacyError, match="set t to 1 or more"):
        plan(colluders=0)


def test_weights_too_far_apart_make_a_comb() -> None:
    changes = {"alphas": {"a": 19, "b": 19, "c": 19, "d": 1}, "bits": 13, "dropouts": 0}
    with pytest.raises(PrivacyError, match=r"comb.*lower the largest weight, raise bits"):
        same("abcd", **changes)
    assert same("abcd", **changes | {"bits": 20}).epsilon <= 4.0


def test_too_few_bits_say_how_many_are_needed() -> None:
    with pytest.raises(PrivacyError, match=r"6 bits do not hold.*raise bits to 7"):
        same("abcd", bits=6)
    # Seven bits hold teachers and noise; that the noise is too narrow there is the next refusal.
    with pytest.raises(PrivacyError, match="comb"):
        same("abcd", bits=7)


def test_headroom_that_would_eat_delta_says_how_much_is_needed() -> None:
    with pytest.raises(PrivacyError, match=r"raise tail to 7\.\d or lower ε"):
        same("abcd", tail=4.0)
    assert same("abcd", tail=8.0).delta_total < 1.01e-5


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"epsilon": 0.0}, "epsilon = 0"),
        ({"epsilon": math.inf}, "choose the mechanism none"),
        ({"delta": 0.0}, "delta = 0"),
        ({"rounds": 0}, "at least 1"),
        ({"dropouts": -1}, "-1 dropout"),
        ({"alphas": {"a": 1}}, "each site"),
        ({"alphas": {}, "groups": {}, "shards": {}}, "each site"),
        ({"shards": PLAN["shards"] | {"a": 0}}, "at least 1"),
        ({"alphas": PLAN["alphas"] | {"a": 0}}, "at least 1"),
    ],
)
def test_impossible_figures_are_refused(change: dict[str, Any], match: str) -> None:
    with pytest.raises(PrivacyError, match=match):
        plan(**change)

"""Verdicts fail closed: every way in which a table could say too much, and that it does not."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from attacks.rows import Measured, Row
from attacks.verdicts import ALPHA, NOTHING_SHOWN, Verdict, judge

TRIALS = 80
ROW = Row(
    id="X1",
    title="An attack",
    view="everything",
    needs=frozenset(),
    metric="score",
    statistic="gain",
    margin=0.5,
    control_margin=0.5,
    arms=("open", "shut"),
    play=lambda arm, budget, random: None,
)


def gains(arm, effect, *, spread=1.0, trials=TRIALS, seed=0, **changes):
    """Scores above a prior of 0 by `effect` in the mean, exactly."""
    noise = np.random.default_rng(seed).normal(0, spread, trials)
    scores = noise - noise.mean() + effect
    fields = {"baselines": {"prior": np.zeros(trials)}, "clusters": np.arange(trials)} | changes
    return Measured(arm, scores, **fields)


def verdicts(*arms, row=ROW):
    table = {(row.id, arm.arm): arm for arm in arms}
    return {f.arm: f for f in judge([row], table, np.random.default_rng(1))}


CONTROL = gains("open", 2.0)


def test_an_effect_above_zero_leaks():
    found = verdicts(CONTROL, gains("shut", 0.6))
    assert found["open"].verdict is Verdict.CONTROL
    assert found["shut"].verdict is Verdict.LEAKS
    assert found["shut"].low < 0.6 < found["shut"].high


def test_a_small_effect_that_is_sure_leaks_though_it_is_within_the_margin():
    assert verdicts(CONTROL, gains("shut", 0.05, spread=0.02))["shut"].verdict is Verdict.LEAKS


def test_no_leak_states_its_margin_and_power():
    found = verdicts(CONTROL, gains("shut", 0.02))["shut"]
    assert found.verdict is Verdict.NO_LEAK
    assert found.high <= ROW.margin
    assert found.power == pytest.approx(stats.norm.cdf(0.5 * np.sqrt(TRIALS) - 1.96), abs=0.02)
    assert "no effect of 0.5 or more" in found.why
    assert f"{found.power:.2f}" in found.why


@pytest.mark.parametrize("effect", [0.0, -0.1])
def test_trials_that_are_all_alike_state_no_power_and_conclude_nothing(effect):
    """An attacker that never left its prior, or left it by the same on every target."""
    alike = gains("shut", effect, spread=0.0)
    prior = {"prior": alike.scores, "another": alike.scores - effect}
    found = verdicts(CONTROL, replace(alike, baselines=prior))["shut"]
    assert (found.verdict, found.power) == (Verdict.INCONCLUSIVE, None)
    assert "no power can be stated" in found.why


def test_where_no_message_exists_there_is_no_leak():
    row = replace(ROW, arms=("open", NOTHING_SHOWN))
    found = verdicts(CONTROL, gains(NOTHING_SHOWN, 0.0, spread=0.0), row=row)[NOTHING_SHOWN]
    assert (found.verdict, found.power) == (Verdict.NO_LEAK, None)
    assert "no message of this kind exists" in found.why


def test_no_verdict_says_secure():
    assert not any("secure" in verdict.lower() for verdict in Verdict)


def test_an_interval_wider_than_the_margin_is_inconclusive():
    found = verdicts(CONTROL, gains("shut", 0.1, trials=8))["shut"]
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "beyond the margin" in found.why


@pytest.mark.parametrize("control", [gains("open", 0.4), gains("open", 0.6, trials=6), None])
def test_without_a_control_that_succeeds_nothing_is_concluded(control):
    shut = gains("shut", 0.0)
    found = verdicts(*([control] if control else []), shut)
    assert {one.verdict for one in found.values()} == {Verdict.INCONCLUSIVE}
    assert "positive control" in found["shut"].why


def test_a_leak_is_one_without_a_control_too():
    assert verdicts(gains("shut", 2.0))["shut"].verdict is Verdict.LEAKS


def test_an_attack_that_is_worse_than_its_own_prior_is_broken():
    found = verdicts(CONTROL, gains("shut", -0.6))["shut"]
    assert found.verdict is Verdict.INCONCLUSIVE
    assert "broken" in found.why


def test_its_own_prior_may_be_worse_than_another_baseline():
    """The effect is over the best baseline; only the prior shows that an attack is broken."""
    base = {"prior": np.zeros(TRIALS), "mean image": np.full(TRIALS, 0.5)}
    found = verdicts(CONTROL, gains("shut", 0.0, baselines=base))["shut"]
    assert (found.verdict, found.baseline) == (Verdict.NO_LEAK, "mean image")
    assert found.effect == pytest.approx(-0.5)


def _with_nan():
    found = gains("shut", 0.0)
    found.scores[3] = np.nan
    return found


@pytest.mark.parametrize(
    "broken",
    [
        _with_nan(),
        replace(gains("shut", 0.0), scores=np.full(TRIALS, np.inf)),
        gains("shut", 0.0, baselines={"prior": np.full(TRIALS, np.nan)}),
        gains("shut", 0.0, baselines={"prior": np.zeros(3)}),
        gains("shut", 0.0, baselines={}),
        gains("shut", 0.0, clusters=np.arange(3)),
        replace(gains("shut", 0.0), scores=np.zeros(0), clusters=np.zeros(0, np.int64)),
    ],
)
def test_what_is_no_number_never_passes(broken):
    found = verdicts(CONTROL, broken)["shut"]
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.effect is None


def test_an_arm_that_was_not_played_is_inconclusive():
    assert verdicts(CONTROL)["shut"].verdict is Verdict.INCONCLUSIVE


def test_few_clusters_are_few_however_many_trials_they_have():
    found = verdicts(CONTROL, gains("shut", 0.0, clusters=np.arange(TRIALS) % 3))["shut"]
    assert (found.clusters, found.verdict) == (3, Verdict.INCONCLUSIVE)


def test_a_false_alarm_in_the_whole_table_is_as_rare_as_one_should_be():
    """40 tables of 8 rows without any leak: without Holm's correction a fifth of them alarm."""
    control = gains("open", 2.0, trials=10)
    draw, alarms, alone = np.random.default_rng(2), 0, 0
    for _ in range(40):
        rows = [replace(ROW, id=f"X{at}") for at in range(8)]
        table = {}
        for row in rows:
            table[row.id, "open"] = control
            scores = draw.normal(0, 1, 30)
            table[row.id, "shut"] = Measured("shut", scores, {"prior": np.zeros(30)}, np.arange(30))
        found = [one for one in judge(rows, table, draw) if one.arm == "shut"]
        alarms += any(one.verdict is Verdict.LEAKS for one in found)
        alone += any(one.p / 8 <= ALPHA for one in found)
    assert alarms <= stats.binom.isf(1e-4, 40, ALPHA)
    assert alone > alarms


RATE = replace(ROW, statistic="rate", margin=0.1, control_margin=0.5)


def rates(arm, hits, chance=0.02, **changes):
    scores = (np.arange(TRIALS) < hits).astype(float)
    fields = {"baselines": {"chance": np.full(TRIALS, chance)}} | changes
    return Measured(arm, scores, clusters=np.arange(TRIALS), **fields)


def test_rates_are_judged_against_chance():
    control = rates("open", 75)
    found = {
        hits: verdicts(control, rates("shut", hits), row=RATE)["shut"].verdict
        for hits in (1, 4, 30)
    }
    assert found == {1: Verdict.NO_LEAK, 4: Verdict.INCONCLUSIVE, 30: Verdict.LEAKS}


def test_a_rate_needs_chance_and_whole_successes():
    control = rates("open", 75)
    without = verdicts(control, rates("shut", 1, baselines={}), row=RATE)["shut"]
    half = replace(rates("shut", 1), scores=np.full(TRIALS, 0.5))
    assert without.verdict is Verdict.INCONCLUSIVE
    assert verdicts(control, half, row=RATE)["shut"].verdict is Verdict.INCONCLUSIVE


AREA = replace(ROW, statistic="auc", margin=0.1, control_margin=0.2)


def areas(arm, effect, trials=400):
    draw = np.random.default_rng(3)
    members = np.arange(trials) % 2 == 0
    scores = draw.normal(0, 1, trials) + effect * members
    return Measured(arm, scores, {}, np.arange(trials), members)


def test_areas_are_judged_against_one_half():
    control = areas("open", 2.0)
    assert verdicts(control, areas("shut", 1.0), row=AREA)["shut"].verdict is Verdict.LEAKS
    assert verdicts(control, areas("shut", 0.0), row=AREA)["shut"].verdict is Verdict.NO_LEAK
    turned = verdicts(control, areas("shut", -1.0), row=AREA)["shut"]
    assert turned.verdict is Verdict.INCONCLUSIVE
    alone = replace(areas("shut", 0.0), members=np.ones(400, bool))
    assert verdicts(control, alone, row=AREA)["shut"].verdict is Verdict.INCONCLUSIVE

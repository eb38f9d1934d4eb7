import math
import os

import pytest
from pydantic import ValidationError

from protocols.accounting import compose
from protocols.client_gaussian import plan_clients
from protocols.dp_sgd import DpSgd
from protocols.errors import PrivacyError
from protocols.mechanisms import NoNoise
from protocols.noise_plan import NoisePlan
from protocols.sampler import seeded_random
from protocols.statement import PrivacyStatement

TRAINING = DpSgd(clip_norm=1.0, noise_multiplier=2.1, rate=0.1, steps=48, size=1026, expected=50.0)
PARTIES = {
    "alphas": {"a": 1, "b": 2, "c": 1},
    "groups": dict.fromkeys("abc", "g"),
    "colluders": 1,
    "dropouts": 0,
}
PLAN = NoisePlan.calibrate(
    epsilon=4.0,
    delta=1e-5,
    rounds=3,
    shards=dict.fromkeys("abc", 9),
    clip_norm=2.0,
    size=8,
    **PARTIES,
)


def trained(**changes: object) -> PrivacyStatement:
    figures = {"unit": "patient", "adversary": "all others", "random": os.urandom} | changes
    return PrivacyStatement.of(TRAINING, 5, 1e-6, **figures)


def test_the_figures_are_the_accountants() -> None:
    # The reference's example: 240 steps at q = 0.10, z = 2.1, δ = 1e-6.
    said, spent = trained(), compose([TRAINING.event()] * 5, 1e-6)
    assert said.epsilon == spent.epsilon == pytest.approx(3.93, abs=0.01)
    assert said.cross_check == spent.cross_check == pytest.approx(4.24, rel=0.01)
    assert (said.delta, said.target_delta) == (spent.delta_total, 1e-6)
    assert (said.charges, said.relation, said.unit) == (5, "add_or_remove_one", "patient")
    assert said.colluders is said.dropouts is None
    assert said.parameters == {
        "clip_norm": 1.0,
        "noise_multiplier": 2.1,
        "rate": 0.1,
        "steps": 48,
        "size": 1026,
        "expected": 50.0,
        "layers": "all",
    }


def test_a_plan_states_each_site_over_all_rounds() -> None:
    for site in "abc":
        said = PrivacyStatement.of_plan(PLAN, site, unit="image", random=os.urandom)
        spent = PLAN.spending(site)
        assert (said.epsilon, said.epsilon_isolated) == (spent.epsilon, spent.epsilon_isolated)
        assert (said.unit, said.relation, said.charges) == ("image", "replace_one", 3)
        assert (said.colluders, said.dropouts, said.adversary) == (1, 0, PLAN.adversary)
        assert said.parameters["sigma_share"] == PLAN.mechanisms[site].sigma_share
        assert said.cross_check is not None
        assert said.cross_check < said.epsilon


def test_a_client_is_its_own_unit() -> None:
    plan = plan_clients(
        epsilon=4.0,
        delta=1e-5,
        rounds=1,
        clip_norm=1.0,
        size=8,
        rows=4,
        classes=2,
        override=True,
        **PARTIES,
    )
    said = PrivacyStatement.of_plan(plan, "a", unit="patient", random=os.urandom)
    assert said.unit == "client"
    assert "adding or removing all records of one client" in said.paragraph()


STATEMENTS = [
    trained(),
    trained(random=seeded_random(b"seed")),
    PrivacyStatement.of_plan(PLAN, "b", unit="patient", random=os.urandom),
    PrivacyStatement.of(
        NoNoise(shards=1, clip_norm=1.0, clip_int=10, size=2),
        1,
        1e-5,
        unit="patient",
        adversary="nobody",
        random=os.urandom,
    ),
]


@pytest.mark.parametrize("said", STATEMENTS, ids=lambda said: said.mechanism)
def test_statements_survive_their_json_form(said: PrivacyStatement) -> None:
    assert PrivacyStatement.model_validate_json(said.model_dump_json()) == said


def test_the_paragraph_says_what_is_in_the_record() -> None:
    text = trained().paragraph()
    for part in (
        "5 release(s) of dp-sgd",
        "ε = 3.92",
        "δ = 1e-06",
        "adding or removing all records of one patient, against all others",
        "noise_multiplier 2.1",
        "Accountant: PLD",
        "Cross-check: ε = 4.2",
        "Poisson, each unit apart with probability 0.1",
        "the operating system's",
        "Not covered: the choice of hyper-parameters",
    ):
        assert part in text
    assert "\n" not in text
    shares = STATEMENTS[2].paragraph()
    assert "at most 1 colluding and 0 absent" in shares
    assert "only this site's own noise" in shares
    assert "none, every unit takes part" in shares


def test_seeded_randomness_is_called_not_private() -> None:
    assert "not private" in STATEMENTS[1].paragraph()
    assert "not private" not in STATEMENTS[0].paragraph()


def test_no_noise_is_said_to_guarantee_nothing() -> None:
    said = STATEMENTS[3]
    assert said.epsilon == said.epsilon_isolated == math.inf
    assert said.paragraph().startswith("1 release(s) of none guarantee nothing: ε = inf.")
    assert "differential privacy" not in said.paragraph()


def test_a_statement_is_frozen_and_refuses_the_unknown() -> None:
    with pytest.raises(ValidationError):
        trained().epsilon = 0.1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        PrivacyStatement.model_validate(trained().model_dump() | {"more": 1})
    with pytest.raises(PrivacyError, match="at least 1"):
        PrivacyStatement.of(TRAINING, 0, 1e-5, unit="patient", adversary="all", random=os.urandom)

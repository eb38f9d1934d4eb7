"""Playing a table: criteria first, arm after arm, taken up again, and never passed by accident."""

import io
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from rich.console import Console

from attacks.rows import Budget, Measured, Row
from attacks.threat import Capability
from attacks.verdicts import Verdict
from protocols.errors import ConfigError, RunFolderError
from protocols.promises import PROMISES
from secure_natfl import __version__
from secure_natfl.leakage.assemble import roc
from secure_natfl.leakage.kept import Kept
from secure_natfl.leakage.play import criteria_of, judged, play_all
from secure_natfl.leakage.promised import promise_of
from secure_natfl.leakage.table import select
from secure_natfl.progress import Stages

BUDGET = Budget(targets=40, seconds=60)
STAGES = Stages(Console(file=io.StringIO()))


class Attack:
    """Gains 1 where it is played open and 0 where shut, and counts how often it was played."""

    def __init__(self):
        self.played, self.budgets = [], []

    def __call__(self, arm, budget, random):
        self.played.append(arm)
        self.budgets.append(budget)
        if arm == "broken":
            raise ZeroDivisionError("a defect")
        noise = random.normal(0, 0.1, budget.targets)
        return Measured(
            arm,
            noise - noise.mean() + (arm == "open"),
            {"prior": np.zeros(budget.targets)},
            np.arange(budget.targets),
            extra={"seen": float("nan")},
            pictures=np.full((2, 3, 4, 4), 0.5),
        )


def row(attack, name="X1", arms=("open", "shut"), **changes):
    fields = {
        "id": name,
        "title": "An attack",
        "view": "everything",
        "needs": frozenset({Capability.PLANS}),
        "metric": "score",
        "statistic": "gain",
        "margin": 0.1,
        "control_margin": 0.5,
        "arms": arms,
        "play": attack,
        "tier": "fast",
    }
    return Row(**fields | changes)


def play(folder, *rows, budget=BUDGET):
    stated = {one.id: criteria_of(one, "run") for one in rows}
    kept = Kept(folder, "fast")
    kept.state(stated.values())
    played, missing = play_all(rows, stated, kept, "fast", budget, STAGES)
    return played, missing, {(f.row, f.arm): f for f in judged(rows, played, seed=0)}


def test_criteria_are_on_disk_before_anything_is_played(tmp_path):
    seen = []

    def looking(arm, budget, random):
        stated = json.loads((tmp_path / "attacks" / "criteria.json").read_text())
        tried = stated[0]["tries"][-1]
        assert tried["arm"] == arm
        assert (tried["tier"], tried["version"]) == ("fast", __version__)
        assert {name: tried[name] for name in asdict(budget)} == asdict(budget)
        seen.append((arm, stated[0]["margin"], stated[0]["control_margin"]))
        return Attack()(arm, budget, random)

    play(tmp_path, row(looking))
    assert seen == [("open", 0.1, 0.5), ("shut", 0.1, 0.5)]


def test_criteria_cannot_be_changed_once_they_were_stated(tmp_path):
    play(tmp_path, row(Attack()))
    with pytest.raises(RunFolderError, match="criteria of X1 are not those that were stated first"):
        play(tmp_path, row(Attack(), margin=0.9))
    play(tmp_path, row(Attack()), row(Attack(), "X2"))


def test_arms_that_were_played_are_taken_from_disk(tmp_path):
    attack = Attack()
    first, _, found = play(tmp_path, row(attack))
    again, _, same = play(tmp_path, row(attack))
    assert attack.played == ["open", "shut"]
    assert found == same
    for key, one in first.items():
        assert (one.measured.scores == again[key].measured.scores).all()
        assert (one.measured.pictures == again[key].measured.pictures).all()
        assert set(one.measured.baselines) == set(again[key].measured.baselines)


def test_the_same_draws_are_made_in_every_arm_and_equal_budgets(tmp_path):
    attack = Attack()
    played, _, _ = play(tmp_path, row(attack))
    noise = played["X1", "open"].measured.scores - 1 - played["X1", "shut"].measured.scores
    assert np.abs(noise).max() < 1e-12
    assert attack.budgets[0] == attack.budgets[1]


def test_when_the_time_is_up_the_rest_is_inconclusive_and_played_later(tmp_path):
    attack = Attack()
    _, missing, found = play(tmp_path, row(attack), budget=replace(BUDGET, seconds=1e-9))
    assert attack.played == []
    assert "time was up" in missing["X1", "shut"]
    assert {one.verdict for one in found.values()} == {Verdict.INCONCLUSIVE}
    _, missing, found = play(tmp_path, row(attack))
    assert missing == {}
    assert found["X1", "open"].verdict is Verdict.CONTROL
    assert found["X1", "shut"].verdict is Verdict.NO_LEAK


def test_what_a_run_itself_shows_is_attacked_before_what_stands_beside_it(tmp_path):
    attacks = [Attack(), Attack()]
    order = []
    rows = [
        row(lambda arm, *rest, a=a: order.append(arm) or a(arm, *rest), name, arms)
        for name, arms, a in (
            ("X1", ("open", "half", "protected"), attacks[0]),
            ("X2", ("open", "shut", "nothing shown"), attacks[1]),
        )
    ]
    play(tmp_path, *rows)
    assert order == ["open", "protected", "open", "nothing shown", "half", "shut"]
    for attack in attacks:
        assert len(set(attack.budgets)) == 1


def test_rows_that_score_the_same_guesses_draw_alike():
    seeds = {name: criteria_of(row(None, name), "run").seed for name in ("G3", "G3i", "G1", "G1i")}
    assert seeds["G3"] == seeds["G3i"] != seeds["G1"] == seeds["G1i"]


def test_an_attack_that_breaks_down_is_no_attack_that_failed(tmp_path):
    """Neither as the defended arm, nor as the control; and the other rows go on."""
    rows = row(Attack(), "X1", ("open", "broken")), row(Attack(), "X2", ("broken", "shut"))
    _, missing, found = play(tmp_path, *rows, row(Attack(), "X3"))
    assert "ZeroDivisionError: a defect" in missing["X1", "broken"]
    verdicts = {key: one.verdict for key, one in found.items()}
    assert verdicts["X1", "broken"] is Verdict.INCONCLUSIVE
    assert verdicts["X2", "shut"] is Verdict.INCONCLUSIVE
    assert verdicts["X3", "shut"] is Verdict.NO_LEAK


def test_rows_are_chosen_by_name_or_by_tier():
    rows = (row(None, "G1"), row(None, "L2", tier="full"))
    assert [one.id for one in select(rows, [], "fast")[0]] == ["G1"]
    assert [one.id for one in select(rows, [], "full")[0]] == ["G1", "L2"]
    chosen, left = select(rows, ["L2"], "fast")
    assert [one.id for one in chosen] == ["L2"]
    assert any(one.what.startswith("G1") for one in left)
    with pytest.raises(ConfigError, match=r"G11: no such attack.*did you mean G1"):
        select(rows, ["G11"], "fast")


@pytest.mark.parametrize("others", [5, 20, 500])
def test_a_false_positive_rate_is_drawn_only_where_ten_others_are_above(others):
    draw = np.random.default_rng(0)
    members = np.arange(2 * others) < others
    found = Measured("a", draw.normal(0, 1, 2 * others), {}, np.arange(2 * others), members)
    rates = [rate for rate, _ in roc(found)]
    assert all(rate * others >= 10 - 1e-9 for rate in rates)
    assert bool(rates) == (others > 10)


def test_only_rows_on_what_the_run_promises_can_break_a_promise() -> None:
    modes = [*PROMISES]
    assert all(promise_of("C2", mode) for mode in modes if mode.startswith("ckks"))
    assert not promise_of("C2", "slots/shared")
    assert not promise_of("C1", "plain/none")
    for mode in modes:
        assert promise_of("L3", mode)
        assert promise_of("G1", mode)
        assert not any(promise_of(row, mode) for row in ("L1", "L5", "L6", "A1", "P2"))
    assert "updates stay shut" in promise_of("G1", "ring/decryptor", updates=True)
    assert not promise_of("G1", "plain/none", updates=True)

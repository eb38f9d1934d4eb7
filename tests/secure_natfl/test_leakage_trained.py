"""The laboratory of answers where heads are trained under noise: both heads, and who sees what."""

import io

import numpy as np
import pytest
from rich.console import Console

from attacks.rows import Budget
from secure_natfl.execute import execute as play_run
from secure_natfl.leakage.answer_lab import RunAnswers
from secure_natfl.leakage.attacked import AttackedRun
from secure_natfl.leakage.over_epsilon import LEVELS, Supposed, over_epsilon_rows
from secure_natfl.leakage.poisoning_lab import RunSumLab
from secure_natfl.leakage.rows import all_rows
from secure_natfl.progress import Stages

TRAINED = ("privacy.mechanism=dp-sgd", "privacy.steps=4", "run.baselines=false")


def quiet():
    return Console(file=io.StringIO())


@pytest.fixture(scope="module")
def attacked(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "D"
    play_run(tiny(*TRAINED, "speed.threads=1"), path, "natfl run tiny", quiet())
    return AttackedRun.open(path, Stages(quiet()))


def test_noise_is_in_the_head_and_nowhere_else(attacked):
    """Whoever colludes: what is protected is what one site sends, on its grid; clear differs."""
    lab = RunAnswers(attacked, 2)
    seen = {
        arm: lab.sites(arm, 4, np.random.default_rng(0), shadow=False)[0].answers
        for arm in ("clear", "clipped", "noised", "protected")
    }
    assert seen["clear"].shape == (4, 2, 40, 3)
    assert (seen["clear"] == seen["clipped"]).all()
    assert (seen["noised"] == seen["protected"]).all()
    assert np.abs(seen["noised"] - seen["clear"]).mean() > 0.05
    assert lab.knowledge("protected").noise == 0
    mechanism = lab.arms.mechanism
    steps = seen["noised"] / mechanism.step
    assert np.abs(steps - np.rint(steps)).max() < 1e-6
    for one in RunSumLab(lab).incidents("protected", 3, np.random.default_rng(0)):
        assert one.published.weights.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_every_family_but_canaries_in_a_release_is_there(attacked):
    rows, without = all_rows(attacked, "full")
    assert {"C1", "G1", "L1", "L2", "A1", "P2"} <= {row.id for row in rows}
    assert [one.what for one in without] == ["L3: canaries in one release"]


def test_the_same_sites_are_attacked_at_every_epsilon(attacked):
    """A promise of less lets more noise into the head; what is clear stays as it was."""
    (row,) = over_epsilon_rows(attacked, RunAnswers(attacked, 1), 8)
    ends = row.arms[0], row.arms[-1]
    measured = [row.play(arm, Budget(4, 60.0), np.random.default_rng(0)) for arm in ends]
    assert measured[0].extra["KL of the prior"] == measured[1].extra["KL of the prior"]
    levels = [Supposed.of(attacked, epsilon) for epsilon in LEVELS.values()]
    noises = [next(iter(run.terms.mechanisms.values())).training.noise_multiplier for run in levels]
    assert noises == sorted(set(noises))
    assert levels[0].federation is attacked.federation

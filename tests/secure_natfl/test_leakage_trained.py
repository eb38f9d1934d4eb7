"""The laboratory of answers where heads are trained under noise: both heads, and who sees what."""

import io

import numpy as np
import pytest
from rich.console import Console

from secure_natfl.execute import execute as play_run
from secure_natfl.leakage.answer_lab import RunAnswers
from secure_natfl.leakage.attacked import AttackedRun
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

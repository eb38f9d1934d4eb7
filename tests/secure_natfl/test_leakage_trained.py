"""The laboratory of answers where heads are trained under noise: both heads, and who sees what."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from attacks.rows import Budget
from attacks.sums.table import probing_row
from protocols.ledger import Ledger, ReleaseKey
from protocols.sampler import seeded_random
from secure_natfl.dp_training import Cohort
from secure_natfl.execute import execute as play_run
from secure_natfl.fine_tuning import fresh
from secure_natfl.leakage.answer_lab import RunAnswers
from secure_natfl.leakage.attacked import AttackedRun
from secure_natfl.leakage.over_epsilon import LEVELS, Supposed, over_epsilon_rows
from secure_natfl.leakage.poisoning_lab import RunSumLab
from secure_natfl.leakage.rows import all_rows
from secure_natfl.progress import Stages
from secure_natfl.systems.private_head import PrivateHead

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


def test_a_laboratorys_heads_are_those_that_sites_train(attacked):
    """The same noise, the same samples: the quick head and the site's own say the same."""
    lab = RunAnswers(attacked, 2)
    speakers, pool = lab.speakers, lab.pool
    (rows,) = lab.fresh(1, np.random.default_rng(0), shadow=False)
    at = torch.from_numpy(rows)
    plan = replace(speakers.training, rate=0.5, expected=len(rows) * 0.5)
    naturals = speakers._raw(speakers.backbone.features)
    own = PrivateHead.of(attacked.federation.sites[0], attacked.config.privacy)
    cohort = Cohort(
        (speakers._raw(pool.features[at]), pool.targets[at], pool.known[at]),
        tuple(torch.tensor([row]) for row in range(len(rows))),
    )
    for number in range(2):
        quick = speakers._head(
            pool, rows, number, replace(plan, expected=1.0), seeded_random(b"n" * 32)
        )
        slow = fresh(speakers._start, quick.classes, torch.Generator().manual_seed(0))
        noise = seeded_random(b"n" * 32)
        with Ledger(
            Path(":memory:"),
            "a",
            "study",
            relation=plan.event().relation,
            budget_epsilon=None,
            delta=1e-5,
        ) as ledger:

            def begin(size, ledger=ledger, noise=noise):
                return replace(plan, size=size).begin(ledger, ReleaseKey("study", 0), noise)

            replace(own, cohort=cohort).train(
                slow, naturals, naturals, speakers._known(number), begin, noise
            )
        said = [speakers._ask(one, speakers.backbone.features).xray for one in (quick, slow)]
        assert said[0] == pytest.approx(said[1], abs=1e-4)
        assert said[0].std() > 0.1


def test_weights_that_are_the_same_everywhere_hide_nothing_and_are_no_control(attacked):
    """Probing finds a site's confidence; the run's own weights are public, and read as they are."""
    row = probing_row(RunSumLab(RunAnswers(attacked, 1)))
    budget = Budget(6, 60.0)
    control, own = (row.play(arm, budget, np.random.default_rng(0)) for arm in row.arms)
    assert control.scores.min() > 0.99
    assert (control.scores - control.baselines["reading one round"]).mean() > 0.05
    assert (own.scores == own.baselines["reading one round"]).all()


def test_sites_watched_over_rounds_are_drawn_once_for_all_arms(attacked):
    sums = RunSumLab(RunAnswers(attacked, 2))
    seen = [sums.admissions(arm, 6, np.random.default_rng(0)) for arm in ("clear", "protected")]
    assert (seen[0].admitted == seen[1].admitted).all()
    assert (seen[0].candidates.features == seen[1].candidates.features).all()
    assert len(sums._admitted) == 1

"""The laboratory on given images, and the rows played on it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from attacks.gradients import table
from attacks.gradients.clients import Client
from attacks.gradients.label_row import _scores
from attacks.gradients.labels import bias_corrected
from attacks.gradients.laboratory import Observation, Shared, Trial
from attacks.gradients.networks import convolutional
from attacks.gradients.rehearsal import by_stage, convincing
from attacks.gradients.simulated import ARMS, NETWORKS, SimulatedLab
from attacks.gradients.table import gradient_rows
from attacks.priors import Prior
from attacks.rows import Budget
from attacks.verdicts import judge
from protocols.errors import ConfigError

BUDGET = Budget(targets=12, seconds=60, restarts=2, iterations=60)
HALVES = slice(12), slice(12, None)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pictures(count: int, seed: int) -> torch.Tensor:
    noise = torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(noise, size=(16, 16), mode="bicubic").clamp(0, 1)


def laboratory(seed: int = 0, **changes) -> SimulatedLab:
    random = np.random.default_rng(seed)
    return SimulatedLab(
        images=pictures(120, seed),
        labels=torch.from_numpy(random.integers(0, 4, 120)),
        clusters=np.arange(120) // 2,
        public=pictures(120, seed + 1),
        public_labels=torch.from_numpy(random.integers(0, 4, 120)),
        classes=4,
        random=random.bytes,
        **changes,
    )


def play(row_id: str, arm: str, budget: Budget = BUDGET, lab: SimulatedLab | None = None):
    rows = {row.id: row for row in gradient_rows(lab or laboratory())}
    return rows[row_id].play(arm, budget, np.random.default_rng(0))


def flat(trial: Trial) -> torch.Tensor:
    return torch.cat([g.flatten() for g in trial.observation.gradient])


def test_rows_fix_their_criteria_before_anything_is_played():
    rows = gradient_rows(laboratory())
    assert [row.id for row in rows] == ["G1", "G1i", "G3", "G3i", "G4", "G5a", "G5b", "G2"]
    assert all(row.arms == (*ARMS, "nothing shown") for row in rows)
    assert all(0 < row.margin < row.control_margin for row in rows)
    own = gradient_rows(laboratory(shared=Shared(sites=2, images=8)))
    assert all(row.arms == (*ARMS, "protected") for row in own)


@pytest.mark.parametrize(("row", "control"), [("G1", 0.95), ("G2", 0.95), ("G5a", 0.5)])
def test_closed_forms_succeed_undefended(row, control):
    found = play(row, "undefended")
    assert found.scores.shape == found.clusters.shape == (12,)
    assert found.scores.mean() > control
    assert all(found.scores.mean() > base.mean() + 0.1 for base in found.baselines.values())


def test_what_the_mean_image_hides_is_found_again_among_fifty():
    """Several local steps spoil the likeness; whose image it is, may still show."""
    found = play("G1i", "fedavg", replace(BUDGET, targets=40))
    assert set(found.baselines) == {"chance", "prior", "another client's guess"}
    assert set(np.unique(4 * found.scores)) <= {0, 1, 2, 3, 4}, "of four images of a client"
    assert found.scores.mean() > max(base.mean() for base in found.baselines.values())


def test_clients_of_several_images_are_judged_by_how_many_are_found_again():
    """Shares of a client's images are no successes of 0 or 1, which a rate would ask for."""
    lab = laboratory()
    row = next(one for one in gradient_rows(lab) if one.id == "G3i")
    budget = Budget(targets=8, seconds=60, restarts=1, iterations=2)
    played = {("G3i", arm): row.play(arm, budget, np.random.default_rng(0)) for arm in row.arms[:2]}
    found = {one.arm: one for one in judge([row], played, np.random.default_rng(0))}
    assert found["fedavg"].effect is not None


def test_rehearsals_carry_the_labels_of_the_attackers_images():
    lab = laboratory()
    known = {
        one.numpy().tobytes(): int(label)
        for one, label in zip(lab.public, lab.public_labels, strict=True)
    }
    for trial in lab.rehearsals("batch", "undefended", 3, np.random.default_rng(0)):
        said = [known[one.numpy().tobytes()] for one in trial.truth.images]
        assert said == trial.truth.labels.tolist()


def test_a_guess_is_also_held_against_the_prior_in_its_own_unit():
    """RDLV, (s − p)/p: 0 for the prior itself, 1/p − 1 for the image."""
    lab = laboratory()
    found = play("G4", "undefended", replace(BUDGET, targets=4), lab)
    priors = found.baselines["prior"]
    gains = sorted(1 / priors[priors > 0] - 1)
    assert gains[0] * 0.99 < found.extra["median RDLV of SSIM"] < gains[-1] * 1.01
    assert found.extra["median NRMSE"] < 0.01
    blind = play("G4", "nothing shown", replace(BUDGET, targets=4), lab)
    assert blind.extra["median RDLV of SSIM"] == 0


def test_networks_are_attacked_before_and_after_training():
    lab = laboratory(epochs=(0, 5))
    found = play("G1", "undefended", lab=lab)
    assert {"network untrained", "network after 5 epochs"} <= found.extra.keys()
    inputs = (lab.images - lab.mean) / lab.deviation
    trials = list(lab.trials("linear", "undefended", 4, np.random.default_rng(0)))
    with torch.no_grad():
        said = [trial.observation.knowledge.network(inputs) for trial in trials]
    losses = [float(functional.cross_entropy(one, lab.labels)) for one in said]
    assert max(losses[1::2]) < min(losses[::2])


def test_position_embeddings_give_the_image_away():
    found = play("G4", "undefended", replace(BUDGET, targets=4))
    assert found.scores.min() > 0.99
    assert found.extra["share of exact images"] > 0


@pytest.mark.parametrize("row", ["G1", "G2"])
@pytest.mark.parametrize("arm", ["dp-sgd", "nothing shown"])
def test_an_attack_that_learns_nothing_stays_at_its_prior(row, arm):
    found = play(row, arm, lab=laboratory(noise_multiplier=100.0))
    assert np.abs(found.scores - found.baselines["prior"]).mean() < 0.02


def loud(shape: tuple[int, int, int], classes: int) -> torch.nn.Sequential:
    """A network so sure of everything that a few local steps overshoot."""
    network = convolutional(shape, classes, 4)
    with torch.no_grad():
        network[-1].weight.mul_(100)
    return network


def test_labels_are_not_guessed_where_own_images_say_it_fails():
    """The bias misleads after steps that overshoot; rehearsals show it, and the prior is kept."""
    shared = Shared(sites=2, images=16, steps=2)
    lab = laboratory(factories={**NETWORKS, "batch": loud}, shared=shared)
    trials = list(lab.trials("batch", "protected", 10, np.random.default_rng(0)))
    blind = [bias_corrected(one.observation, lab.prior()) for one in trials]
    found = play("G2", "protected", lab=lab)
    assert _scores(blind, trials).mean() < found.baselines["prior"].mean() - 0.03
    assert found.scores.mean() >= found.baselines["prior"].mean()


def test_a_choice_is_made_for_each_stage_of_which_enough_was_rehearsed():
    stages = ["untrained"] * 12 + ["late"] * 12 + ["early"] * 3
    trials = [Trial(None, None, stage) for stage in stages]
    asked = []
    chosen = by_stage(trials, lambda rows: asked.append(rows) or len(rows))
    assert [chosen(Trial(None, None, one)) for one in ("untrained", "early", "?")] == [12, 27, 27]
    assert convincing(np.array([0.1, 0.2, 0.3]))
    assert not convincing(np.array([-0.1, 0.2, 0.3]))


def test_what_one_row_searched_for_another_scores_too(monkeypatch):
    searched = []
    real = table.invert
    monkeypatch.setattr(table, "invert", lambda *a, **k: searched.append(1) or real(*a, **k))
    rows = {row.id: row for row in gradient_rows(laboratory())}
    budget = Budget(targets=3, seconds=60, restarts=1, iterations=2)
    first = rows["G3"].play("undefended", budget, np.random.default_rng(0))
    count = len(searched)
    second = rows["G3i"].play("undefended", budget, np.random.default_rng(0))
    assert count > 0
    assert len(searched) <= count + 3
    assert (first.clusters == second.clusters).all()


def test_the_prior_keeps_what_varies_and_drops_what_does_not():
    images = torch.full((50, 1, 4, 4), 0.5)
    images[:, 0, 0, 0] = torch.linspace(0, 1, 50)
    prior = Prior.of(images)
    seen = torch.full((1, 1, 4, 4), 0.9)
    drawn = prior.posterior(seen, 0.1)
    assert drawn[0, 0, 0, 0].item() > 0.85
    assert torch.allclose(drawn[0, 0, 1:], torch.tensor(0.5), atol=1e-4)
    assert torch.equal(prior.posterior(seen, 0.0), seen)
    assert torch.allclose(prior.posterior(seen, 1e6), prior.guess(1), atol=1e-3)
    with pytest.raises(ConfigError, match="at least two"):
        Prior.of(images[:1])


def sent(shared: Shared, images: slice = slice(None)) -> list[torch.Tensor]:
    """What sites with 24 images, or some of them, show of their updates."""
    lab = laboratory(shared=shared)
    client = Client(lab._ground(), lab._network("batch", 0, 0), lab.images[:24], lab.labels[:24])
    part = replace(client, images=client.images[images], labels=client.labels[images])
    return list(part.shows("protected").gradient)


def test_updates_are_added_up_site_by_site():
    both = sent(Shared(sites=2, images=12, steps=2, passes=2))
    apart = [sent(Shared(sites=1, images=12, steps=2, passes=2), one) for one in HALVES]
    for total, first, second in zip(both, *apart, strict=True):
        assert torch.allclose(total, (first + second) / 2, atol=1e-6)
        assert not torch.allclose(first, second, atol=1e-6)


def test_noise_on_updates_is_as_known():
    """Between two draws twice the variance; of thousands of numbers it is known to 5 %."""
    for shared in (
        Shared(sites=2, images=12, steps=2, site_noise=3.0),
        Shared(sites=2, images=12, record_noise=3.0),
    ):
        lab = laboratory(shared=shared)
        trials = [
            next(iter(lab.trials("batch", "protected", 1, np.random.default_rng(0))))
            for _ in range(2)
        ]
        noise = trials[0].observation.knowledge.noise
        apart = flat(trials[0]) - flat(trials[1])
        assert float(apart.std()) == pytest.approx(noise * 2**0.5, rel=0.05)


def test_labels_of_a_site_show_in_its_own_update_and_less_in_a_sum():
    alone, several = (
        play("G2", "protected", lab=laboratory(shared=Shared(sites=n, images=8))) for n in (1, 10)
    )
    assert alone.scores.mean() > several.scores.mean() + 0.1


def test_a_time_that_is_up_leaves_fewer_targets():
    found = play("G2", "undefended", replace(BUDGET, seconds=1e-9))
    assert len(found.scores) == 8


@pytest.mark.nightly
def test_gradient_matching_succeeds_undefended():
    found = play("G3", "undefended", Budget(targets=2, seconds=30, restarts=2, iterations=60))
    assert found.scores.mean() > found.baselines["prior"].mean() + 0.2
    # What was kept was chosen on the attacker's own images.
    assert sum(name.startswith("rehearsed: ") for name in found.extra) == 1 + 4 * 5


def test_the_same_clients_are_attacked_in_every_arm():
    lab = laboratory()
    seen = {}
    for arm in lab.arms("batch"):
        trials = list(lab.trials("batch", arm, 3, np.random.default_rng(5)))
        seen[arm] = [trial.truth.images[0] for trial in trials]
    for arm in lab.arms("batch"):
        assert all(torch.equal(a, b) for a, b in zip(seen[arm], seen["undefended"], strict=True))


def test_truth_and_lures_are_disjoint():
    for trial in laboratory().trials("image", "aggregated", 5, np.random.default_rng(0)):
        assert trial.observation.knowledge.images == 10
        assert len(trial.truth.images) == 1
        gaps = (trial.truth.lures - trial.truth.images).flatten(1).abs().amax(1)
        assert len(gaps) == 49
        assert float(gaps.min()) > 0


def test_noise_and_clip_are_as_known():
    lab = laboratory(noise_multiplier=2.0)
    trial = next(iter(lab.trials("linear", "dp-sgd", 1, np.random.default_rng(0))))
    known = trial.observation.knowledge
    assert known.noise == pytest.approx(2 * known.clip)
    residue = flat(trial)
    assert float(residue.std()) == pytest.approx(known.noise, rel=0.05)
    assert math.isfinite(known.clip)


def test_attacks_see_the_observation_only():
    trial = next(iter(laboratory().trials("batch", "undefended", 1, np.random.default_rng(0))))
    assert isinstance(trial.observation, Observation)
    assert set(vars(trial.observation)) == {"knowledge", "gradient"}


def test_a_laboratory_needs_enough_images_in_range():
    with pytest.raises(ConfigError, match="not as a network takes them"):
        replace(laboratory(), images=(pictures(120, 0) - 0.5) / 0.25)
    with pytest.raises(ConfigError, match="at least 80"):
        replace(laboratory(), images=pictures(20, 0))
    with pytest.raises(ConfigError, match="120 public images, 119 labels"):
        replace(laboratory(), public_labels=torch.zeros(119))
    with pytest.raises(ConfigError, match="no arm"):
        play("G1", "imagined")
